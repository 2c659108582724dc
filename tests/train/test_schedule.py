"""The learning rate: up through the warm-up, then down as named, never above its highest."""

from __future__ import annotations

import pytest

from megatron_most.config import TrainConfig, learning_rate


def rates(**changes: object) -> list[float]:
    train = TrainConfig(steps=10, learning_rate=1.0, **changes)  # type: ignore[arg-type]
    return [round(learning_rate(train, step), 4) for step in range(10)]


def test_linear_without_warm_up_is_the_releases() -> None:
    assert rates() == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_warm_up_reaches_the_highest_at_its_last_step() -> None:
    assert rates(warmup_steps=4, schedule="constant") == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_wsd_stays_and_then_falls_to_the_end_ratio() -> None:
    assert rates(schedule="wsd", decay_steps=5, end_ratio=0.5) == [*[1.0] * 6, 0.9, 0.8, 0.7, 0.6]


def test_cosine_is_half_way_in_the_middle() -> None:
    found = rates(schedule="cosine", end_ratio=0.1)
    assert found[0] == 1.0 and found[5] == pytest.approx(0.55) and found == sorted(found, reverse=True)
    assert found[9] > 0.1

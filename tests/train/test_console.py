"""A step's line fits 120 columns whatever it has to say, and leaves out what matters least."""

from __future__ import annotations

import io
import itertools
import logging
import sys
from typing import Any

import pytest

from megatron_most.runtime import get_logger
from megatron_most.train.console import clock, console_line

USUAL: dict[str, Any] = {
    "step": 1199, "loss": 2.34567, "loss/text": 2.1, "loss/audio": 2.6, "task/asr": 2.2, "task/tts": 2.5,
    "gradient_norm": 1.234, "skipped": False, "learning_rate": 1e-5, "tokens_per_second": 123456.7, "mfu": 0.3812,
}  # fmt: skip
EXTREMES: dict[str, list[Any]] = {
    "step": [0, 10**15],
    "loss": [0.0, 1e308, float("nan"), float("inf")],
    "gradient_norm": [0.0, 1e-300, float("inf")],
    "tokens_per_second": [0.001, 1e15],
    "mfu": [None, 1e-9, 100.0],
    "skipped": [True, False],
}


def printed(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    logger = get_logger("megatron_most.train.console")
    assert logger.isEnabledFor(logging.INFO)
    logger.info("%s", text)
    return out.getvalue()


def test_a_usual_step_tells_all_that_one_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console_line(USUAL, 500_000, 3 * 3600 + 723)
    words = ["step 1200/500000", "loss 2.346", "text 2.100 audio 2.600", "norm 1.23", "123,457 tok/s", "mfu 38%"]
    assert shown == "  ".join([*words, "3:12:03 left"])  # no room for the learning rate and for losses by task
    assert len(printed(shown, monkeypatch).rstrip("\n")) <= 120
    few = {name: value for name, value in USUAL.items() if not name.startswith("loss/")} | {"mfu": None}
    shown = console_line(few, 20, 60)
    assert "  asr 2.200 tts 2.500  " in shown and "  lr 1e-05  " in shown  # there is room for them


@pytest.mark.parametrize("name", ["asr", "a-task-with-a-name-that-never-ends-" * 9, "文字" * 40])
def test_no_line_is_wider_than_120_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for values in itertools.product(*EXTREMES.values()):
        line = {**USUAL, **dict(zip(EXTREMES, values, strict=True)), f"task/{name}": 1.5, f"loss/{name}": 1e30}
        for steps, left in ((10, 0.0), (10**15, 1e12)):
            shown = console_line(line, steps, left)
            assert len(printed(shown, monkeypatch).rstrip("\n")) <= 120
            assert f"step {line['step'] + 1}/{steps}" in shown and "loss " in shown and "left" in shown


def test_the_clock_counts_hours_past_a_day() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 3600, 360_000)] == ["0:00:00", "0:00:59", "1:00:00", "100:00:00"]

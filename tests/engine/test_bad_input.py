"""One rank's bad batch is one clear error on every rank, naming the row and token; nobody hangs and nothing was
learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import PackedBatch, synthetic_batch
from megatron_most.engine import PlainEngine, make_plan, open_groups
from megatron_most.errors import MostError
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.vocab import AUDIO, tiny_token_map
from tests.harness import RanksFailed, run_ranks

TWO_LAYERS = {"model.num_layers": 2}
CHANGES = {**TWO_LAYERS, "model.wave_size": 6, "layout.expert": 2}


def put(field: str, value: float, position: tuple[int, ...] = (0, 5)) -> Callable[[PackedBatch], PackedBatch]:
    def change(batch: PackedBatch) -> PackedBatch:
        tensor = getattr(batch, field).clone()
        tensor[position] = value
        return dataclasses.replace(batch, **{field: tensor})

    return change


def with_wave(batch: PackedBatch) -> PackedBatch:
    is_wave = torch.zeros_like(batch.is_pad_BS)
    is_wave[0, 3:7] = True
    tags = torch.where(is_wave, AUDIO, batch.tags_BS)
    wave = torch.ones(*batch.tokens_BS.shape, 6)
    return dataclasses.replace(batch, wave_BSF=wave, is_wave_BS=is_wave, tags_BS=tags)


def with_nan(batch: PackedBatch) -> PackedBatch:
    return put("wave_BSF", float("nan"), (0, 5, 2))(with_wave(batch))


BAD: dict[str, tuple[Callable[[PackedBatch], PackedBatch], str]] = {
    "token without tag": (put("tags_BS", -1), "row 0, token 5: without tag"),
    "tag without group": (put("tags_BS", 3), "row 0, token 5: tag 3 owns no expert group"),
    "id beyond the vocabulary": (put("tokens_BS", 72), "row 0, token 5: token id 72 is outside the vocabulary"),
    "negative id": (put("tokens_BS", -100), "row 0, token 5: token id -100 is outside the vocabulary"),
    "id of an unused row": (put("tokens_BS", 70), "row 0, token 5: token id 70 is outside the vocabulary"),
    "label beyond the vocabulary": (put("labels_BS", 99), "row 0, token 5: label id 99 is outside the vocabulary"),
    "NaN weight": (put("loss_weights_BS", float("nan")), "row 0, token 5: loss weight nan"),
    "NaN in continuous features": (with_nan, "row 0, token 5: continuous features hold NaN"),
    "features of another width": (
        lambda batch: dataclasses.replace(with_wave(batch), wave_BSF=torch.ones(*batch.tokens_BS.shape, 5)),
        "model.wave_size asks for (1, 32, 6)",
    ),
    "another token map": (
        lambda batch: dataclasses.replace(batch, token_map=tiny_token_map(num_units=21)),
        "batch: another token map: num_units is 21 there and 22 here",
    ),
    "tags that are real numbers": (
        lambda batch: dataclasses.replace(batch, tags_BS=batch.tags_BS.float()),
        "tags_BS: torch.float32 on cpu, where whole numbers are wanted",
    ),
    "no tags at all": (
        lambda batch: dataclasses.replace(batch, tags_BS=None),  # type: ignore[arg-type]
        "tags_BS: a NoneType, not a tensor",
    ),
    "no batch at all": (lambda batch: None, "a micro-batch is a NoneType, not a PackedBatch"),  # type: ignore[arg-type,return-value]
    "documents that are not announced": (
        put("documents_BS", 1),
        "row 0, token 5: of document 1, the second in its row, but is_packed is False",
    ),
    "continuous features under a text tag": (
        lambda batch: put("tags_BS", 0)(with_wave(batch)),
        "row 0, token 5: continuous features under tag 0, not audio",
    ),
    "another row length": (
        lambda batch: synthetic_batch(batch.token_map, ["text"], 16, seed=0, first=0),
        "rows of 16 tokens, but train.sequence_length is 32",
    ),
    "tensors of different shapes": (
        lambda batch: dataclasses.replace(batch, tags_BS=batch.tags_BS[:, 1:]),
        "tags_BS: shape (1, 31) differs",
    ),
}


@pytest.fixture(scope="module")
def said() -> list[dict[str, tuple[str, str, bool]]]:
    """What each rank said of each bad batch, one after the other: an error that all share leaves them together."""
    return run_ranks(step_with_bad_batches_on_rank_1, 2)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_of_one_rank_is_the_same_error_on_every_rank(name: str, said: list[Any]) -> None:
    (error, message, has_learnt), other = (rank[name] for rank in said)
    assert other == (error, message, has_learnt) and not has_learnt
    assert error == ("LayoutError" if name == "another row length" else "DataError")
    assert message.startswith("rank 1: ") and BAD[name][1] in message


def test_a_bad_batch_of_one_rank_ends_both() -> None:
    with pytest.raises(RanksFailed) as failed:
        run_ranks(end_with_a_bad_batch_on_rank_1, 2, timeout=60)
    assert [(outcome.error, outcome.hung) for outcome in failed.value.outcomes] == [("DataError", False)] * 2


def test_ranks_with_different_numbers_of_micro_batches_are_all_refused() -> None:
    with pytest.raises(RanksFailed) as failed:
        run_ranks(step_with_more_micro_batches_on_rank_1, 2, timeout=60)
    errors = {(outcome.error, outcome.message) for outcome in failed.value.outcomes}
    assert len(errors) == 1 and "1 to 2 micro-batches" in errors.pop()[1]


@pytest.mark.parametrize("layout", ["tensor", "pipeline", "context"])
def test_ranks_that_share_a_sequence_must_hold_the_same_rows(layout: str) -> None:
    with pytest.raises(RanksFailed) as failed:
        run_ranks(step_with_other_rows_on_rank_1, 2, layout, timeout=60)
    errors = {(outcome.error, outcome.message) for outcome in failed.value.outcomes}
    assert len(errors) == 1 and "got different batches" in errors.pop()[1]


def step_with_other_rows_on_rank_1(ranks: Ranks, layout: str) -> None:
    plan = make_plan(
        replace(load_recipe("most-tiny"), {f"layout.{layout}": 2, **TWO_LAYERS}), ranks.world_size, ranks.device
    )
    with open_groups(plan, ranks) as session:
        engine = PlainEngine(build_model(plan, session.groups), plan, session.groups)
        engine.step([synthetic_batch(plan.tokens, ["mixed"], 32, seed=0, first=ranks.rank)], 1e-3)


def step_with_more_micro_batches_on_rank_1(ranks: Ranks) -> None:
    plan = make_plan(replace(load_recipe("most-tiny"), TWO_LAYERS), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        engine = PlainEngine(build_model(plan, session.groups), plan, session.groups)
        engine.step([synthetic_batch(plan.tokens, ["mixed"], 32, seed=0, first=0)] * (1 + ranks.rank), 1e-3)


def test_good_batches_with_continuous_features_pass_and_use_them() -> None:
    for with_features, without in run_ranks(losses_with_and_without_features, 2):
        assert with_features != pytest.approx(without, rel=1e-4)


def losses_with_and_without_features(ranks: Ranks) -> tuple[float, float]:
    plan = make_plan(replace(load_recipe("most-tiny"), CHANGES), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        engine = PlainEngine(build_model(plan, session.groups), plan, session.groups)
        batch = synthetic_batch(plan.tokens, ["mixed"], 32, seed=0, first=0)
        return float(engine.evaluate([with_wave(batch)]).mean), float(engine.evaluate([batch]).mean)


def step_with_bad_batches_on_rank_1(ranks: Ranks) -> dict[str, tuple[str, str, bool]]:
    plan = make_plan(replace(load_recipe("most-tiny"), CHANGES), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        engine = PlainEngine(build_model(plan, session.groups), plan, session.groups)
        before = [weight.clone() for weight in engine.weights]
        batch, said = synthetic_batch(plan.tokens, ["mixed"], 32, seed=0, first=0), {}
        for name, (spoil, _) in BAD.items():
            with pytest.raises(MostError) as caught:
                engine.step([spoil(batch) if ranks.rank == 1 else batch], 1e-3)
            has_learnt = not all(torch.equal(a, b) for a, b in zip(before, engine.weights, strict=True))
            said[name] = (type(caught.value).__name__, str(caught.value), has_learnt)
        engine.step([batch], 1e-3)
        assert not all(torch.equal(a, b) for a, b in zip(before, engine.weights, strict=True))  # a good one does teach
        return said


def end_with_a_bad_batch_on_rank_1(ranks: Ranks) -> None:
    plan = make_plan(replace(load_recipe("most-tiny"), CHANGES), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        engine = PlainEngine(build_model(plan, session.groups), plan, session.groups)
        batch = synthetic_batch(plan.tokens, ["mixed"], 32, seed=0, first=0)
        engine.step([with_nan(batch) if ranks.rank == 1 else batch], 1e-3)

"""Steps on a dataset of continuous frames, from its files through the reader, cost the same in every layout and under
ZeRO as in one process, and move the projector by the same gradient, and so do layers of the encoder that learn. Later
pipeline stages hear nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import Position
from megatron_most.engine import make_engine, make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.train.blend import open_reader
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech
from tests.harness import run_ranks
from tests.weights import load_parts, named_weights, part_of, tied_name, whole_weights

STEPS, ROWS, LEARNING_RATE = 3, 4, 5e-4
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"layout.tensor": 2}),
    "EP2": (2, {"layout.expert": 2}),
    "PP2": (2, {"layout.pipeline": 2}),
    "CP2": (2, {"layout.context": 2}),
    "TP2xPP2xEP2": (4, {"layout.tensor": 2, "layout.pipeline": 2, "layout.expert": 2}),
    "TP2xCP2": (4, {"layout.tensor": 2, "layout.context": 2}),
    **{f"EP2 ZeRO-{n}": (2, {"layout.expert": 2, "engine.kind": "deepspeed", "engine.zero_stage": n}) for n in (1, 3)},
    "TP2 ZeRO-2": (2, {"layout.tensor": 2, "engine.kind": "deepspeed", "engine.zero_stage": 2}),
}
LEARNT: dict[str, Any] = {"model.wave_layers": [1, 2], "model.wave_heads": 3, "model.wave_inner_size": 24}
OF_LEARNT = ("TP2", "EP2", "PP2", "CP2", "TP2xCP2", "EP2 ZeRO-3", "TP2 ZeRO-2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_tokenizer(root / "tokenizer")
    build_frames(frame_inputs(make_speech(root / "corpus"), root / "tokenizer", stack=2), root / "asr")
    return root


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[str, Any]:
    return run_ranks(train, 1, data, {})[0]


@pytest.fixture(scope="module")
def learnt(data: Path) -> dict[str, Any]:
    return run_ranks(train, 1, data, LEARNT)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_on_frames_cost_the_same_in_every_layout(layout: str, data: Path, alone: dict[str, Any]) -> None:
    world, changes = LAYOUTS[layout]
    require_alike(run_ranks(train, world, data, changes), alone)


@pytest.mark.parametrize("layout", OF_LEARNT)
def test_layers_of_the_encoder_learn_the_same_in_every_layout(
    layout: str, data: Path, learnt: dict[str, Any], alone: dict[str, Any]
) -> None:
    world, changes = LAYOUTS[layout]
    assert min(learnt["layers_moved"]) > 1e-3 and learnt["losses"] != alone["losses"]
    require_alike(run_ranks(train, world, data, {**changes, **LEARNT}), learnt)


def require_alike(many: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert min(norms["wave"] for norms in alone["by_part"]) > 1e-3 and alone["moved"] > 1e-3
    for rank in many:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)  # fp32, sums in another order
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        assert rank["by_part"] == [pytest.approx(step, rel=1e-4) for step in alone["by_part"]]
        assert not rank["weights"] or max(rank["weights"], key=lambda pair: pair[1])[1] < 1e-5
        assert rank["hears"] == rank["is_first"]


def train(ranks: Ranks, data: Path, changes: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "tokens.backbone": "file", "tokens.file": str(data / "tokenizer" / "token_map.json"), "model.num_layers": 2,
        "model.wave_size": 78, "model.wave_stack": 2, "data.asr.weight": 1.0, "data.asr.train": [str(data / "asr")],
        "data.audio_roots": [str(data / "corpus" / "audio")], "data.window": 24, "train.sequence_length": 128,
        "train.global_batch_size": ROWS, "train.epsilon": 1e-5, "engine.zero_stage": 1, **changes,
    }  # fmt: skip
    plan = make_plan(replace(load_recipe("most-c-tiny"), settings), ranks.world_size, ranks.device)
    file = data / f"weights-{len(plan.config.model.wave_layers)}.pt"
    with open_groups(plan, ranks) as session:
        groups = session.groups
        reader = open_reader(plan, needs_features=groups.is_first_stage)
        model = build_model(plan, groups, ranks.device.torch_device)
        if ranks.world_size == 1:
            first = whole_weights(model, plan, groups)
            for name, weight in first.items():  # spread the choices of experts, and no zeros
                weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
        else:
            first = torch.load(file, weights_only=True)["first"]
        load_parts(model, first, plan, groups)
        engine = make_engine(model, plan, groups)
        place, reports, hears = Position(), [], False
        for _ in range(STEPS):
            rows, place = reader.take(place, ROWS)
            batches = reader.batches(rows, groups.data.rank(), groups.data.size(), 1)
            assert all(batch.is_wave_BS is not None and batch.is_wave_BS.any() for batch in batches)
            hears |= any(batch.wave_BSF is not None for batch in batches)
            reports.append(engine.step(batches, LEARNING_RATE, look=True))
        differences = []
        if ranks.world_size == 1:
            torch.save({"first": first, "last": whole_weights(model, plan, groups)}, file)
        last = torch.load(file, weights_only=True)["last"]
        if plan.config.engine.kind == "plain":
            for name, weight in named_weights(model, plan, groups):
                whole = last[tied_name(name, last)]
                wanted = part_of(name, whole, weight, groups)
                differences.append((name, float((weight.detach() - wanted).abs().max() / whole.abs().max())))
        moved = last["wave.proj.weight"] - first["wave.proj.weight"]
        layers = [name for name in last if name.startswith("wave.encoder.") and name.endswith("weight")]
        return {
            "moved": float(moved.abs().max() / last["wave.proj.weight"].abs().max()),
            "layers_moved": [float((last[name] - first[name]).abs().max() / last[name].abs().max()) for name in layers],
            "losses": [report.loss for report in reports],
            "norms": [report.gradient_norm for report in reports],
            "by_part": [report.norms for report in reports],
            "weights": differences,
            "hears": hears,
            "is_first": groups.is_first_stage,
        }

"""Prompts with continuous frames: with a cache, on any tensor or expert ranks, they are answered as without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import Document, Wave, pack_rows
from megatron_most.engine import PlainEngine, make_plan, open_groups
from megatron_most.errors import DataError
from megatron_most.generate import CoreModel, EngineModel, HfModel, Prompt, Settings, generate
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.vocab import AUDIO, TEXT, TokenMap, tiny_token_map
from tests.harness import run_ranks
from tests.weights import load_parts, whole_weights

WIDTH, NEW = 39, 6
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"layout.tensor": 2}),
    "EP2": (2, {"layout.expert": 2}),
    "PP2": (2, {"layout.pipeline": 2}),
}


def prompts(tokens: TokenMap) -> list[Prompt]:
    """Of three lengths; the second hears nothing."""
    found, draw = [], np.random.default_rng(0)
    for frames, size in ((5, 11), (0, 7), (3, 14)):
        ids, tags = draw.integers(5, 20, size), np.full(size, TEXT)
        ids[2 : 2 + frames], tags[2 : 2 + frames] = tokens.begin_wave_id, AUDIO
        wave = Wave(np.arange(2, 2 + frames), draw.normal(size=(frames, WIDTH)).astype(np.float32))
        found.append(Prompt(ids.tolist(), tags.tolist(), wave if frames else None))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    file = tmp_path_factory.mktemp("alone") / "weights.pt"
    return run_ranks(answer, 1, {}, file)[0], file


def test_a_cached_step_gives_the_logits_of_a_whole_pass_and_others_where_other_sound_is_heard(alone: Any) -> None:
    assert alone[0]["off"] < 1e-5 < 1e-2 < alone[0]["moved"]  # fp32, sums in another order


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_heard_is_answered_the_same_in_every_layout(layout: str, alone: Any) -> None:
    world, changes = LAYOUTS[layout]
    assert all(found["ids"] == alone[0]["ids"] for found in run_ranks(answer, world, changes, alone[1]))


def answer(ranks: Ranks, changes: dict[str, Any], file: Path) -> dict[str, Any]:
    config = replace(load_recipe("most-c-tiny"), {"model.init_std": 0.2, "train.sequence_length": 32, **changes})
    plan = make_plan(config, ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        if not file.exists():
            torch.save(whole_weights(model, plan, session.groups), file)
        load_parts(model, torch.load(file, weights_only=True), plan, session.groups)
        engine, asked = PlainEngine(model, plan, session.groups), prompts(plan.tokens)
        if plan.layout.pipeline > 1:
            answers = generate(EngineModel(engine, plan), asked, Settings(max_new_tokens=NEW))
            return {"ids": [one.ids for one in answers], "off": None}
        cached = CoreModel(model)
        answers = generate(cached, asked, Settings(max_new_tokens=NEW))
        off, moved = None, None
        if ranks.world_size == 1:
            ours, other = (_first_logits(cached, of) for of in (asked, _louder(asked)))
            eos = plan.tokens.eos_id
            rows = [[Document([*p.ids, eos], [*p.tags, TEXT], [False] * (len(p.ids) + 1), p.wave)] for p in asked]
            with torch.no_grad():
                whole = model.eval()(pack_rows(rows, 32, plan.tokens), with_labels=False)
            wanted = torch.stack([whole[row, len(p.ids) - 1] for row, p in enumerate(asked)])
            off = float((ours - wanted).abs().max() / wanted.abs().max())
            moved = float((ours - other).abs()[[0, 2]].amax(-1).min())
            assert torch.equal(ours[1], other[1])
        return {"ids": [one.ids for one in answers], "off": off, "moved": moved}


def _louder(asked: list[Prompt]) -> list[Prompt]:
    return [Prompt(p.ids, p.tags, p.wave and Wave(p.wave.places_N, p.wave.features_NF * 2)) for p in asked]


def _first_logits(model: CoreModel, asked: list[Prompt]) -> torch.Tensor:
    from megatron_most.generate.answers import _lines

    state = model.open(len(asked), 32)
    try:
        return model.step(state, *_lines([p.ids for p in asked], [p.tags for p in asked]), [p.wave for p in asked])
    finally:
        state.close()


def test_frames_that_the_model_does_not_take_are_refused() -> None:
    told = run_ranks(refused, 1)[0]
    assert "frames of 7 numbers, but the model takes 39 (model.wave_size)" in told[0]
    assert "frames under another tag than wave" in told[1]


def refused(ranks: Ranks) -> list[str]:
    told = []
    for width, tag in ((7, "audio"), (WIDTH, "wave")):
        plan = make_plan(replace(load_recipe("most-c-tiny"), {"model.wave_tag": tag}), 1, ranks.device)
        with open_groups(plan, ranks) as session:
            [prompt, *_] = prompts(plan.tokens)
            prompt = Prompt(prompt.ids, prompt.tags, Wave(np.arange(2, 7), np.zeros((5, width), np.float32)))
            with pytest.raises(DataError) as caught:
                generate(CoreModel(build_model(plan, session.groups)), [prompt], Settings(max_new_tokens=1))
            told.append(str(caught.value))
    return told


def test_a_transformers_model_without_a_projector_takes_no_frames() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tiny_token_map(256, 40)
    config = LlamaConfig(
        vocab_size=tokens.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = HfModel(LlamaForCausalLM(config), tokens)
    assert model.frames_tag is None
    with pytest.raises(DataError, match="frames of 39 numbers, but the model takes none"):
        generate(model, prompts(tokens), Settings(max_new_tokens=1))

"""A checkpoint opened to generate, in any layout, says what the exported folder says through transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_most.checkpoint import read_record
from megatron_most.config import LayoutConfig, load_recipe, replace
from megatron_most.data.batch import Document
from megatron_most.generate import HfModel, Prompt, Settings, generate, open_model, opening, sequence_logprobs
from megatron_most.runtime import Launch, Ranks
from megatron_most.vocab import TokenMap, tiny_token_map
from tests.convert.folders import back, into_ours, make
from tests.harness import RanksFailed, launch_ranks, run_ranks

TOKENS = tiny_token_map()
BOS, BEGIN, END = TOKENS.bos_id, TOKENS.begin_audio_id, TOKENS.end_audio_id
PROMPTS = [[BOS, 1, 2, 3], [BOS, 5, BEGIN, 41, 42, 43, END, 6], [BOS, 9, BEGIN], [BOS]]
ASKED = [
    Settings(max_new_tokens=8),
    Settings(max_new_tokens=10, temperature=1.2, top_k=30, top_p=0.95, repetition_penalty=1.2, seed=5),
    Settings(max_new_tokens=6, mode="audio-only", temperature=1.0),
]
DOCUMENTS = [Document(ids, [TOKENS.tag_of(id) for id in ids], [True] * len(ids)) for ids in PROMPTS[:2]]
Found = dict[str, Any]


def say(model: Any) -> Found:
    prompts = [Prompt.of(ids, TOKENS) for ids in PROMPTS]
    answers = [[(a.ids, a.tags, a.stopped) for a in generate(model, prompts, asked)] for asked in ASKED]
    return {"answers": answers, "logprobs": sequence_logprobs(model, DOCUMENTS)}


def ours_says(ranks: Ranks, folder: Path, layout: LayoutConfig) -> Found:
    with open_model(folder, layout=layout, ranks=ranks) as model:
        assert not model.model.training and not any(weight.requires_grad for weight in model.model.parameters())
        return say(model)


def theirs_says(ranks: Ranks, folder: Path) -> Found:
    from transformers import AutoModelForCausalLM

    from megatron_most.convert.most_hf import register

    register()
    inner = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = HfModel(inner, TokenMap.load(folder / "token_map.json"))
    assert not inner.training
    found = say(model)
    inner.train()
    generate(model, [Prompt.of([BOS], TOKENS)], ASKED[0])
    assert inner.training, "left as it was"
    return found


@pytest.fixture(scope="module", params=["most", "llama"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("folders")
    ours = into_ours(make(request.param, root / "hf"), root / "ours")
    return ours, back(ours, root / "back")


def test_a_checkpoint_and_its_export_say_the_same(folders: tuple[Path, Path]) -> None:
    ours, exported = folders
    [theirs] = run_ranks(theirs_says, 1, exported)
    assert {0, 1} <= {tag for _, tags, _ in theirs["answers"][1] for tag in tags}
    is_dense = "text_expert_indices" not in json.loads((exported / "config.json").read_text())
    for layout in (LayoutConfig(), LayoutConfig(tensor=2, expert=1 if is_dense else 2)):
        for found in run_ranks(ours_says, max(layout.tensor, layout.expert), ours, layout):
            assert found["answers"] == theirs["answers"], layout
            for mine, other in zip(found["logprobs"], theirs["logprobs"], strict=True):
                np.testing.assert_allclose(mine, other, atol=1e-4)  # as the logits gate has it


def test_where_experts_sat_in_training_does_not_matter(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loads that they were dealt by may be gone, or lie on another machine."""
    ours, _ = folders
    stored = load_recipe(ours / "resolved.toml")
    if not stored.moe.num_experts:
        return
    dealt = replace(stored, {"moe.load_file": "/gone/expert_load.json"})
    monkeypatch.setattr(opening, "load_recipe", lambda path: dealt)
    ranks: Any = SimpleNamespace(world_size=2, device=SimpleNamespace(kind="cpu"))
    plan = opening._plan((ours, read_record(ours)), ranks, LayoutConfig(expert=2), None)
    assert plan.moe is not None and plan.layout.expert == 2 and not plan.moe.dealt


def by_itself(launch: Launch, folder: Path) -> int:
    model = open_model(folder, launch=launch, device="cpu")
    [answer] = generate(model, [Prompt.of([BOS], TOKENS)], Settings(max_new_tokens=3))
    model.close()
    import torch.distributed as dist

    return 0 if len(answer.ids) <= 3 and not dist.is_initialized() else 1


def test_a_model_brings_its_own_process_group_and_takes_it_away(folders: tuple[Path, Path]) -> None:
    assert launch_ranks(by_itself, 1, folders[0]) == [0]


def refusal(folder: Path, world: int = 1, **layout: int) -> str:
    with pytest.raises(RanksFailed) as failed:
        run_ranks(ours_says, world, folder, LayoutConfig(**layout))
    return f"{failed.value.outcomes[0].error}: {failed.value.outcomes[0].message}"


def test_what_does_not_fit_is_one_clear_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ours, _ = folders
    assert "no checkpoint there" in refusal(tmp_path) and "--model" in refusal(tmp_path / "nowhere")
    assert "LayoutError: 1 processes cannot be cut" in refusal(ours, tensor=2)
    assert "no pipeline stages" in refusal(ours, 2, pipeline=2)


def test_a_damaged_checkpoint_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    victim = next(iter(sorted(broken.rglob("*.safetensors"))))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(bytes(data))
    assert "damaged (its sha256 is not that of the manifest)" in refusal(broken)

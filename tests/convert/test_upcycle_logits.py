"""Before training an upcycled model is the dense one, in our model and as it is exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import LocalTensors, TensorReader, find_pieces, read_record
from megatron_most.config import load_recipe, replace
from megatron_most.convert import Upcycling
from megatron_most.data import Kind, PackedBatch, synthetic_batch
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.vocab import tiny_token_map
from tests.convert.folders import back, into_ours, make, read_all, save
from tests.harness import run_ranks
from tests.hf_models import llama

BOTH = ("text=4", "audio=4")
ALL = ("text=4", "audio+wave=4")  # markers too
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "as the recipes have it": ("llama", dict(group_sizes=BOTH)),
    "half in the shared expert": ("llama untied", dict(group_sizes=BOTH, shared="split", top_k=3)),
    "none shared": ("llama", dict(group_sizes=ALL, shared="none")),
    "none shared, all of a group": ("llama untied", dict(group_sizes=ALL, shared="none", top_k=4)),
    "half shared, with markers": ("llama", dict(group_sizes=ALL, shared="split", top_k=4)),
    "uneven groups, a dense layer": ("llama", dict(group_sizes=("text=2", "audio+wave=5"), dense_layers=(1,))),
    "one expert in each group": ("llama", dict(group_sizes=("text=1", "audio+wave=1"), top_k=1)),
    "no modalities": ("llama untied", dict(num_experts=6, top_k=3, shared="split")),
    "wide scores": ("llama", dict(group_sizes=ALL, router_std=3.0, seed=5)),
}


def batch(marked: bool) -> PackedBatch:
    """Rows of every kind, or without wave markers."""
    last: Kind = "wave" if marked else "text"
    return synthetic_batch(tiny_token_map(), ["mixed", "text", "audio", last], 32, seed=3, first=0)


def theirs(folder: Path, rows: PackedBatch) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    from megatron_most.convert.most_hf import register

    register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(rows.tokens_BS).logits


def ours(ranks: Ranks, cases: list[tuple[Path, dict[str, Any], PackedBatch]]) -> list[torch.Tensor]:
    found = []
    for folder, changes, rows in cases:
        config = replace(load_recipe(folder / "resolved.toml"), {"engine.precision": "fp32", **changes})
        plan = make_plan(config, 1, ranks.device)
        with open_groups(plan, ranks) as session, torch.no_grad():
            model = build_model(plan, session.groups).eval()
            pieces = find_pieces(model, plan.moe)
            LocalTensors(TensorReader(folder, read_record(folder)), pieces).fill(model)
            found.append(model(rows, with_labels=False))
    return found


def logits(*cases: tuple[Path, dict[str, Any], PackedBatch]) -> list[torch.Tensor]:
    """Of each model, all in one forked process."""
    return run_ranks(ours, 1, list(cases))[0]


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setattr("os.fdatasync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both dense models, and what EXACT makes of them."""
    folder = tmp_path_factory.mktemp("upcycled")
    for family in ("llama", "llama untied"):
        make(family, folder / family)
    for name, (family, options) in EXACT.items():
        into_ours(folder / family, folder / name, upcycle=Upcycling(**options))
    return folder


def marked(name: str) -> bool:
    """Whether markers have a feed-forward in that model: without a group they only have what is shared."""
    options = EXACT[name][1]
    return options.get("group_sizes") != BOTH


def test_an_upcycled_model_gives_the_dense_models_logits(made: Path) -> None:
    found = logits(*((made / name, {}, batch(marked(name))) for name in EXACT))
    far = {
        name: apart(logit, theirs(made / family, batch(marked(name))))
        for (name, (family, _)), logit in zip(EXACT.items(), found, strict=True)
    }
    print(far)
    assert max(far.values()) < 1e-5, far  # fp32, sums in another order


def test_without_normalised_weights_or_with_varied_experts_it_is_another_model(made: Path, tmp_path: Path) -> None:
    """What the test above would see: the same comparison where something is not as it should be."""
    plain, dense = made / "none shared", theirs(made / "llama", batch(True))
    varied = [dict(noise=0.01), dict(jitter=0.02), dict(drop=0.1)]
    cases = [(plain, {"moe.normalise_top_k": False}, batch(True))]
    for number, changes in enumerate(varied):
        options = Upcycling(group_sizes=ALL, **changes)
        assert not options.is_exact
        cases.append((into_ours(made / "llama", tmp_path / str(number), upcycle=options), {}, batch(True)))
    far = [apart(found, dense) for found in logits(*cases)]
    print(far)
    assert min(far) > 1e-3, far


def test_markers_without_a_group_have_the_shared_expert_alone(made: Path) -> None:
    """As docs/upcycling.md says: from 0 it gives them nothing, and rows without markers are the dense model's."""
    [found] = logits((made / "as the recipes have it", {}, batch(True)))
    assert apart(found, theirs(made / "llama", batch(True))) > 1e-3


def test_it_is_exported_and_gives_the_dense_models_logits_in_transformers(made: Path, tmp_path: Path) -> None:
    for name, (family, options) in EXACT.items():
        if name in ("half in the shared expert", "none shared", "no modalities"):
            again = back(made / name, tmp_path / name)
            rows = batch(marked(name))
            torch.testing.assert_close(theirs(again, rows), theirs(made / family, rows), atol=1e-4, rtol=1e-4)
            tensors = read_all(again)
            shape = (options.get("num_experts", 8), 64)
            assert tuple(tensors["model.layers.3.mlp.gate.weight"].shape) == shape, name


def test_a_vocabulary_that_grows_leaves_the_logits_of_old_tokens_as_they_were(tmp_path: Path) -> None:
    tokens = tiny_token_map()
    hf = save(llama(vocab_size=40), tmp_path / "hf")
    folder = into_ours(hf, tmp_path / "ours", upcycle=Upcycling(group_sizes=BOTH))
    rows = synthetic_batch(tokens, ["text"] * 3, 32, seed=1, first=0)
    [found] = logits((folder, {}, rows))
    assert found.shape[-1] == tokens.vocab_size == 72 > 40 > int(rows.tokens_BS.max())
    assert apart(found[..., :40], theirs(hf, rows)) < 1e-5  # fp32, sums in another order

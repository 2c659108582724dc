"""With modality routing off, our model is transformers' DeepseekV2ForCausalLM, its dense twin is LlamaForCausalLM, and
with normed heads and no shared experts it is Qwen3MoeForCausalLM.

Random weights with a wide spread (0.2), so that a wrong detail shows; YaRN is on. Logits within 1e-4 absolute and
relative, as fp32 leaves them; the same experts wherever the choice is not a tie.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import PackedBatch, synthetic_batch
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.moe import ModalityRouter, routers
from megatron_most.runtime import Ranks
from tests.harness import run_ranks
from tests.hf_bridge import whole_from_hf
from tests.hf_models import deepseek, llama, qwen3_moe
from tests.weights import load_parts

OFF = {"moe.groups": ["text+audio+wave: 0-7"], "moe.shared_only_tags": []}
LIMITED = {"moe.routing_groups": 4, "moe.routing_groups_kept": 2}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, theirs
    "greedy": ({}, {}),
    "group-limited": (LIMITED, {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    "scaled": ({"moe.scale": 2.5}, {"routed_scaling_factor": 2.5}),
    "norm_topk_prob is ignored": ({}, {"norm_topk_prob": True}),
    "other norm_eps": ({"model.norm_eps": 1e-4}, {"rms_norm_eps": 1e-4}),
    "compressed queries": ({"model.q_lora_rank": 24}, {"q_lora_rank": 24}),
    "plain rope": ({"model.rope": "plain"}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "reference gate": ({"moe.gate": "reference", "moe.aux_loss": "none"}, {}),
}


QWEN3 = {
    "model.qk_norm": True, "model.tied_embeddings": False, "model.rope": "plain", "model.rope_theta": 1e6,
    "moe.dense_layers": [1], "moe.expert_hidden_size": 32, "moe.shared_hidden_size": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_experts_are_those_of_transformers_deepseek(name: str) -> None:
    changes, theirs = VARIANTS[name]
    compare(deepseek(**theirs), "most-tiny", {**OFF, **changes}, 1)


def test_logits_are_those_of_transformers_deepseek_on_two_tensor_ranks() -> None:
    compare(deepseek(), "most-tiny", {**OFF, "layout.tensor": 2}, 2)


def test_logits_are_those_of_transformers_llama() -> None:
    compare(llama(), "most-tiny-dense", {}, 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_logits_and_experts_are_those_of_transformers_qwen3_moe(ranks: int) -> None:
    compare(qwen3_moe(), "most-tiny-upcycled", {**OFF, **QWEN3, "layout.tensor": ranks}, ranks)


def test_the_comparison_notices_a_wrong_detail() -> None:
    with pytest.raises(AssertionError, match="logits"):
        compare(deepseek(), "most-tiny", {**OFF, "model.rope_mscale_all_dim": 0.0}, 1)


def compare(hf: torch.nn.Module, recipe: str, changes: dict[str, Any], world_size: int) -> None:
    logits_BSV, experts = [], []
    for ranks in run_ranks(run_ours, world_size, recipe, changes, whole_from_hf(hf)):
        logits_BSV.append(ranks["logits"])
        experts.append(ranks["experts"])
    ours = torch.cat(logits_BSV, -1)  # tensor ranks hold parts of the vocabulary
    chosen, handles = [], []
    for layer in hf.model.layers:
        if hasattr(layer.mlp, "gate"):
            note = lambda _module, _inputs, out: chosen.append((out[0].softmax(-1, dtype=torch.float32), out[2]))  # noqa: E731
            handles.append(layer.mlp.gate.register_forward_hook(note))
    with torch.no_grad():
        theirs = hf(ids(72).tokens_BS).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda text: f"logits: {text}")
    assert world_size > 1 or len(experts[0]) == len(chosen)
    for (scores_TE, theirs_TK), ours_TE in zip(chosen, experts[0] if world_size == 1 else [], strict=world_size == 1):
        best = scores_TE.view(-1, 8).sort(-1, descending=True).values
        is_clear = (best[:, 1] - best[:, 2]) > 1e-6
        theirs_TE = torch.zeros_like(ours_TE).scatter(1, theirs_TK.view(-1, 2), True)
        assert is_clear.float().mean() > 0.9
        assert torch.equal(ours_TE[is_clear], theirs_TE[is_clear])


def ids(vocab_size: int) -> PackedBatch:
    from megatron_most.vocab import tiny_token_map

    tokens = tiny_token_map()
    assert tokens.vocab_size == vocab_size
    return synthetic_batch(tokens, ["mixed", "text", "audio", "wave"], 32, seed=3, first=0)


def run_ours(ranks: Ranks, recipe: str, changes: dict[str, Any], whole: dict[str, torch.Tensor]) -> dict[str, Any]:
    plan = make_plan(replace(load_recipe(recipe), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        load_parts(model, whole, plan, session.groups)
        maps: list[torch.Tensor] = []
        for router in routers(model):
            router.register_forward_hook(lambda module, _inputs, out: maps.append(in_published_order(module, out[1])))
        logits = model(ids(plan.tokens.vocab_size), with_labels=False)
        return {"logits": logits, "experts": maps}


def in_published_order(router: ModalityRouter, map_TE: torch.Tensor) -> torch.Tensor:
    """Columns by slot, rows sequence-first -> columns by expert id, rows batch-first."""
    by_id = map_TE[:, list(router.plan.slot_of)]
    return by_id.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)

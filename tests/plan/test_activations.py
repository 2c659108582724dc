"""What the plan says autograd keeps is what its hooks see being kept, module by module."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from megatron_most.config import Plan, load_recipe, logits, replace
from megatron_most.data import PackedBatch, pack_rows
from megatron_most.data.synthetic import synthetic_document
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.plan.activations import Sizes, of_stage, saved_bytes
from megatron_most.runtime import Ranks
from tests.harness import BACKENDS, run_ranks

ROWS, LENGTH = 2, 64
BF16 = {"engine.precision": "bf16"}
HALF = {"recompute.granularity": "selective"}
FULL = {"recompute.granularity": "full"}
LARGE = {"tokens.num_units": 3000}  # a vocabulary of which not all logits are there at once
PARTS = {  # of a module's name in Core -> of the plan; the first that fits
    "layernorm": "norms", "self_attention": "attention", "shared_experts": "moe", "router": "moe", ".experts": "moe",
    "output_layer": "head", "embedding": "embedding",
}  # fmt: skip
OF_PLAN = {
    "latents": "attention", "rotary": "attention", "core_attn": "attention", "proj": "attention", "router": "moe",
    "dispatch": "moe", "experts": "moe", "shared_experts": "moe",
}  # fmt: skip
CASES: dict[int, dict[str, tuple[str, dict[str, Any]]]] = {
    1: {
        "mla": ("most-tiny", {}),
        "mla bf16": ("most-tiny", BF16),
        "compressed queries": ("most-tiny", {**BF16, "model.q_lora_rank": 24}),
        "gqa": ("most-tiny-upcycled", {}),
        "gqa bf16, dense": ("most-tiny-dense", BF16),
        "no shared experts, bf16": ("no-shared-tiny", BF16),
        "the release's gate and loss": ("most-tiny", {"moe.gate": "reference", "moe.aux_loss": "reference"}),
        "the release's gate": ("most-tiny", {"moe.gate": "reference"}),
        "the release's loss": ("most-tiny", {"moe.aux_loss": "reference"}),
        "attention again": ("most-tiny", {**BF16, **HALF, "recompute.modules": ["core_attn"]}),
        "up again": ("most-tiny", {**BF16, **HALF, "recompute.modules": ["mla_up_proj", "mlp"]}),
        "experts again": ("most-tiny", {**BF16, **HALF, "recompute.modules": ["moe"]}),
        "shared again": ("most-tiny-upcycled", {**HALF, "recompute.modules": ["shared_experts", "core_attn"]}),
        "all again": ("most-tiny", {**BF16, **FULL}),
        "logits in pieces": ("most-tiny", LARGE),
        "logits in pieces, tied, bf16": ("most-tiny-upcycled", {**BF16, **LARGE, "model.tied_embeddings": True}),
        "all again by twos": ("most-tiny-upcycled", {**FULL, "recompute.num_layers": 2}),
    },
    2: {
        "TP": ("most-tiny", {**BF16, "layout.tensor": 2}),
        "CP": ("most-tiny", {**BF16, "layout.context": 2}),
        "EP": ("most-tiny", {**BF16, "layout.expert": 2}),
        "TP, logits in pieces": ("most-tiny", {**BF16, **LARGE, "layout.tensor": 2}),
        "CP, logits in pieces": ("most-tiny", {**LARGE, "layout.context": 2}),
        "TP, gqa": ("most-tiny-upcycled", {"layout.tensor": 2}),
        "CP, gqa": ("most-tiny-upcycled", {"layout.context": 2}),
    },
    4: {"TP EP": ("most-tiny", {**BF16, "layout.tensor": 2, "layout.expert": 2})},
}


def packed(plan: Plan) -> PackedBatch:
    """Rows of two documents each, as training has them."""
    half = [synthetic_document(plan.tokens, kind, LENGTH // 2 + 1, 1, i) for i, kind in enumerate(("text", "audio"))]
    return pack_rows([half] * ROWS, LENGTH, plan.tokens)


def kept(ranks: Ranks, name: str, changes: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """(bytes by part that the hooks see, those of the plan) of a forward pass."""
    logits.LOGITS_BYTES = 1  # a vocabulary of more than logits.LEAST_COLUMNS is cut, which is LARGE alone
    common = {"train.sequence_length": LENGTH, "train.micro_batch_size": ROWS}
    plan = make_plan(replace(load_recipe(name), {**common, **changes}), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups, ranks.device.torch_device).train()
        own = {w.untyped_storage()._cdata for w in (*model.parameters(), *model.buffers())}
        inside: list[str] = [""]
        alive: list[tuple[str, torch.UntypedStorage]] = []

        def leave(*_: Any) -> None:
            inside.pop()

        for place, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, place=place: inside.append(place))
            module.register_forward_hook(leave)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                own.add(storage._cdata)
                alive.append((part(inside[-1]), storage))
            return tensor

        def part(place: str) -> str:
            words = place.split(".")
            if place == "decoder":
                return "borders"
            if place in ("", "output_layer"):
                return "head"
            for sign, name in PARTS.items():
                if sign in place and not (sign == "layernorm" and "self_attention" in place):
                    return name
            has_experts = plan.moe is not None and int(words[2]) not in plan.config.moe.dense_layers
            return "moe" if has_experts else "mlp"

        batch = packed(plan).to(ranks.device.torch_device)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch)
        found = Counter[str]()
        for where, storage in alive:
            found[where] += storage.nbytes()  # now: what is computed again is freed by the layer's end
    said: Counter[str] = Counter()
    for module, size in of_stage(plan, 0, saved_bytes(plan, Sizes.of(plan))).items():
        said[OF_PLAN.get(module, module)] += size  # type: ignore[assignment]
    return dict(found), dict(said)


def kept_by_case(ranks: Ranks, cases: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    return {case: kept(ranks, *named) for case, named in cases.items()}


@pytest.mark.parametrize("world", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_kept_for_the_backward_pass_is_what_the_plan_says(world: int, backend: str) -> None:
    ranks = run_ranks(kept_by_case, world, CASES[world], backend=backend)
    for case in CASES[world]:
        for found, said in (rank[case] for rank in ranks):
            assert sum(said.values()) == pytest.approx(sum(found.values()), rel=0.02), (case, found, said)
            for part in said:
                assert said[part] == pytest.approx(found.get(part, 0), rel=0.1, abs=3000), (case, part, found, said)

"""What is left out where nothing asks for it gives the same numbers, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings import apply_rotary_pos_emb
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from megatron_most.moe import NUM_PLANES
from megatron_most.runtime import Ranks
from megatron_most.upstream import KVCache, Lookback, MendedMLA
from megatron_most.upstream.linears import Column, Row
from megatron_most.upstream.mla import PAIRWISE
from tests.generate.models import opened
from tests.harness import run_ranks


def turned(ranks: Ranks, kind: str, precision: str) -> list[bool]:
    """Heads turned by us and by Core: 5 tokens at positions far apart, and 3 more that fill up."""
    with opened(ranks, kind, {"engine.precision": precision}) as model:
        found = []
        for layer in (module for module in model.modules() if isinstance(module, MendedMLA)):
            cache = KVCache(2, 300)
            cache.lengths = [0, 211]
            lookback = Lookback(cache, [0, 1], [2, 3], torch.device("cpu"))
            config: Any = layer.config
            heads_NHP = torch.randn(8, 3, config.qk_pos_emb_head_dim).to(config.params_dtype)
            ours = layer._turn(heads_NHP, lookback)
            table = layer.rotary_pos_emb(cache.capacity)
            angles, scale = table if isinstance(table, tuple) else (table, 1.0)
            position_N = torch.tensor([0, 1, 211, 212, 213, 0, 0, 0])
            core = apply_rotary_pos_emb(
                heads_NHP.unsqueeze(1), angles[position_N], config=config, mscale=scale,
                cp_group=layer.pg_collection.cp, **PAIRWISE,
            )  # fmt: skip
            fill = torch.cat([heads_NHP[5:, :, 0::2], heads_NHP[5:, :, 1::2]], -1) * scale  # turned by nothing
            found += [torch.equal(ours[:5], core[:5, 0]), torch.equal(ours[5:], fill), ours.dtype == core.dtype]
            assert not torch.allclose(core[2, 0].float(), core[2, 0].float().roll(1, 0))  # heads differ
            straight = torch.cat([heads_NHP[2, :, 0::2], heads_NHP[2, :, 1::2]], -1) * scale
            assert not torch.allclose(core[2, 0], straight)  # and position 211 turns them
        return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["mla", "mla compressed queries"])
def test_heads_are_turned_as_core_turns_them(kind: str, precision: str) -> None:
    [found] = run_ranks(turned, 1, kind, precision)
    assert found and all(found)


PATH = ("dispatch_preprocess", "token_dispatch", "dispatch_postprocess", "combine_preprocess", "token_combine")


def both_ways(ranks: Ranks) -> list[bool]:
    with opened(ranks, "mla", {"model.num_layers": 2}) as model:
        layer = next(module for module in model.modules() if isinstance(module, MoELayer))
        dispatcher = layer.token_dispatcher
        rows = torch.randn(16, 1, model.plan.config.model.hidden_size)
        planes = torch.zeros(1, 16, NUM_PLANES, dtype=torch.bool)
        planes[:, ::3, 1] = True  # both modalities
        results = []
        for names in ((), PATH):
            for name in names:  # Core's own, with its copies
                setattr(dispatcher, name, getattr(MoEAlltoAllTokenDispatcher, name).__get__(dispatcher))
            given = rows.clone().requires_grad_()
            out, _ = layer(given, padding_mask=planes)
            weights = [weight for weight in layer.parameters() if weight.requires_grad]
            results.append([out, *torch.autograd.grad(out.square().sum(), [given, *weights])])
        return [torch.equal(one, other) for one, other in zip(*results, strict=True)]


def test_rows_that_go_to_no_other_rank_are_sorted_once_and_sent_nowhere() -> None:
    [found] = run_ranks(both_ways, 1)
    assert len(found) > 10 and all(found)


def linears_of(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Column | Row)]


def products(ranks: Ranks, kind: str, precision: str) -> tuple[set[str], list[bool]]:
    """Which of Core's fields hold ours; whether outputs and gradients, with a frozen weight too, are Core's."""
    with opened(ranks, kind, {"model.num_layers": 2, "engine.precision": precision}) as model:
        names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Column | Row)}
        found = []
        for linear in linears_of(model):
            rows, slope = torch.randn(5, 2, linear.input_size), torch.randn(5, 2, linear.output_size)
            for is_frozen in (False, True):
                linear.weight.requires_grad_(not is_frozen)
                asked = [] if is_frozen else [weight for weight in linear.parameters() if weight.requires_grad]
                results = []
                for linear._is_alone in (True, False):
                    given = rows.to(linear.weight.dtype).requires_grad_()
                    out, bias = linear(given)
                    with torch.no_grad():
                        assert torch.equal(linear(given)[0], out)
                    assert bias is (linear.bias if linear.skip_bias_add else None)
                    results.append([out, *torch.autograd.grad((out * slope).sum(), [given, *asked], allow_unused=True)])
                found += [torch.equal(one, other) for one, other in zip(*results, strict=True) if one is not None]
        return names, found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_products_without_other_ranks_are_cores(kind: str, precision: str) -> None:
    [(names, found)] = run_ranks(products, 1, kind, precision)
    own = {"linear_q_proj", "linear_kv_up_proj"} if kind == "mla" else {"linear_qkv"}
    assert names == own | {"linear_proj", "linear_fc1", "linear_fc2"}
    assert len(found) > 50 and all(found)


def alone(ranks: Ranks) -> set[bool]:
    with opened(ranks, "mla", {"model.num_layers": 2, "layout.tensor": 2, "layout.expert": 1}) as model:
        return {linear._is_alone for linear in linears_of(model)}


def test_products_that_are_shared_with_other_ranks_are_left_to_core() -> None:
    assert run_ranks(alone, 2) == [{False}] * 2

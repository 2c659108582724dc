"""Kernels of a GPU give what the plain path gives. On a CPU: torch's products of groups, and in place of its flash
kernel loops that do what its documentation says.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.fusions import fused_mla_yarn_rope_apply
from torch.nn.attention import varlen

from megatron_most.config import load_recipe, replace
from megatron_most.data import pack_rows, synthetic_document
from megatron_most.engine import make_engine, make_plan, open_groups
from megatron_most.model import build, build_model
from megatron_most.moe import routers
from megatron_most.runtime import GPU_BACKEND, Ranks, num_devices
from megatron_most.upstream import Experts, SdpaAttention, attention
from megatron_most.upstream.attention import document_starts
from megatron_most.upstream.products import as_one
from tests.harness import run_ranks

DOCUMENTS = ((("mixed", 12), ("audio", 6), ("wave", 9)), (("text", 20), ("mixed", 9)))


def varlen_by_loops(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int,
    max_k: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """[tokens, heads, width]; window (-1, 0) is causal."""
    assert window_size == (-1, 0) and query.size(-1) == value.size(-1) and cu_q.dtype == torch.int32
    ends = cu_q.tolist()
    assert ends[0] == 0 and ends[-1] == len(query) and torch.equal(cu_q, cu_k)
    assert max_q == max_k == max(b - a for a, b in zip(ends, ends[1:], strict=False))
    parts = []
    for a, b in zip(ends, ends[1:], strict=False):
        q, k, v = (x[a:b].transpose(0, 1)[None] for x in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa)[0])
    return torch.cat(parts, 1).transpose(0, 1)


def results(ranks: Ranks, recipe: str, more: dict[str, Any], kernels: str) -> list[torch.Tensor]:
    """Losses of two packed rows, and every gradient."""
    changes = {"model.init_std": 0.2, "model.num_layers": 2, "engine.kernels": kernels}
    plan = make_plan(replace(load_recipe(recipe), {**changes, **more}), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups, ranks.device.torch_device)
        rows = [[synthetic_document(plan.tokens, kind, size, 0, size) for kind, size in row] for row in DOCUMENTS]
        batch = pack_rows(rows, 32, plan.tokens).to(ranks.device.torch_device)
        is_auto = kernels == "auto"
        experts = [module for module in model.modules() if isinstance(module, Experts)]
        attentions = [module for module in model.modules() if isinstance(module, SdpaAttention)]
        in_halves = is_auto and ranks.device.kind == "cpu"  # a GPU multiplies so, and attends so, below float32 only
        assert all(one.is_grouped == in_halves for one in experts)
        assert attentions and all(one.lays_end_to_end == in_halves for one in attentions)
        assert all(one.is_fused == is_auto for one in (model, *experts, *routers(model)))
        assert model.config.apply_rope_fusion == (is_auto and more == TURNED)
        for expert in experts:
            for weights in expert._weights():
                assert (as_one(weights).data_ptr() == weights[0].data_ptr()) == in_halves  # nothing is copied
        losses = model(batch)
        (losses * batch.loss_weights_BS).sum().backward()
        return [losses.detach().cpu(), *(weight.grad.cpu() for weight in model.parameters() if weight.grad is not None)]


def on_a_cpu(ranks: Ranks, *of: Any) -> list[torch.Tensor]:
    build.has_grouped = build.has_varlen = build.has_triton = lambda *_: True
    for name in ("fwd_q", "bwd_q", "fwd_kv", "bwd_kv"):  # no choice between sizes, for that takes a GPU's clock
        kernel = getattr(fused_mla_yarn_rope_apply, f"rotary_{name}_kernel")
        kernel.configs = kernel.configs[2:3]
    varlen.varlen_attn = varlen_by_loops
    return results(ranks, *of)


def apart(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> float:
    """The worst of them: how far they are apart, by the size of the plain one."""
    assert len(ours) == len(plain) > 20
    pairs = [(one.float(), other.float()) for one, other in zip(ours, plain, strict=True)]
    return max(float((one - other).norm() / other.norm().clamp(min=1e-9)) for one, other in pairs)


TURNED = {"model.v_head_dim": 16}
"""Widths that are powers of two, as Core's kernels for YaRN want them."""


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="with a gpu kernels are compiled, and compared there")
@pytest.mark.parametrize(
    ("recipe", "more", "world"),
    [
        ("most-tiny", {}, 1), ("most-tiny", TURNED, 1), ("most-tiny-upcycled", {}, 1),
        ("most-tiny", {"layout.expert": 2}, 2),
        ("most-tiny", {"layout.tensor": 2, "recompute.granularity": "selective", "recompute.modules": ["moe"]}, 2),
    ],
)  # fmt: skip
def test_losses_and_gradients_are_those_of_the_plain_path(recipe: str, more: dict[str, Any], world: int) -> None:
    exact = run_ranks(results, world, recipe, more, "plain")
    ours = run_ranks(on_a_cpu, world, recipe, more, "auto")
    for mine, plain in zip(ours, exact, strict=True):
        assert apart(mine, plain) < 2e-5


@pytest.mark.parametrize("world", [1, 2])
def test_shared_experts_while_tokens_travel_are_the_same(world: int) -> None:
    ranks = {"layout.expert": world}
    plain = run_ranks(results, world, "most-tiny", ranks, "plain")
    ours = run_ranks(results, world, "most-tiny", {**ranks, "core.moe_shared_expert_overlap": True}, "plain")
    for mine, theirs in zip(ours, plain, strict=True):
        assert apart(mine, theirs) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize(("recipe", "more"), [("most-tiny", TURNED), ("most-tiny-upcycled", {})])
def test_on_a_gpu_too(recipe: str, more: dict[str, Any]) -> None:
    found = [run_ranks(results, 1, recipe, more, kernels, backend=GPU_BACKEND)[0] for kernels in ("auto", "plain")]
    assert apart(*found) < 1e-4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("widths", "kv_heads"), [((24, 12), 4), ((192, 128), 4), ((64, 64), 2)])
def test_attention_end_to_end_is_that_by_a_mask_in_bf16(
    widths: tuple[int, int], kv_heads: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not num_devices():
        pytest.skip("needs a GPU")
    if device == "cpu":
        monkeypatch.setattr(varlen, "varlen_attn", varlen_by_loops)
    draw = torch.Generator().manual_seed(0)
    shapes = ((24, 2, 4, widths[0]), (24, 2, kv_heads, widths[0]), (24, 2, kv_heads, widths[1]))
    exact = [torch.randn(shape, generator=draw).to(device, torch.bfloat16) for shape in shapes]
    documents_BS = torch.tensor([[0] * 5 + [1] * 18 + [2], [0] * 24]).to(device)
    slope = torch.randn(24, 2, 4 * widths[1], generator=draw).to(device)
    is_past = torch.ones(24, 24, dtype=torch.bool, device=device).tril()
    seen = (documents_BS[:, None, :, None] == documents_BS[:, None, None]) & is_past
    found = []
    for way in ("end to end", "mask", "mask in float32"):
        given = [x.float() if way == "mask in float32" else x.clone() for x in exact]
        given = [x.requires_grad_() for x in given]
        if way == "end to end":
            out = attention.end_to_end(given[0], given[1], given[2], documents_BS, 0.2)
        else:
            query, key, value = (x.permute(1, 2, 0, 3) for x in given)
            out = attention.attended(query, key, value, seen, 0.2).permute(2, 0, 1, 3).flatten(2)
        found.append([out.float(), *(x.float() for x in torch.autograd.grad((out.float() * slope).sum(), given))])
    for ours, plain, right in zip(*found, strict=True):
        assert float((ours - right).norm()) < 1.5 * float((plain - right).norm()) + 1e-2 * float(right.norm())


def stays_one_piece(ranks: Ranks, kind: str) -> list[bool]:
    """Whether weights lie in one piece after an engine took them and moved them, and whether they moved."""
    build.has_grouped = lambda *_: True
    engine = {
        "engine.kind": kind,
        "engine.precision": "bf16",
        "model.num_layers": 2,
        "train.micro_batch_size": 1,
        "train.global_batch_size": 1,
    }
    plan = make_plan(replace(load_recipe("most-tiny"), engine), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        experts = next(module for module in model.modules() if isinstance(module, Experts))
        before = [as_one(weights).clone() for weights in experts._weights()]
        made = make_engine(model, plan, session.groups)
        row = [synthetic_document(plan.tokens, "mixed", 20, 0, 1)]
        for _ in range(2):
            made.step([pack_rows([row], plan.config.train.sequence_length, plan.tokens)], 1e-2)
        after = [(as_one(weights), weights) for weights in experts._weights()]
        found = []
        for old, (whole, weights) in zip(before, after, strict=True):
            found += [whole.data_ptr() == weights[0].data_ptr(), not torch.equal(old, whole)]
            found += [torch.equal(part, weight) for part, weight in zip(whole, weights, strict=True)]
        return found


@pytest.mark.parametrize("kind", ["plain", "deepspeed"])
def test_weights_stay_in_one_piece_under_an_engine(kind: str) -> None:
    [found] = run_ranks(stays_one_piece, 1, kind)
    assert len(found) > 8 and all(found)


def test_what_lies_anyhow_is_copied_in_order() -> None:
    apart = [torch.full((2, 3), float(number)) for number in range(4)]
    assert torch.equal(as_one(apart), torch.stack(apart))
    whole = torch.arange(48.0).view(4, 4, 3)
    for order, is_view in (
        ((0, 1, 2, 3), True),
        ((0, 2), True),
        ((1, 2, 3), True),
        ((3, 2), False),
        ((0, 1, 3), False),
    ):
        weights = [whole[number] for number in order]
        assert torch.equal(as_one(weights), whole[list(order)])
        assert (as_one(weights).data_ptr() == weights[0].data_ptr()) == is_view
    turned = [part.t() for part in whole]
    assert torch.equal(as_one(turned), torch.stack(turned))


def test_documents_begin_where_their_number_changes_and_at_each_row() -> None:
    numbers = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 2, 2, -1]])
    starts, longest = document_starts(numbers)
    assert starts.tolist() == [0, 2, 5, 10, 11, 12, 14, 15] and longest == 5 and starts.dtype == torch.int32
    assert document_starts(numbers)[0] is starts  # once for all layers

"""What the tests here share: plans without a recipe, the oracle's words for a plan, one MoE layer of a tiny model.

A `Case` is one micro-batch and all weights of a layer, by published id, in float32. `open_layer` gives a stock
MoELayer with our router; `run_layer` is a body for `run_ranks` that puts a Case through it; `oracle_layer` is the
same in float64.
"""

# B sequences, S length, T = S*B tokens in the order [S, B], D width, F expert hidden width, G = 2F, E routed experts

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

from megatron_most.config import MoEPlan, load_recipe, replace
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.moe import ModalityRouter, to_planes
from megatron_most.parallel import Groups
from megatron_most.runtime import Ranks
from tests.oracles import mamoe

TEXT, AUDIO, WAVE = 0, 1, 2
HALVES = (("text", (0, 1, 2, 3)), ("audio", (4, 5, 6, 7)))
INTERLEAVED = (("text", (0, 2, 4, 5, 6)), ("audio", (1, 3, 7)))  # uneven too
VANILLA = (("text+audio+wave", tuple(range(8))),)
TWO_LAYERS = {"model.num_layers": 2, "moe.aux_loss": "none", "train.micro_batch_size": 1}  # the first one is dense
WIDTH, HIDDEN, NUM_EXPERTS = 64, 32, 8  # of most-tiny


def moe_plan(groups: Any = HALVES, **changes: Any) -> MoEPlan:
    """A plan as build() would make it for one process."""
    group_of_tag = [
        next((i for i, (name, _) in enumerate(groups) if tag in name), None) for tag in ("text", "audio", "wave")
    ]
    num_experts = sum(len(experts) for _, experts in groups)
    settings: dict[str, Any] = dict(
        num_experts=num_experts, top_k=2, groups=tuple(experts for _, experts in groups),
        group_names=tuple(name for name, _ in groups), group_of_tag=tuple(group_of_tag),
        shared_only=tuple(tag for tag, group in enumerate(group_of_tag) if group is None),
        slot_of=tuple(range(num_experts)), gate="masked_softmax", normalise_top_k=False, scale=1.0,
        routing_groups=1, routing_groups_kept=1, aux_loss="none", aux_coefficient=0.0, aux_scope="sequence",
        aux_counts_everything=False, z_coefficient=0.0, bias_rate=0.0, dispatcher="alltoall",
    )  # fmt: skip
    return MoEPlan(**{**settings, **changes})


def lines(groups: Any) -> list[str]:
    """Groups as a recipe writes them."""
    return [f"{name}: {','.join(map(str, experts))}" for name, experts in groups]


def oracle_groups(plan: MoEPlan) -> dict[int, list[int]]:
    return {tag: list(plan.groups[group]) for tag, group in enumerate(plan.group_of_tag) if group is not None}


def oracle_gate(plan: MoEPlan, constants: list[float] | None = None) -> dict[str, Any]:
    """Keyword arguments of mamoe.gate for a plan."""
    options: dict[str, Any] = {
        "mode": plan.gate,
        "top_k": plan.top_k,
        "normalise": plan.normalise_top_k,
        "scale": plan.scale,
        "shared_only": plan.shared_only,
    }
    if plan.routing_groups > 1:
        options |= {"num_routing_groups": plan.routing_groups, "kept_routing_groups": plan.routing_groups_kept}
    if constants is not None:
        options["group_constant"] = {
            tag: constants[group] for tag, group in enumerate(plan.group_of_tag) if group is not None
        }
    return options


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual - expected| / max |expected|; NaN never passes a comparison with it."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


# ---------------------------------------------------------------------------------------------------------- one layer


@dataclass(frozen=True)
class Case:
    """A micro-batch, all weights, and the gradient that comes back to the layer."""

    x_SBD: torch.Tensor
    tags_BS: torch.Tensor
    is_pad_BS: torch.Tensor
    router_ED: torch.Tensor
    experts: list[tuple[torch.Tensor, torch.Tensor]]
    shared: tuple[torch.Tensor, torch.Tensor]
    back_SBD: torch.Tensor
    """d loss / d output; zeros leave the auxiliary gradients alone."""

    @property
    def tags_T(self) -> torch.Tensor:
        return self.tags_BS.T.flatten()

    @property
    def is_pad_T(self) -> torch.Tensor:
        return self.is_pad_BS.T.flatten()

    @property
    def sequence_T(self) -> torch.Tensor:
        return torch.arange(self.tags_BS.size(0)).expand(self.tags_BS.size(1), -1).flatten()


def draw_case(seed: int, tags: list[str] | None = None, *, has_main_loss: bool = True) -> Case:
    """Rows of t(ext), a(udio), w(ave marker) and _ (a pad, tagged text). Logits spread by about 1.6."""
    tags = tags or ["ttatawattt", "aaaataaw__", "wtttttt___"]
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: 0.2 * torch.randn(*shape, generator=draw)  # noqa: E731
    tags_BS = torch.tensor([["taw".find(c) if c != "_" else TEXT for c in row] for row in tags])
    shape_SBD = (tags_BS.size(1), tags_BS.size(0), WIDTH)
    return Case(
        x_SBD=normal(*shape_SBD) * 5,
        tags_BS=tags_BS,
        is_pad_BS=torch.tensor([[c == "_" for c in row] for row in tags]),
        router_ED=normal(NUM_EXPERTS, WIDTH),
        experts=[(normal(2 * HIDDEN, WIDTH), normal(WIDTH, HIDDEN)) for _ in range(NUM_EXPERTS)],
        shared=(normal(2 * HIDDEN, WIDTH), normal(WIDTH, HIDDEN)),
        back_SBD=normal(*shape_SBD) if has_main_loss else torch.zeros(shape_SBD),
    )


@contextmanager
def open_layer(
    ranks: Ranks, changes: dict[str, Any], of_moe: dict[str, Any] | None = None
) -> Iterator[tuple[MoEPlan, Groups, Any]]:
    """The MoE layer of a model of two, with most-tiny's plan changed before and after build()."""
    config = replace(load_recipe("most-tiny"), {**TWO_LAYERS, **changes})
    plan = make_plan(config, ranks.world_size, ranks.device)
    plan = dataclasses.replace(plan, moe=dataclasses.replace(plan.moe, **(of_moe or {})))
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    with open_groups(plan, ranks) as session:
        yield plan.moe, session.groups, build_model(plan, session.groups).decoder.layers[1].mlp


def part_of_case(case: Case, groups: Groups) -> tuple[torch.Tensor, torch.Tensor]:
    """x [s, b, D] and planes [b, s, P] of this rank: every n-th row, and of those every m-th token."""
    rows = slice(groups.data.rank(), None, groups.data.size())
    rank = groups.context.rank() * groups.tensor.size() + groups.tensor.rank()
    tokens = slice(rank, None, groups.context.size() * groups.tensor.size())
    return case.x_SBD[tokens, rows], planes_of(case)[rows, tokens]


def planes_of(case: Case) -> torch.Tensor:
    """[B, S, P], as the model hands them to its layers."""
    return to_planes(case.tags_BS, case.is_pad_BS)


def run_router(
    router: ModalityRouter, x_SBD: torch.Tensor, planes_BSP: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [T, E] and choices [T, E] with columns by published id."""
    weights_TE, map_TE = router(x_SBD, planes_BSP.transpose(0, 1))
    return weights_TE[:, list(router.plan.slot_of)], map_TE[:, list(router.plan.slot_of)]


def run_layer(
    ranks: Ranks,
    case: Case,
    changes: dict[str, Any],
    of_moe: dict[str, Any] | None = None,
    constants: list[float] | None = None,
) -> dict[str, Any]:
    """One forward and backward pass; gradients by published id, None where autograd left none."""
    with open_layer(ranks, changes, of_moe) as (plan, _, layer):
        if constants is not None:
            layer.router.group_constant.copy_(torch.tensor(constants))
        weights = {"router": layer.router.weight}
        first = {"router": case.router_ED}
        for e, slot in enumerate(plan.slot_of):
            expert = layer.experts.local_experts[slot]
            weights |= {f"gate_up {e}": expert.linear_fc1.weight, f"down {e}": expert.linear_fc2.weight}
            first |= {f"gate_up {e}": case.experts[e][0], f"down {e}": case.experts[e][1]}
        weights |= {
            "shared gate_up": layer.shared_experts.linear_fc1.weight,
            "shared down": layer.shared_experts.linear_fc2.weight,
        }
        first |= {"shared gate_up": case.shared[0], "shared down": case.shared[1]}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(first[name])
            routed = run_router(layer.router, case.x_SBD, planes_of(case))
        x_SBD = case.x_SBD.clone().requires_grad_()
        output_SBD, _ = layer(x_SBD, padding_mask=planes_of(case))
        (output_SBD * case.back_SBD).sum().backward()
        return {
            "output": output_SBD.detach().flatten(0, 1),
            "weights": routed[0],
            "choices": routed[1],
            "gradients": {"x": x_SBD.grad.flatten(0, 1), **{name: weight.grad for name, weight in weights.items()}},
        }


def oracle_layer(case: Case, plan: MoEPlan, constants: list[float] | None = None) -> dict[str, Any]:
    """What run_layer returns, from the oracle; a plan with auxiliary losses adds nothing here."""
    leaf = lambda tensor: tensor.double().clone().requires_grad_()  # noqa: E731
    x_TD, router_ED = leaf(case.x_SBD.flatten(0, 1)), leaf(case.router_ED)
    options = oracle_gate(plan, constants)
    experts, shared = [(leaf(a), leaf(b)) for a, b in case.experts], (leaf(case.shared[0]), leaf(case.shared[1]))
    output_TD = mamoe.layer(x_TD, router_ED, experts, shared, case.tags_T, oracle_groups(plan), **options)
    (output_TD * case.back_SBD.flatten(0, 1)).sum().backward()
    logits_TE = mamoe.router_logits(x_TD, router_ED)
    weights_TE, chosen_TE, _ = mamoe.gate(logits_TE, case.tags_T, oracle_groups(plan), **options)
    gradients = {
        "x": x_TD.grad,
        "router": router_ED.grad,
        "shared gate_up": shared[0].grad,
        "shared down": shared[1].grad,
    }
    for e, (gate_up_GD, down_DF) in enumerate(experts):
        gradients |= {f"gate_up {e}": gate_up_GD.grad, f"down {e}": down_DF.grad}
    return {"output": output_TD.detach(), "weights": weights_TE.detach(), "choices": chosen_TE, "gradients": gradients}

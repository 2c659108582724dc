"""How a model uses its experts on given prompts, and the group constants that follow from it.

Masking first multiplies every routed output by 1 / in-group mass: a token's softmax over its group alone is q / mass,
with q its softmax over all experts. Times the base model's mean mass it is q again, but for the spread of the mass over
tokens: so an import begins near its base. The mass of a group is linear in that of its experts, so one measurement
serves any partition.
"""

# T tokens, E routed experts, K kinds of tokens (text, audio)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from megatron_most.config import Plan
from megatron_most.convert.layerwise import final_norm, head_blocks, run_layers
from megatron_most.convert.lent import Read
from megatron_most.convert.prompts import Prompts
from megatron_most.errors import CheckpointError
from megatron_most.runtime import Meter
from megatron_most.vocab import AUDIO, WAVE

KINDS: tuple[Literal["text", "audio"], ...] = ("text", "audio")
_DIGITS = 6  # of a constant: threads add in another order, and an import that goes on must measure the same


@dataclass(frozen=True)
class Usage:
    """One MoE layer's experts, by published id. Rows of a kind without tokens are 0."""

    layer: int
    tokens_K: tuple[int, ...]
    """How many tokens of each kind were counted."""
    mass_KE: torch.Tensor
    """Mean softmax probability over all experts; a row sums to 1."""
    load_KE: torch.Tensor
    """Share of the top-k choices; a row sums to 1."""

    def mass(self, experts: Sequence[int], kind: int) -> float:
        """The mean share of the softmax that falls to these experts."""
        return float(self.mass_KE[kind, list(experts)].sum())


def measure_usage(plan: Plan, read: Read, prompts: Prompts) -> list[Usage]:
    """Run a model over prompts, layer by layer. `plan` is of the model as it is to be measured: a base model's own has
    one group for all. read(name, first=0, rows=None) gives rows of our whole tensors, from wherever they are.
    """
    if plan.moe is None:
        raise CheckpointError("a dense model has no experts whose usage could be measured")
    with Meter(plan.config.model.num_layers + 1, "measure experts", describe_layers) as meter:
        found = []
        for output in run_layers(plan, read, prompts):
            if output.probs_BSE is not None and output.chosen_BSE is not None:
                found.append(_usage(output.layer, output.probs_BSE, output.chosen_BSE, prompts))
            meter.advance(1)
    return found


def constants_of(plan: Plan, usages: Sequence[Usage]) -> dict[int, list[float]]:
    """For each MoE layer the constant of each group of `plan`: the mean mass of its experts over tokens of its tags.

    A kind of which no token was seen (a base model knows no audio) is measured on the other. All 1 where a constant
    would be wrong: normalised weights sum to 1 before and after masking, and one group has all of the mass.
    """
    moe = plan.moe
    if moe is None or moe.gate != "masked_softmax":
        return {}
    if (moe.normalise_top_k and moe.top_k > 1) or len(moe.groups) == 1:
        return {usage.layer: [1.0] * len(moe.groups) for usage in usages}
    found = {}
    for usage in usages:
        seen = [kind for kind, count in enumerate(usage.tokens_K) if count]
        values = []
        for group, experts in enumerate(moe.groups):
            kinds = {int(tag == AUDIO) for tag, of in enumerate(moe.group_of_tag) if of == group and tag != WAVE}
            masses = [usage.mass(experts, kind) for kind in sorted(kinds & {*seen}) or seen]
            values.append(round(sum(masses) / len(masses), _DIGITS))
        found[usage.layer] = values
    return found


@torch.no_grad()
def measure_loss(plan: Plan, read: Read, prompts: Prompts) -> dict[str, float]:
    """Mean cross-entropy in nats of the next token, by kind of the token that is to be predicted; those that occur."""
    *_, last = run_layers(plan, read, prompts)
    hidden_BSD = final_norm(plan, read, last.hidden_BSD)[:, :-1]
    labels_BS = prompts.ids_BS[:, 1:]
    sum_BS, of_label_BS = torch.full(labels_BS.shape, -torch.inf), torch.zeros(labels_BS.shape)
    for first, weight in head_blocks(plan, read):
        logits = F.linear(hidden_BSD, weight)
        sum_BS = torch.logaddexp(sum_BS, logits.logsumexp(-1))
        at = labels_BS - first
        is_here = (at >= 0) & (at < len(weight))
        of_label_BS += logits.gather(-1, at.clamp(0, len(weight) - 1).unsqueeze(-1)).squeeze(-1) * is_here
    loss_BS = sum_BS - of_label_BS
    counted = {kind: prompts.is_of_kind(kind)[:, 1:] for kind in KINDS}
    return {kind: float(loss_BS[is_counted].mean()) for kind, is_counted in counted.items() if is_counted.any()}


def describe_layers(done: float, total: float, seconds: float) -> str:
    """For a Meter over a model's layers and its head."""
    return f"{done:.0f} of {total:.0f} layers, {seconds:.0f} s"


def _usage(layer: int, probs_BSE: torch.Tensor, chosen_BSE: torch.Tensor, prompts: Prompts) -> Usage:
    tokens, mass, load = [], [], []
    for kind in KINDS:
        is_counted_BS = prompts.is_of_kind(kind)
        probs_TE, chosen_TE = probs_BSE[is_counted_BS].double(), chosen_BSE[is_counted_BS].double()
        tokens.append(len(probs_TE))
        mass.append(probs_TE.sum(0) / max(1, len(probs_TE)))
        load.append(chosen_TE.sum(0) / chosen_TE.sum().clamp(min=1))
    return Usage(layer, tuple(tokens), torch.stack(mass), torch.stack(load))

"""Running sums of what one router did: they add up over micro-batches and ranks, which means do not.

They live in the router, cost a few small sums a micro-batch, and never make a GPU wait for the CPU. `telemetry.py`
turns them into numbers to read; the bias on the choice reads its load here. Mass and entropy cost as much as all the
rest, so whoever looks seldom can leave them out in between.
"""

# T tokens, E routed experts, G expert groups, M tags

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_most.config import MoEPlan
from megatron_most.moe.groups import GroupTables
from megatron_most.vocab import TAG_NAMES


class RouterSums(torch.nn.Module):
    """Running sums of one router; float64 whatever the model's precision, and in no checkpoint."""

    sums: torch.Tensor

    def __init__(self, plan: MoEPlan) -> None:
        super().__init__()
        groups = len(plan.groups)
        self.sizes = (plan.num_experts, plan.num_experts, len(TAG_NAMES), groups, groups, groups, 2)
        self.is_close = True
        """Measure mass and entropy too."""
        self.register_buffer("sums", torch.zeros(sum(self.sizes), dtype=torch.float64), persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Stay in float64 through model.bfloat16(): counts would stop growing at 256."""
        value = self.sums
        super()._apply(fn, recurse)
        self.sums = value.to(self.sums.device)
        return self

    def forget(self, *, keep_step: bool) -> None:
        """Start again from 0; keep_step leaves the load since the last bias step alone."""
        for index, part in enumerate(self.parts()):
            if index != 1 or not keep_step:
                part.zero_()

    def parts(self) -> Sequence[torch.Tensor]:
        """Views: load_E since the last look, load_E since the last bias step, tokens_M, tokens of a group whose mass
        and entropy were measured, mass_G, entropy_G, (balance loss, sequences).
        """
        return self.sums.split(self.sizes)

    @torch.no_grad()
    def add(
        self, logits_TE: torch.Tensor, owned_TE: torch.Tensor, count_TE: torch.Tensor, tags_T: torch.Tensor,
        is_pad_T: torch.Tensor, counted_T: torch.Tensor, tables: GroupTables,
    ) -> None:  # fmt: skip
        """Add one micro-batch (this rank's tokens of it)."""
        load_E, step_load_E, tokens_M, close_G, mass_G, entropy_G, _ = self.parts()
        count_E = count_TE.sum(0)
        load_E += count_E
        step_load_E += count_E
        # Weights of 0 and 1 rather than boolean indexing, which would make a GPU wait for the CPU in every layer.
        tokens_M.index_add_(0, tags_T, (~is_pad_T).to(self.sums.dtype))
        if not self.is_close:
            return
        group_T = tables.group_of_tag_M[tags_T].clamp(min=0)  # shared-only tokens go to group 0 with weight 0
        weight_T = counted_T.to(self.sums.dtype)
        log_q_TE = logits_TE.log_softmax(-1)
        owns_any_T1 = owned_TE.any(-1, keepdim=True)
        log_mass_T1 = log_q_TE.masked_fill(owns_any_T1 & ~owned_TE, float("-inf")).logsumexp(-1, keepdim=True)
        log_p_TE = (log_q_TE - log_mass_T1).masked_fill(~owned_TE, float("-inf"))
        entropy_T = torch.special.entr(log_p_TE.exp()).sum(-1)
        close_G.index_add_(0, group_T, weight_T)
        mass_G.index_add_(0, group_T, log_mass_T1.squeeze(-1).exp() * weight_T)
        entropy_G.index_add_(0, group_T, entropy_T * weight_T)

    def add_balance(self, value: torch.Tensor, sequences: torch.Tensor) -> None:
        """Add a balance loss (this rank's part of it) and the number of sequences it is over (likewise)."""
        balance = self.parts()[-1]
        balance[0] += value
        balance[1] += sequences

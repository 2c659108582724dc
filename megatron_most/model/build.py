"""Plan + groups -> this rank's stage of the model, on its device, with reproducible first weights."""

from __future__ import annotations

import torch

from megatron_most.config import Plan
from megatron_most.model.gpt import MostModel
from megatron_most.parallel import Groups


def build_model(plan: Plan, groups: Groups, device: torch.device | str = "cpu") -> MostModel:
    """Call after start_groups. First weights depend on the seed and the layout; loaded ones on neither."""
    return MostModel(plan, groups).to(device)

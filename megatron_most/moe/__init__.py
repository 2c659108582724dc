"""Modality-aware mixture of experts: groups and placement, gates, router, balance, telemetry; one file each."""

from megatron_most.moe.planes import NUM_PLANES, from_planes, to_planes
from megatron_most.moe.router import ModalityRouter, move_biases, routers, set_auxiliary_scale
from megatron_most.moe.telemetry import GroupTelemetry, LayerTelemetry, collect, measure_closely

__all__ = [
    "NUM_PLANES",
    "GroupTelemetry",
    "LayerTelemetry",
    "ModalityRouter",
    "collect",
    "from_planes",
    "measure_closely",
    "move_biases",
    "routers",
    "set_auxiliary_scale",
    "to_planes",
]

"""The model: Core's GPT put together from specs, the wave projector, losses by task and modality, its parts by name."""

from megatron_most.model.build import build_model
from megatron_most.model.core_config import core_config
from megatron_most.model.gpt import MostModel
from megatron_most.model.head_loss import loss_in_pieces
from megatron_most.model.losses import SHAPE, LossTerms, loss_terms
from megatron_most.model.parts import part_names, part_of_weights
from megatron_most.model.wave import WaveProjector

__all__ = [
    "SHAPE",
    "LossTerms",
    "MostModel",
    "WaveProjector",
    "build_model",
    "core_config",
    "loss_in_pieces",
    "loss_terms",
    "part_names",
    "part_of_weights",
]

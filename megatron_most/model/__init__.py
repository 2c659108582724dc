"""The model: Core's GPT put together from specs, the wave projector, losses by modality."""

from megatron_most.model.build import build_model
from megatron_most.model.core_config import core_config
from megatron_most.model.gpt import MostModel
from megatron_most.model.losses import LossTerms, loss_terms
from megatron_most.model.wave import WaveProjector

__all__ = ["LossTerms", "MostModel", "WaveProjector", "build_model", "core_config", "loss_terms"]

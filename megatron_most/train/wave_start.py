"""First weights of the speech encoder's layers that learn: those of the HuBERT that made the data's frames."""

from __future__ import annotations

import torch

from megatron_most.config import ModelConfig, RunConfig
from megatron_most.errors import ConfigError, MostError
from megatron_most.model import MostModel
from megatron_most.runtime import agree, get_logger
from megatron_most.speech import FrameIdentity, HubertLayers, read_layers

_log = get_logger(__name__)


def begin_wave_layers(model: MostModel, config: RunConfig, frames: FrameIdentity | None) -> None:
    """Before an engine is built, on a first step alone. All ranks call it; those of the first stage read the encoder,
    and what is wrong there ends all.
    """
    if not config.model.wave_layers or frames is None or frames.kind != "hubert":
        return  # frames of no encoder: its layers begin at random
    wrong = None
    try:
        if model.wave is not None and model.wave.encoder is not None:
            found = read_layers(frames, config.model.wave_layers, model=config.data.frames_model)
            _require_shape(found, config.model)
            _fill(model.wave.encoder, found)
    except MostError as error:
        wrong = error
    agree(wrong)
    _log.info("layers %s of %s learn with the model", ", ".join(map(str, config.model.wave_layers)), frames.model)


def _require_shape(found: HubertLayers, model: ModelConfig) -> None:
    for name, theirs in (("wave_heads", found.heads), ("wave_inner_size", found.inner_size)):
        if (ours := getattr(model, name)) != theirs:
            raise ConfigError(f"model.{name}", ours, f"the encoder of the data has {theirs}", f"set it to {theirs}")


@torch.no_grad()
def _fill(encoder: torch.nn.Module, found: HubertLayers) -> None:
    for name, weight in encoder.named_parameters():
        weight.copy_(found.tensors[name])

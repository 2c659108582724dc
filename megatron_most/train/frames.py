"""Continuous features of the data against those the model takes: refused by field before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_most.config import RunConfig
from megatron_most.data import load_info
from megatron_most.errors import ConfigError


def require_frames_fit(config: RunConfig, folders: Mapping[str, Sequence[str]]) -> None:
    """Every dataset of the run, by task. ConfigError where one has features that the model would take for others."""
    model = config.model
    found = False
    for task, paths in folders.items():
        for path in paths:
            info = load_info(path)
            if info.frames is None:
                continue
            found = True
            where = f"{path} ({task}) has frames of {info.frames}"
            if not model.wave_size:
                remedy = f"set model.wave_size = {info.frames.width} and model.wave_stack = {info.frames.stack}"
                raise ConfigError("model.wave_size", 0, where, remedy)
            tag = info.options.get("frames_tag")
            for field, ours, theirs in (
                ("wave_size", model.wave_size, info.frames.width),
                ("wave_stack", model.wave_stack, info.frames.stack),
                ("wave_tag", model.wave_tag, tag),
            ):
                if ours != theirs:
                    remedy = f"set it to {theirs!r}, or build the dataset as the model wants it"
                    raise ConfigError(f"model.{field}", ours, f"{where}: {theirs!r}", remedy)
            if model.wave_layers and info.frames.layer != model.wave_layers[0] - 1:
                wrong = f"{where}, of layer {info.frames.layer} (0: of no encoder)"
                first = f"build it with --frames.layer {model.wave_layers[0] - 1}"
                remedy = f"name the layers from {info.frames.layer + 1} on, or {first}"
                raise ConfigError("model.wave_layers", model.wave_layers, wrong, remedy)
            if model.wave_source is not None and not info.frames.hash.startswith(model.wave_source):
                wrong = f"{where}, whose hash is {info.frames.hash}"
                raise ConfigError("model.wave_source", model.wave_source, wrong, "build the dataset with that source")
    if model.wave_size and not found:
        wrong = "no dataset of the run has continuous frames, so its projector would not learn"
        remedy = "set 0, or name datasets built with --speech frames"
        raise ConfigError("model.wave_size", model.wave_size, wrong, remedy)

"""Import unit HiFi-GANs as published with textlesslib, TWIST and Expresso: a `.pt` file and its `config.json`.

The file is torch's, with the tensors under `generator`; it is read with weights_only, so nothing in it runs. What
differs from transformers' layout: other names; weight norm, in torch's old spelling or its new one, is multiplied out;
and the generator's first convolution takes unit, speaker, style where transformers has style, unit, speaker.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_most.errors import DataError
from megatron_most.runtime import read_file, require_file
from megatron_most.speech.codec import CodecIdentity
from megatron_most.speech.hifigan import HifiGanShape, HifiGanVocoder, checked_style, make_model

if TYPE_CHECKING:
    import torch

_STARTS = (  # public name -> transformers'
    ("dict.", "unit_embedding."),
    ("spkr.", "speaker_embedding."),
    ("style.", "language_embedding."),
    ("dur_predictor.conv1.0.", "dur_predictor.conv1."),
    ("dur_predictor.conv2.0.", "dur_predictor.conv2."),
    ("dur_predictor.", "dur_predictor."),
    ("ups.", "hifi_gan.upsampler."),
    ("conv_pre.", "hifi_gan.conv_pre."),
    ("conv_post.", "hifi_gan.conv_post."),
    ("resblocks.", "hifi_gan.resblocks."),
)
_NORMS = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))
_PRE = "hifi_gan.conv_pre.weight"


def import_hifigan(weights: str | Path, config: str | Path, codec: CodecIdentity, *, style: int = 0) -> HifiGanVocoder:
    """The vocoder in a public checkpoint. `codec` is the one whose units it was trained on: its files do not say."""
    import torch

    weights, config = Path(weights), Path(config)
    settings = _read_config(config)
    tensors = _read_torch(weights)
    shape = _shape(settings, tensors, config)
    checked_style(style, shape.num_styles)
    renamed = {_renamed(name, weights): tensor for name, tensor in _plain(tensors, weights).items()}
    renamed[_PRE] = _styles_first(renamed, shape, weights)
    model = make_model(shape)
    own = model.state_dict()
    for name in own.keys() - renamed.keys():
        absent = (
            name.startswith("language_embedding.") and not shape.num_styles,
            name.startswith("speaker_embedding.") and not shape.speaker_width,
            name.startswith("dur_predictor.") and not shape.has_durations,
        )
        if any(absent):  # a table of no width, or a part that is never asked
            renamed[name] = torch.zeros_like(own[name])
    wrong = sorted(
        name
        for name in own.keys() | renamed.keys()
        if name not in own or name not in renamed or own[name].shape != renamed[name].shape
    )
    if wrong:
        found, wanted = (tuple(part[wrong[0]].shape) if wrong[0] in part else "missing" for part in (renamed, own))
        raise DataError(
            f"{weights}: {wrong[0]} is {found}, {config.name} makes it {wanted} ({len(wrong)} differ); give the "
            "config.json that was published with these weights"
        )
    model.load_state_dict(renamed)
    return HifiGanVocoder(codec, shape, model, style=style)


def _read_config(path: Path) -> dict[str, Any]:
    data = read_file(path, remedy="give the config.json that was published with the weights")
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise DataError(f"{path}: not readable ({error}); give the config.json published with the weights") from error
    for name, why in (("f0", "a pitch for each frame"), ("embedder_params", "vectors of speakers")):
        if content.get(name):
            raise DataError(f"{path}: {name} is set: this model also takes {why}, which units alone do not have")
    if content.get("resblock", "1") not in ("1", 1):
        raise DataError(f"{path}: resblock {content['resblock']!r}; only kind 1 is known here")
    return content


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        content: Any = torch.load(
            require_file(path, remedy="give the published weights"), map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
        # In torch's own words there is advice to read it without care.
        raise DataError(f"{path}: not a readable .pt file of tensors only; is it whole, and no link to it?") from error
    content = content.get("generator") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(torch.is_tensor(value) for value in content.values()):
        raise DataError(f"{path}: no tensors under `generator`; give the generator's file, as textlesslib has it")
    tensors = {str(name): value.float() for name, value in content.items()}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{path}: {name} holds NaN or infinite numbers; take the published file anew")
    return tensors


def _shape(settings: dict[str, Any], tensors: dict[str, torch.Tensor], config: Path) -> HifiGanShape:
    try:
        width = int(settings["embedding_dim"])
        multi, styles = bool(settings.get("multispkr")), bool(settings.get("multistyle"))
        durations = settings.get("dur_predictor_params")
        if durations:
            sizes = (
                durations["encoder_embed_dim"],
                durations["var_pred_hidden_dim"],
                durations["var_pred_kernel_size"],
            )
            if sizes != (width, width, 3):
                raise DataError(
                    f"{config}: a duration predictor of (width, hidden, kernel) {sizes}; transformers' model has "
                    f"{(width, width, 3)} only"
                )
        return HifiGanShape(
            num_units=int(settings["num_embeddings"]),
            num_speakers=len(tensors["spkr.weight"]) if multi else 1,
            num_styles=len(tensors["style.weight"]) if styles else 0,
            unit_width=width,
            speaker_width=width if multi else 0,
            style_width=width if styles else 0,
            channels=int(settings["upsample_initial_channel"]),
            upsample_rates=tuple(settings["upsample_rates"]),
            upsample_kernels=tuple(settings["upsample_kernel_sizes"]),
            kernels=tuple(settings["resblock_kernel_sizes"]),
            dilations=tuple(tuple(row) for row in settings["resblock_dilation_sizes"]),
            has_durations=bool(durations),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{config}: not the config.json of a unit HiFi-GAN ({error!r})") from error


def _plain(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Weight norm multiplied out: weight = g v / |v|, the norm over all axes but the first."""

    plain = dict(tensors)
    for size, direction in _NORMS:
        for name in [name for name in plain if name.endswith(size)]:
            stem = name.removesuffix(size)
            if stem + direction not in plain:
                raise DataError(f"{path}: {name} without {stem + direction}; the file is not whole")
            g, v = plain.pop(name), plain.pop(stem + direction)
            plain[stem + ".weight"] = g * v / v.flatten(1).norm(dim=1).view_as(g)
    return plain


def _renamed(name: str, path: Path) -> str:
    for old, new in _STARTS:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise DataError(f"{path}: {name}: no such tensor in a unit HiFi-GAN; give the generator's file")


def _styles_first(renamed: dict[str, torch.Tensor], shape: HifiGanShape, path: Path) -> torch.Tensor:
    import torch

    if _PRE not in renamed:
        raise DataError(f"{path}: conv_pre is missing; give the generator's file")
    widths = [shape.unit_width, shape.speaker_width, shape.style_width]
    if renamed[_PRE].shape[1] != sum(widths):
        raise DataError(
            f"{path}: conv_pre takes {renamed[_PRE].shape[1]} channels, its config.json makes {sum(widths)}"
        )
    unit, speaker, style = renamed[_PRE].split(widths, dim=1)
    return torch.cat([style, unit, speaker], dim=1).contiguous()

"""The folder a codec is kept in, and published models by name.

A codec's folder holds `codec.json` and `centroids.safetensors`, nothing that runs when read. Loading makes the codec
again and compares its identity: a changed number is refused. PRESETS name published models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_most.errors import DataError
from megatron_most.runtime import Device, cannot_read, ensure_new_folder, read_file, write_atomically, writing
from megatron_most.speech.codec import CodecIdentity, Precision, SpeechCodec, StorableCodec
from megatron_most.speech.quantiser import Quantiser

CODEC_FILE, CENTROIDS_FILE = "codec.json", "centroids.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class Preset:
    """A published model and what its published centroids were fitted on."""

    model: str
    layer: int
    num_units: int
    frame_s: float
    centroids_url: str
    normalise: bool = False
    """Whether waves are scaled to mean 0, variance 1. The published centroids were fitted on waves as they are."""


PRESETS: Mapping[str, Preset] = {
    "mhubert-25hz-500": Preset(
        model="slprl/mhubert-base-25hz",
        layer=11,
        num_units=500,
        frame_s=0.04,
        centroids_url="https://dl.fbaipublicfiles.com/textless_nlp/twist/speech_tokenizer/"
        "mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin",
    ),
    "hubert-50hz-500": Preset(
        model="facebook/hubert-base-ls960",
        layer=9,
        num_units=500,
        frame_s=0.02,
        centroids_url="https://dl.fbaipublicfiles.com/hubert/hubert_base_ls960_L9_km500.bin",
    ),
}


def save_codec(codec: StorableCodec, folder: str | Path) -> Path:
    """Keep a codec in a new folder. A model's weights stay where they are; the folder names and hashes them."""
    from safetensors.numpy import save

    folder = ensure_new_folder(folder)
    content = {
        "format": _FORMAT,
        "kind": codec.kind,
        "identity": {name: value for name, value in codec.identity.to_dict().items() if name != "precision"},
        "settings": codec.settings(),
    }
    with writing(folder):
        write_atomically(folder / CENTROIDS_FILE, save(codec.quantiser.arrays()))
        write_atomically(folder / CODEC_FILE, json.dumps(content, indent=2) + "\n")
    return folder


def load_codec(
    name_or_folder: str | Path,
    *,
    centroids: str | Path | None = None,
    model: str | Path | None = None,
    device: Device | None = None,
    precision: Precision = "auto",
) -> SpeechCodec:
    """A codec from its folder, or from a preset's name and a local file of its centroids.

    `model` says where a HuBERT model is now; its weights must be the same. `device` and `precision` matter to HuBERT:
    auto is bf16 on GPUs that compute it, else fp32.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if centroids is not None:
            raise DataError(f"{folder}: a codec's folder has its centroids; leave --centroids out")
        loaded = _load_folder(folder, model, device, precision)
        if precision not in ("auto", loaded.identity.precision):
            raise DataError(
                f"{folder}: this codec computes in {loaded.identity.precision} only; leave --precision {precision} out"
            )
        return loaded
    name = str(name_or_folder)
    preset = PRESETS.get(name)
    if preset is None:
        raise DataError(f"{name}: neither a codec's folder nor a preset; presets are {', '.join(PRESETS)}")
    if centroids is None:
        raise DataError(
            f"{name}: its centroids are published as a pickle, which is never read here ({preset.centroids_url}); "
            "convert it once to .npy where you trust it, and give that file with --centroids"
        )
    from megatron_most.speech.centroids import import_quantiser
    from megatron_most.speech.hubert import HubertFeatures
    from megatron_most.speech.hubert_codec import HubertCodec

    quantiser = import_quantiser(centroids)
    features = HubertFeatures(
        model or preset.model, preset.layer, normalise=preset.normalise, device=device, precision=precision
    )
    codec = HubertCodec(features, quantiser, name=name)
    found, wanted = codec.identity, (preset.num_units, preset.frame_s)
    if (found.num_units, found.frame_s) != wanted:
        raise DataError(
            f"{name}: has {wanted[0]} units of {wanted[1]} s, but {centroids} and {model or preset.model} make "
            f"{found.num_units} units of {found.frame_s} s; give the files of this preset"
        )
    return codec


def _load_folder(folder: Path, model: str | Path | None, device: Device | None, precision: Precision) -> SpeechCodec:
    where = folder / CODEC_FILE
    data = read_file(where, remedy="point to a folder that save_codec wrote")
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT:
            raise DataError(f"{where}: format {content['format']!r}, this version reads {_FORMAT}")
        kind, settings = content["kind"], content["settings"]
        identity = CodecIdentity.from_dict({**content["identity"], "precision": "fp32"})
        codec: StorableCodec
        if kind == "mfcc-kmeans":
            from megatron_most.speech.mfcc import MfccCodec

            centred = settings.get("centred", False)
            codec = MfccCodec(settings["frame_s"], _read_quantiser(folder), centred=centred, name=identity.name)
        elif kind == "hubert":
            from megatron_most.speech.hubert import HubertFeatures
            from megatron_most.speech.hubert_codec import HubertCodec

            inside = folder / settings["model"]
            features = HubertFeatures(
                model or (inside if inside.is_dir() else settings["model"]),
                settings["layer"],
                normalise=settings["normalise"],
                revision=None if model else settings["revision"],
                device=device,
                precision=precision,
            )
            codec = HubertCodec(features, _read_quantiser(folder), name=identity.name)
        else:
            raise DataError(f"{where}: kind {kind!r}; this version knows mfcc-kmeans and hubert")
    except OSError as error:
        raise cannot_read(where, error, "point to a folder that save_codec wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: not a readable codec ({error!r}); point to a folder that save_codec wrote"
        ) from error
    if replace(codec.identity, precision=identity.precision) != identity:
        raise DataError(
            f"{where}: it says {identity}, but its files and model now make {codec.identity}: centroids, model or "
            "settings have changed; take the original files, or save a codec of its own"
        )
    return codec


def _read_quantiser(folder: Path) -> Quantiser:
    from megatron_most.speech.centroids import read_safetensors

    return Quantiser.from_arrays(read_safetensors(folder / CENTROIDS_FILE))

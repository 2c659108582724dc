"""The folder a vocoder is kept in: `vocoder.json` and `weights.safetensors`, nothing that runs when read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import Device, ensure_new_folder, read_file, write_atomically, writing
from megatron_most.speech.codec import CodecIdentity
from megatron_most.speech.vocoder import StorableVocoder, require_codec

VOCODER_FILE, WEIGHTS_FILE = "vocoder.json", "weights.safetensors"
_FORMAT = 1
_LARGEST = 1e6  # of any weight or table: larger ones were seen to speak NaN
_REMEDY = "point to a folder that save_vocoder wrote"


def save_vocoder(vocoder: StorableVocoder, folder: str | Path) -> Path:
    """Keep a vocoder in a new folder."""
    from safetensors.numpy import save

    folder = ensure_new_folder(folder)
    arrays = vocoder.arrays()
    _require_finite(arrays, str(folder))
    weights = save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})
    content = {
        "format": _FORMAT,
        "kind": vocoder.kind,
        "codec": vocoder.codec.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "settings": vocoder.settings(),
    }
    with writing(folder):
        write_atomically(folder / WEIGHTS_FILE, weights)
        write_atomically(folder / VOCODER_FILE, json.dumps(content, indent=2) + "\n")
    return folder


def load_vocoder(
    folder: str | Path, *, codec: CodecIdentity | str | None = None, device: Device | None = None
) -> StorableVocoder:
    """A vocoder from its folder; DataError where a byte has changed, or where it is not for `codec`.

    `device` matters to HiFi-GAN; the CPU where none is given.
    """
    folder = Path(folder)
    where = folder / VOCODER_FILE
    data, weights = read_file(where, remedy=_REMEDY), read_file(folder / WEIGHTS_FILE, remedy=_REMEDY)
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT:
            raise DataError(f"{where}: format {content['format']!r}, this version reads {_FORMAT}")
        kind, settings, wanted = content["kind"], content["settings"], content["weights_sha256"]
        identity = CodecIdentity.from_dict(content["codec"])
        if hashlib.sha256(weights).hexdigest() != wanted:
            raise DataError(
                f"{folder / WEIGHTS_FILE}: damaged or cut off (its sha256 is not that of {VOCODER_FILE}); take the "
                "original folder"
            )
        arrays = _arrays(weights)
        _require_finite(arrays, str(folder / WEIGHTS_FILE))
        _require_sane(identity)
        vocoder = _make(kind, identity, settings, arrays, where, device)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: not a readable vocoder ({error!r:.200}); {_REMEDY}") from error
    if codec is not None:
        require_codec(vocoder, codec)
    return vocoder


def _require_sane(codec: CodecIdentity) -> None:
    if not 1000 <= codec.sample_rate <= 1_000_000 or not 1e-4 <= codec.frame_s <= 10:
        raise ValueError(f"{codec.sample_rate} samples a second, {codec.frame_s} s a frame")


def _make(
    kind: str,
    codec: CodecIdentity,
    settings: dict[str, Any],
    arrays: dict[str, np.ndarray],
    where: Path,
    device: Device | None,
) -> StorableVocoder:
    if kind == "codebook":
        from megatron_most.speech.codebook import CodebookVocoder

        return CodebookVocoder.from_parts(codec, settings, arrays)
    if kind == "hifigan":
        from megatron_most.speech.hifigan import HifiGanVocoder

        return HifiGanVocoder.from_parts(codec, settings, arrays, device)
    raise DataError(f"{where}: kind {kind!r}; this version knows codebook and hifigan")


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS_FILE}: {error}") from error


def _require_finite(arrays: dict[str, np.ndarray], where: str) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(np.count_nonzero(~np.isfinite(array)))
            raise DataError(f"{where}: {name} holds {count} numbers that are NaN or infinite; it would speak noise")
        if array.dtype.kind == "f" and array.size and float(np.abs(array).max()) > _LARGEST:
            raise DataError(f"{where}: {name} holds numbers above {_LARGEST:g}; it would speak noise")

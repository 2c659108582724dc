"""Write a wave as WAV or FLAC, 16 bits, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import write_atomically, writing

FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def write_sound(path: str | Path, wave: np.ndarray, sample_rate: int = 16000) -> Path:
    """A mono wave in -1..1; louder samples are clipped. The extension says the format."""
    path = Path(path)
    data = encode_sound(wave, sample_rate, sound_format(path))
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return path


def sound_format(path: Path) -> str:
    """What a file of this name is written as; DataError where its extension says nothing known."""
    if (kind := FORMATS.get(path.suffix.lower())) is None:
        raise DataError(f"{path}: {path.suffix or 'no extension'}; sound is written as .wav or .flac")
    return kind


def encode_sound(wave: np.ndarray, sample_rate: int = 16000, kind: str = "WAV") -> bytes:
    """The file's bytes: to send it, or to show it on a page."""
    import soundfile

    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not len(wave):
        raise DataError(f"a wave of shape {wave.shape}; a sound file wants one axis of at least one sample")
    if not np.isfinite(wave).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(wave))} samples are NaN or infinite; nothing was written")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), sample_rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()

"""Judge: a speech recogniser that says what it hears, so that waves can be scored by their words.

A judge hears each wave by itself: what it says never depends on the others. Its identity goes into results, for word
error rates of two judges do not compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import read_file, reading, require_file, sha256_file

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class JudgeIdentity:
    """Who judged: kind, model, and a hash of all that decides what it hears (weights, grammar, settings)."""

    name: str
    model: str
    hash: str

    def __str__(self) -> str:
        return f"{self.name} {self.model} ({self.hash[:12]})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Judge(Protocol):
    """Hears mono float32 waves at 16 kHz."""

    @property
    def identity(self) -> JudgeIdentity: ...

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """The words of each wave, in order; "" where it hears none."""
        ...


def checked_wave(wave: np.ndarray, index: int) -> np.ndarray:
    """DataError for what is no sound."""
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise DataError(f"wave {index}: shape {wave.shape}; judges hear mono waves")
    if not np.isfinite(wave).all():
        raise DataError(f"wave {index}: NaN or infinite samples; nothing can be heard in it")
    return wave


def hash_files(paths: Sequence[Path], *facts: object) -> str:
    """SHA-256 of files and of settings beside them."""
    digest = hashlib.sha256(repr(facts).encode())
    for path in paths:
        require_file(path, remedy="is the model's folder whole?")
        with reading(path, "is the model's folder whole?"):
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def read_text(path: str | Path) -> str:
    """A grammar's file."""
    try:
        return read_file(path, remedy="give a JSGF grammar").decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); give a JSGF grammar") from error

"""How speech sounds, beside what it says: speaker similarity and UTMOS. Only with models the user has on disk.

Speaker similarity: cosine of two x-vectors by a transformers model (WavLM's, published for speaker verification).
UTMOS: a TorchScript file, either of float waves [B, samples] and their rate, as SpeechMOS' models are, or of 16-bit
samples alone, as balacoon/utmos is; its own signature tells which.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import require_file, sha256_file

_RATE = 16000


class Measure(Protocol):
    """A number for what was said, perhaps beside the real recording."""

    name: str
    measures: str
    identity: str
    """Names the model."""

    def __call__(self, said: np.ndarray, real: np.ndarray, sample_rate: int) -> float: ...


class SpeakerSimilarity:
    """See Measure."""

    name = "speaker_similarity"
    measures = "cosine of x-vectors of what was said and of the real recording"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        try:
            self._features = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModelForAudioXVector.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            remedy = "give the folder of a model with an x-vector head, such as wavlm-base-plus-sv"
            raise DataError(f"{folder}: transformers cannot open it: {error}; {remedy}") from error
        files = sorted(Path(folder).glob("*.safetensors"))
        digest = hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()
        self.identity = f"{Path(folder).name} ({digest[:12]})"

    def __call__(self, said: np.ndarray, real: np.ndarray, sample_rate: int) -> float:
        import torch

        vectors = []
        for wave in (said, real):
            wave = _at_16k(wave, sample_rate)
            inputs = self._features(wave, sampling_rate=_RATE, return_tensors="pt")
            with torch.no_grad():
                vectors.append(self._model(**inputs).embeddings[0])
        return float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))


class Utmos:
    """See Measure."""

    name = "utmos"
    measures = "predicted opinion score, 1 to 5"

    def __init__(self, file: Path) -> None:
        import torch

        path = require_file(file, remedy="give a TorchScript file of UTMOS")
        try:
            self._model: Any = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise DataError(f"{path}: cannot be read as TorchScript: {first}; give UTMOS saved by torch.jit") from error
        taken = len(self._model.forward.schema.arguments) - 1
        if taken not in (1, 2):
            raise DataError(f"{path}: takes {taken} arguments; UTMOS takes 16-bit samples, or waves and their rate")
        self._takes_rate = taken == 2
        self.identity = f"{path.name} ({sha256_file(path)[:12]})"

    def __call__(self, said: np.ndarray, real: np.ndarray, sample_rate: int) -> float:
        import torch

        wave = _at_16k(said, sample_rate)
        if not self._takes_rate:
            wave = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
        with torch.no_grad():
            scores = self._model(torch.from_numpy(wave)[None], *([_RATE] if self._takes_rate else []))
        return float(scores.reshape(-1)[0])


def _at_16k(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    if sample_rate == _RATE:
        return wave
    import soxr

    return soxr.resample(wave, sample_rate, _RATE, quality="HQ").astype(np.float32, copy=False)

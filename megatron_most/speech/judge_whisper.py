"""WhisperJudge and FasterWhisperJudge: Whisper from a local folder, by transformers or by CTranslate2.

Nothing is downloaded: the folder is named, its weights are hashed. Decoding is greedy, so that a wave is heard alike
every time. Waves beyond 30 s go through Whisper's own long-form decoding, by timestamps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError, UpstreamError
from megatron_most.runtime import Device, require_file
from megatron_most.speech.judge import SAMPLE_RATE, JudgeIdentity, checked_wave, hash_files

_WINDOW_S = 30
_SHORTEST = SAMPLE_RATE // 50


class WhisperJudge:
    """`model`: a folder of a transformers WhisperForConditionalGeneration with its processor."""

    def __init__(self, model: str | Path, language: str | None = None, device: Device | None = None) -> None:
        from safetensors import SafetensorError
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        folder = _folder(model, "config.json", "transformers' Whisper")
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise DataError(f"{folder}: no .safetensors weights; save the model with save_pretrained")
        self._device = (device or Device("cpu")).torch_device
        try:
            self._model = WhisperForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            self._processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            first = str(error).strip().split("\n")[0]
            raise DataError(f"{folder}: not a whole folder of transformers' Whisper ({first})") from error
        self._model.to(self._device).eval()
        self._options = {"language": language, "task": "transcribe"} if language else {}
        self.identity = JudgeIdentity("whisper", folder.name, hash_files(weights, language))

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """See Judge."""
        return [self._hear(checked_wave(wave, index)) for index, wave in enumerate(waves)]

    def _hear(self, wave: np.ndarray) -> str:
        import torch

        if len(wave) < _SHORTEST:
            return ""
        is_long = len(wave) > _WINDOW_S * SAMPLE_RATE
        how: dict[str, Any] = {"truncation": False, "padding": "longest"} if is_long else {}
        features = self._processor(
            wave, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True, **how
        ).to(self._device)
        with torch.inference_mode():
            ids = self._model.generate(
                features.input_features,
                attention_mask=features.attention_mask,
                do_sample=False,
                num_beams=1,
                return_timestamps=is_long,
                **self._options,
            )
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


class FasterWhisperJudge:
    """`model`: a folder that CTranslate2's converter wrote."""

    def __init__(self, model: str | Path, language: str | None = None, device: Device | None = None) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UpstreamError(
                f"judge faster-whisper: faster-whisper is not installed ({error}); pip install faster-whisper, or use "
                "the judge whisper"
            ) from error
        folder = _folder(model, "model.bin", "CTranslate2's Whisper")
        where = "auto" if device is not None and device.kind == "gpu" else "cpu"
        self._model: Any = WhisperModel(str(folder), device=where)
        self._language = language
        self.identity = JudgeIdentity("faster-whisper", folder.name, hash_files([folder / "model.bin"], language))

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """See Judge."""
        found = []
        for index, wave in enumerate(waves):
            wave = checked_wave(wave, index)
            if len(wave) < _SHORTEST:
                found.append("")
                continue
            pieces, _ = self._model.transcribe(
                wave, language=self._language, beam_size=1, temperature=0.0, condition_on_previous_text=False
            )
            found.append(" ".join(piece.text.strip() for piece in pieces))
        return found


def _folder(model: str | Path, has: str, of: str) -> Path:
    folder = Path(model)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a local folder of {of}: nothing is downloaded")
    require_file(folder / has, remedy=f"give a folder of {of}")
    return folder

"""Text to speech by a model on this machine: one of ours that has learnt to speak, or one of transformers.

Ours writes units after the prompt of tts, and its vocoder makes them sound; transformers' VITS and SpeechT5 make sound
at once. Nothing in a folder is run, weights are safetensors. A turn's draws come from (its text, its voice), so a model
says a text the same way each time, whatever it has said before and however often the run was killed.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.converse import Opened, Talker
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.generate import Settings
from megatron_most.runtime import find_device, read_file, reading, sha256_file
from megatron_most.speech import load_vocoder
from megatron_most.synthesize.voices import SAMPLE_RATE, VoiceOptions
from megatron_most.synthesize.wer import most_seconds

_KINDS = ("vits", "speecht5")
_HASHED = (".json", ".model", ".safetensors", ".txt")


class RunSpeaker:
    """A model of ours with the vocoder of its codec. Voices are the vocoder's speakers, by number."""

    def __init__(self, options: VoiceOptions, opened: Opened) -> None:
        if options.vocoder is None:
            raise DataError("--voice.run: give the vocoder that makes its units sound with --voice.vocoder")
        self._options, self._opened, self._lock = options, opened, threading.Lock()
        self._vocoder = load_vocoder(options.vocoder)
        opened.made_with.require_codec(self._vocoder.codec_hash, str(options.vocoder), str(opened.folder))
        self._talker = Talker(opened, tokenizer=options.tokenizer, templates=options.templates)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "speaker": "run",
            "weights": _hash_of(self._opened.folder),
            "vocoder": _hash_of(self._options.vocoder or Path()),
            "tokenizer": self._talker.tokenizer.identity.sha256,
            "templates": self._talker.context.templates.hash,
            "temperature": self._options.temperature,
        }

    def check_voices(self, voices: Sequence[str]) -> None:
        _check_numbers(voices, self._vocoder.num_speakers, f"the vocoder {self._options.vocoder}")

    def stop(self) -> None:
        pass

    def told(self) -> str:
        return ""

    def say(self, text: str, voice: str) -> np.ndarray:
        try:
            prompt = self._talker.prompt("tts", text)
        except DataError as error:
            raise RowError("voice failed", str(error)[:160]) from error
        room = self._opened.model.max_positions - len(prompt.ids)
        most = min(room, math.ceil(most_seconds(text) / self._vocoder.codec.frame_s) + 3)  # two marks and the end
        if most < 4:
            raise RowError("voice failed", f"{len(prompt.ids)} tokens of text leave no room for speech")
        settings = Settings(
            max_new_tokens=most, mode="audio-only", temperature=self._options.temperature, seed=_seed(text, voice)
        )
        with self._lock:  # one model, many threads
            [said] = self._talker.answer([prompt], settings)
        if said.answer.stopped != "eos" or not said.units:
            raise RowError("voice failed", f"it had not ended after {len(said.answer.ids)} tokens")
        return _at_rate(self._talker.speak(said, self._vocoder, int(voice)), self._vocoder.sample_rate)


class TransformersSpeaker:
    """A VITS or SpeechT5 model from a local folder."""

    def __init__(self, options: VoiceOptions) -> None:
        folder = options.transformers
        assert folder is not None, "the options were checked"
        if not folder.is_dir():
            raise DataError(f"--voice.transformers {folder}: no such folder; nothing is downloaded")
        kind = _kind_of(folder)
        self._device = find_device(options.device, 0).torch_device
        self._lock, self._folders = threading.Lock(), [folder]
        self._vectors: dict[str, np.ndarray] = {}
        try:
            if kind == "vits":
                self._speakers, self._rate, self._compute = _vits(folder, self._device)
            else:
                if options.vocoder is None or options.speakers is None:
                    raise DataError(
                        f"{folder}: SpeechT5 wants --voice.vocoder (its HiFi-GAN) and --voice.speakers (their vectors)"
                    )
                self._folders.append(options.vocoder)
                self._vectors = _load_vectors(options.speakers)
                self._speakers = len(self._vectors)
                self._rate, self._compute = _speecht5(folder, options.vocoder, self._vectors, self._device)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            first = str(error).strip().split("\n")[0]
            raise DataError(f"{folder}: not a whole folder of transformers' {kind} in safetensors ({first})") from error

    @property
    def identity(self) -> dict[str, Any]:
        vectors = {name: hashlib.sha256(vector.tobytes()).hexdigest() for name, vector in self._vectors.items()}
        return {
            "speaker": "transformers",
            "weights": [_hash_of(folder) for folder in self._folders],
            "voices": vectors or self._speakers,
        }

    def check_voices(self, voices: Sequence[str]) -> None:
        if not self._vectors:
            _check_numbers(voices, self._speakers, str(self._folders[0]))
        elif missing := sorted(set(voices) - set(self._vectors)):
            raise DataError(f"--voices {missing[0]}: not in --voice.speakers, which has {', '.join(self._vectors)}")

    def stop(self) -> None:
        pass

    def told(self) -> str:
        return ""

    def say(self, text: str, voice: str) -> np.ndarray:
        import torch

        with self._lock, torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(_seed(text, voice))
            wave = self._compute(text, voice)
        return _at_rate(wave, self._rate)


Compute = Callable[[str, str], np.ndarray]


def _vits(folder: Path, device: Any) -> tuple[int, int, Compute]:
    from transformers import VitsModel, VitsTokenizer

    tokenizer = VitsTokenizer.from_pretrained(folder, local_files_only=True)
    model = VitsModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
    speakers = model.config.num_speakers

    def compute(text: str, voice: str) -> np.ndarray:
        given = tokenizer(text, return_tensors="pt").to(device)
        if given.input_ids.shape[1] < 2:
            raise RowError("voice failed", "it knows none of these characters")
        found = model(**given, speaker_id=int(voice) if speakers > 1 else None)
        return found.waveform[0].float().cpu().numpy()  # type: ignore[no-any-return]

    return speakers, model.config.sampling_rate, compute


def _speecht5(folder: Path, vocoder: Path, vectors: dict[str, np.ndarray], device: Any) -> tuple[int, Compute]:
    import torch
    from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5Tokenizer

    how: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    tokenizer = SpeechT5Tokenizer.from_pretrained(folder, local_files_only=True)
    model = SpeechT5ForTextToSpeech.from_pretrained(folder, **how).to(device).eval()
    voice_of = SpeechT5HifiGan.from_pretrained(vocoder, **how).to(device).eval()
    width = model.config.speaker_embedding_dim
    if wrong := [name for name, vector in vectors.items() if vector.shape != (width,)]:
        raise DataError(f"--voice.speakers: {wrong[0]} has shape {vectors[wrong[0]].shape}; {folder} wants ({width},)")
    most = model.config.max_text_positions

    def compute(text: str, voice: str) -> np.ndarray:
        ids = tokenizer(text, return_tensors="pt").input_ids.to(device)
        if ids.shape[1] > most:
            raise RowError("voice failed", f"{ids.shape[1]} characters; the model hears {most}")
        vector = torch.from_numpy(vectors[voice])[None].to(device)
        return model.generate_speech(ids, vector, vocoder=voice_of).float().cpu().numpy()  # type: ignore[no-any-return]

    return voice_of.config.sampling_rate, compute


def _kind_of(folder: Path) -> str:
    data = read_file(folder / "config.json", remedy="give a folder that save_pretrained wrote")
    try:
        kind = json.loads(data).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{folder / 'config.json'}: damaged; fetch the folder again") from error
    if kind not in _KINDS:
        raise DataError(f"{folder}: a model of type {kind!r}; those that speak here are {' and '.join(_KINDS)}")
    return str(kind)


def _load_vectors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(read_file(path, remedy="give a safetensors file with a vector for each voice"))
    except SafetensorError as error:
        raise DataError(f"--voice.speakers {path}: not safetensors ({error})") from error
    if not found:
        raise DataError(f"--voice.speakers {path}: holds no vector")
    return {name: np.ascontiguousarray(vector, dtype=np.float32) for name, vector in sorted(found.items())}


def _check_numbers(voices: Sequence[str], count: int, where: str) -> None:
    known = [str(number) for number in range(count)]
    if wrong := [voice for voice in voices if voice not in known]:
        raise DataError(f"--voices {wrong[0]}: {where} has the voices 0 to {count - 1}, by number")


def _hash_of(folder: Path) -> str:
    """Of all files in a folder that decide what a model says."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _HASHED and path.is_file()):
        with reading(path, "is the model's folder whole?"):
            found.update(f"{path.name} {sha256_file(path)}\n".encode())
    return found.hexdigest()


def _seed(text: str, voice: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{voice}/{text}".encode()).digest()[:6])


def _at_rate(wave: np.ndarray, rate: int) -> np.ndarray:
    wave = np.asarray(wave, dtype=np.float32).reshape(-1)
    if rate == SAMPLE_RATE:
        return wave
    import soxr

    return soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ").astype(np.float32, copy=False)  # type: ignore[no-any-return]

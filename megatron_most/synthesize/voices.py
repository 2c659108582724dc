"""Text to speech by whatever speaks, pluggable by `Speaker`: a command such as flite; a service (voice_endpoint.py); a
model of ours, or of transformers (voice_models.py).

A command is a list of words, never given to a shell; the text goes through a file, so no text can be an option. What
fails for one text is a RowError; what cannot succeed for any (no such program, a wrong key) a DataError; a service that
does not answer is WriterFailed, as with the writer of the dialogues.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import printable
from megatron_most.speech import AudioError, probe, read_span
from megatron_most.synthesize.wer import most_seconds

SAMPLE_RATE = 16000


@dataclass(frozen=True, kw_only=True)
class VoiceOptions:
    """What speaks: one of command, url, run and transformers."""

    command: str | None = None
    """A program with {text} (a file with the text), {wave} (the WAV file to write) and {voice} in its words:
    "flite -voice {voice} -f {text} -o {wave}"."""
    url: str | None = None
    """Or the base address of an OpenAI-compatible service, up to and with /v1."""
    run: Path | None = None
    """Or a model of ours that has learnt to speak: a run's folder, a step's or an exported one. --voices are the
    speakers of its vocoder: 0 1 2."""
    transformers: Path | None = None
    """Or the local folder of a VITS or SpeechT5 model of transformers, in safetensors. --voices are the numbers of its
    speakers; for SpeechT5 names in --voice.speakers."""
    model: str = "tts-1"
    """url: the model, as the service names it."""
    key_env: str | None = None
    """url: NAME of the environment variable with the key; not set = no key is sent."""
    timeout_s: float = 60.0
    """command, url: for one turn."""
    tries: int = 5
    """url: as for --writer endpoint."""
    pause_s: float = 1.0
    max_pause_s: float = 60.0
    vocoder: Path | None = None
    """run: the folder of the vocoder for its units. transformers: of SpeechT5's HiFi-GAN."""
    tokenizer: Path | None = None
    """run: the tokenizer of its data; an exported folder has its own."""
    templates: str | None = None
    """run: by name or file; not set = those of its data."""
    temperature: float = 0.0
    """run: 0 = always the likeliest unit."""
    speakers: Path | None = None
    """transformers: a safetensors file with a vector for each voice, by name (SpeechT5)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """run, transformers: where the model is computed."""

    def check(self) -> None:
        given = [name for name in ("command", "url", "run", "transformers") if getattr(self, name)]
        if len(given) != 1:
            raise DataError(
                "give one of --voice.command, --voice.url, --voice.run and --voice.transformers, no more and no less"
            )
        for name, least in (("timeout_s", 1e-3), ("tries", 1), ("pause_s", 0.0), ("max_pause_s", 0.0),
                            ("temperature", 0.0)):  # fmt: skip
            value = getattr(self, name)
            if not least <= value < 1e9:
                raise DataError(f"--voice.{name.replace('_', '-')} {value}: give {least:g} or more")


class Speaker(Protocol):
    """Says a text in a voice, as mono float32 at 16 kHz. Several threads call it."""

    @property
    def identity(self) -> dict[str, Any]: ...

    def check_voices(self, voices: Sequence[str]) -> None:
        """DataError for a voice that it is known not to have."""

    def say(self, text: str, voice: str) -> np.ndarray: ...

    def stop(self) -> None:
        """Nobody waits any more: end pauses at once."""

    def told(self) -> str:
        """What was used so far, in words; "" where nothing is paid for."""


class CommandSpeaker:
    """Runs a program for each turn."""

    def __init__(self, options: VoiceOptions) -> None:
        try:
            self._words = shlex.split(options.command or "")
        except ValueError as error:
            raise DataError(f"--voice.command: {error}; close the quote") from error
        for name in ("{text}", "{wave}"):
            if not any(name in word for word in self._words):
                raise DataError(f"--voice.command {options.command!r}: no {name} in it; see --help")
        if shutil.which(self._words[0]) is None:
            raise DataError(f"--voice.command: no program {self._words[0]!r} here; install it, or give its path")
        self._timeout_s = options.timeout_s

    @property
    def identity(self) -> dict[str, Any]:
        return {"speaker": "command", "words": self._words}

    def check_voices(self, voices: Sequence[str]) -> None:
        """The program knows them, and nobody else."""

    def stop(self) -> None:
        pass

    def told(self) -> str:
        return ""

    def say(self, text: str, voice: str) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="most-voice-") as folder:
            given, wave = Path(folder, "text.txt"), Path(folder, "wave.wav")
            given.write_text(text + "\n", encoding="utf-8")
            values = {"{text}": str(given), "{wave}": str(wave), "{voice}": voice}
            words = [_filled(word, values) for word in self._words]
            try:
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._timeout_s, cwd=folder
                )
            except subprocess.TimeoutExpired:
                raise RowError("voice failed", f"not ready within {self._timeout_s:g} s") from None
            if done.returncode or not wave.exists():
                told = printable(done.stderr.decode(errors="replace"), 160).strip()
                raise RowError("voice failed", f"{words[0]} ended with {done.returncode}: {told or 'no wave'}")
            try:
                return read_wave(wave, text)
            except AudioError as error:
                raise RowError("voice failed", error.detail.replace(str(wave), "its wave")) from error


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def read_wave(path: Path, text: str) -> np.ndarray:
    """A voice's samples. RowError "wrong length" for one without end, which is not read; AudioError for no sound."""
    most = most_seconds(text)
    seconds = probe(path, most_s=most).duration
    if seconds > most:
        raise RowError("wrong length", f"{seconds:.0f} s, where {most:.0f} s is the most for {len(text.split())} words")
    return read_span(path, 0.0, None, sample_rate=SAMPLE_RATE)

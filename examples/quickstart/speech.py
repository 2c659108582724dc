"""Speech for the domain, by flite, on all cores; and what is made of it without speaking anew: questions and shuffles.

Recordings have their sentence's number in their name, so a second start goes on with those that are missing.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import progress

RATE = 16000
VOICES = ("rms", "slt", "awb")
OWN = "slt"
"""The model hears all of them and learns to speak with this one."""
UNSEEN = "kal16"
_PAUSE, _PIECE = int(0.25 * RATE), int(0.06 * RATE)


@dataclass(frozen=True)
class Spoken:
    """One recording."""

    id: str
    text: str
    voice: str


def require_flite() -> None:
    """Before anything is made: what is missing, and the one line that helps."""
    if shutil.which("flite") is None:
        raise DataError("flite, which speaks the demo's sentences, is not installed: sudo apt install flite")
    done = subprocess.run(["flite", "-lv"], capture_output=True, text=True)
    if missing := {*VOICES, UNSEEN} - set(done.stdout.split()):
        raise DataError(f"flite lacks the voices {', '.join(sorted(missing))}: sudo apt install flite")


def speak(wanted: Sequence[Spoken], folder: Path) -> None:
    """A wave each, 16 kHz; those that are there stay."""
    for parent in {(folder / one.id).parent for one in wanted}:
        parent.mkdir(parents=True, exist_ok=True)
    missing = [one for one in wanted if not (folder / f"{one.id}.wav").exists()]
    print(f"\n$ flite -voice VOICE -t SENTENCE -o {folder}/ID.wav    # {len(missing)} times", flush=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # each thread waits for a process of its own
        for _ in progress(pool.map(lambda one: _say(one, folder), missing), f"speak, of {len(missing)}", "sentence"):
            pass


def _say(one: Spoken, folder: Path) -> None:
    part = folder / f"{one.id}.part"
    done = subprocess.run(
        ["flite", "-voice", one.voice, "-t", one.text, "-o", str(part)], stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode or not part.exists() or part.stat().st_size < 1000:
        told = done.stderr.decode(errors="replace").strip()[:200]
        raise DataError(f"flite -voice {one.voice} ended with {done.returncode}: {told or 'no wave, a full disk?'}")
    part.rename(folder / f"{one.id}.wav")


def ask(sentence: Path, question: Path, out: Path) -> None:
    """A recording, a pause, and the recording of a question about it."""
    write(out, np.concatenate([read(sentence), np.zeros(_PAUSE, np.float32), read(question)]))


def shuffle(recording: Path, out: Path, draw: random.Random) -> None:
    """Its pieces of 60 ms in a random order: the same sounds, and no words."""
    wave = read(recording)
    pieces = [wave[at : at + _PIECE] for at in range(0, len(wave), _PIECE)]
    draw.shuffle(pieces)
    write(out, np.concatenate(pieces))


def read(path: Path) -> np.ndarray:
    import soundfile

    try:
        wave, rate = soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: no whole wave ({error.error_string}); remove it and start again") from error
    if rate != RATE:
        raise DataError(f"{path}: {rate} Hz, {RATE} expected; remove it and start again")
    return np.asarray(wave)


def write(path: Path, wave: np.ndarray) -> None:
    """Whole or not at all."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    soundfile.write(part, wave, RATE, format="WAV")
    part.rename(path)

"""Waves that nobody could hear: while the judge is away voices go on speaking, and what they say is kept for it.

    PART/unheard/AB/HASH.npz    one dialogue's turns: its waves, and what was said in which voice

Who speaks, the dialogue's id, the turn's number, voice and text are in the file and are compared, so that no wave is
taken for another; a file is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.rejects import RowError
from megatron_most.runtime import get_logger, writing
from megatron_most.synthesize.writer import JudgeFailed, WriterFailed

FOLDER = "unheard"
OUTAGE = 8
"""Failures in a row that are a service's, and not of what it was asked."""
Said = tuple[int, str, str]
"""A turn's number, its voice, its text."""
_AGAIN = ", then run the same command again to go on"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A turn that was spoken."""

    number: int
    voice: str
    text: str
    wave: np.ndarray
    wer: float | None


class Unheard:
    """The files of one part; dialogues may be kept from several threads."""

    def __init__(self, part: Path, speaker: Mapping[str, Any]) -> None:
        self._folder, self._speaker = part / FOLDER, json.dumps(speaker, sort_keys=True, default=str)

    def find(self, id: str, said: Sequence[Said]) -> list[np.ndarray] | None:
        """The waves of a dialogue, if just these turns of it were kept."""
        path = self._path(id)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["said"]) != self._key(id, said):
                    return None
                waves = [np.asarray(kept[f"wave{number}"]) for number in range(len(said))]
        except Exception:  # damaged: it is spoken again. What zip files raise on a wrong bit is no short list
            return None
        return waves if all(wave.ndim == 1 and wave.dtype.kind == "f" for wave in waves) else None

    def keep(self, id: str, said: Sequence[Said], waves: Sequence[np.ndarray]) -> None:
        path = self._path(id)
        part = path.with_suffix(".tmp")
        with writing(self._folder, _AGAIN):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                arrays: dict[str, Any] = {f"wave{number}": wave for number, wave in enumerate(waves)}
                np.savez(file, said=np.array(self._key(id, said)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

    def drop(self, id: str) -> None:
        """It is in the lists, or set aside."""
        self._path(id).unlink(missing_ok=True)

    def clear(self) -> None:
        if self._folder.exists():
            with writing(self._folder, _AGAIN):
                shutil.rmtree(self._folder)

    def _key(self, id: str, said: Sequence[Said]) -> str:
        return json.dumps([self._speaker, id, *said])

    def _path(self, id: str) -> Path:
        name = hashlib.sha256(id.encode()).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.npz"


class Ahead:
    """What is spoken while the judge is away: none of it comes into the lists."""

    def __init__(self, total: int, unheard: Unheard) -> None:
        self._total, self._unheard = total, unheard
        self.why: str | None = None
        """It has begun, since this was wrong with the judge."""
        self._spoken = self._failed = self._in_a_row = 0

    def begin(self, why: str, taken: int, spoken: int) -> None:
        """`taken`: dialogues in the lists; `spoken`: those after them that have shown it."""
        self.why, self._spoken = why, spoken
        _log.warning(
            f"the judge is gone: {why}; from dialogue {taken + 1} of {self._total} on voices speak, and nobody hears"
        )

    def take(self, id: str, turns: Future[list[Utterance]]) -> None:
        """WriterFailed where the voice is gone too."""
        try:
            made = turns.result()
        except JudgeFailed:
            self._spoken, self._in_a_row = self._spoken + 1, 0
        except RowError:  # its reason comes when it is its turn
            self._failed, self._in_a_row = self._failed + 1, 0
        except WriterFailed:
            self._failed, self._in_a_row = self._failed + 1, self._in_a_row + 1
            if self._in_a_row >= OUTAGE:
                raise
        else:
            if made:  # heard while the judge was going
                self._unheard.keep(id, [(one.number, one.voice, one.text) for one in made], [one.wave for one in made])
                self._spoken += 1

    def told(self, taken: int) -> str:
        failed = f", {self._failed} failed and are tried again" if self._failed else ""
        return (
            f"the judge is gone: {self.why}. {taken} of {self._total} dialogues are in the lists; {self._spoken} more "
            f"are spoken and kept{failed}. When the judge is back, run the same command again: they are heard, and not "
            "spoken again"
        )

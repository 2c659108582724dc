"""One checkpoint while it is being written: a folder without a name yet, and how its ranks hear of each other.

Every rank writes its share and then a note of what it wrote, which rank 0 reads; a rank that cannot takes the folder
away. Files carry all of it, since no collective may run beside the training step's. A folder is used for one writing
only, so that no note or file of another is ever taken for one of this.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint.pieces import Box, require_cover
from megatron_most.checkpoint.record import KINDS, StoredPiece, StoredTensor, to_json
from megatron_most.checkpoint.shelf import discard
from megatron_most.checkpoint.tensor_file import write_tensors
from megatron_most.errors import CheckpointError
from megatron_most.runtime import remedy_of, write_atomically

SUFFIX = ".safetensors"
WAIT_S = 1800.0  # rank 0 gives up on the others' notes after this
_LOOK_S = (0.01, 0.5)  # how often it looks for them, at first and later: a listing is work for a shared file system


class SecondHand(CheckpointError):
    """A failure seen from afar: the rank that caused it knows more."""


@dataclass(frozen=True)
class Snapshot:
    """Everything of one step that will be written, on the host."""

    step: int
    tensors: dict[str, dict[tuple[str, Box, Box], torch.Tensor]]
    """kind -> place -> numbers."""
    training: dict[str, Any]
    texts: dict[str, str]
    """More files, small ones, written by rank 0: name -> content."""


@dataclass(frozen=True)
class Draft:
    """The folder, which rank 0 has made, and this rank's place among its writers."""

    folder: Path
    rank: int
    ranks: int

    def write_share(self, snapshot: Snapshot, wholes: Mapping[str, Box]) -> None:
        """Two files, what a model is and what only an optimizer wants; then the note."""
        note: dict[str, Any] = {"files": {}, "pieces": []}
        for stem, kinds in (("weights", KINDS[:1]), ("moments", KINDS[1:])):
            file = f"{stem}-{self.rank:05d}{SUFFIX}"
            tensors: dict[str, torch.Tensor] = {}
            for kind in kinds:
                for (name, start, shape), tensor in snapshot.tensors[kind].items():
                    key = f"{kind}/{name}"
                    if shape != wholes[name]:
                        key += "@" + ",".join(map(str, start))
                    tensors[key] = tensor
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    note["pieces"].append([kind, name, wholes[name], dtype, file, key, start, shape])
            if tensors:
                note["files"][file] = write_tensors(self.folder / file, tensors)
        write_atomically(self._note(self.rank), to_json(note))

    def read_notes(self) -> tuple[dict[str, tuple[int, str]], dict[str, dict[str, StoredTensor]]]:
        """Rank 0: wait for all notes; the files, and by kind and name the tensors that they make up together."""
        awaited, notes = set(range(self.ranks)), []
        pause, until = _LOOK_S[0], time.monotonic() + WAIT_S
        while True:
            there = set(os.listdir(self.folder))
            for rank in sorted(awaited):
                if self._note(rank).name in there:
                    notes.append(json.loads(self._note(rank).read_text()))
                    awaited.remove(rank)
            if not awaited:
                break
            if time.monotonic() > until:
                raise CheckpointError(
                    f"{self.folder}: rank {min(awaited)} has not written its part within {WAIT_S:g} s"
                    + (f", nor have {len(awaited) - 1} others" if len(awaited) > 1 else "")
                )
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_S[1])
        for rank in range(self.ranks):
            self._note(rank).unlink()
        return _files(notes), _tensors(notes)

    def is_gone(self) -> bool:
        """It has its name now, or a rank has failed."""
        return not self.folder.exists()

    def take_away(self) -> None:
        """How a rank tells all others that it has failed: it takes no room, so a full disk does not prevent it."""
        with suppress(OSError):
            discard(self.folder)

    def explain(self, error: Exception) -> CheckpointError:
        """What went wrong, in words for the one who has to mend it."""
        if isinstance(error, CheckpointError):
            return error
        if isinstance(error, OSError):
            if isinstance(error, FileNotFoundError) and self.is_gone():
                return SecondHand(f"{self.folder}: gone: another rank has failed, or a newer attempt has begun")
            why = error.strerror or str(error)
            helps = remedy_of(error, self.folder) or f"look at what is in the way in {self.folder.parent}"
            return CheckpointError(f"{self.folder}: not saved: {why}; what was saved before is whole; {helps}")
        return CheckpointError(f"{self.folder}: not saved: {type(error).__name__}: {error}")

    def _note(self, rank: int) -> Path:
        return self.folder / f".note-{rank:05d}.json"


def _files(notes: list[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    return {name: (size, digest) for note in notes for name, (size, digest) in note["files"].items()}


def _tensors(notes: list[dict[str, Any]]) -> dict[str, dict[str, StoredTensor]]:
    parts: dict[tuple[str, str], list[StoredPiece]] = {}
    kinds: dict[tuple[str, str], tuple[Box, str]] = {}
    for note in notes:
        for kind, name, whole, dtype, file, key, start, shape in note["pieces"]:
            parts.setdefault((kind, name), []).append(StoredPiece(file, key, tuple(start), tuple(shape)))
            first = kinds.setdefault((kind, name), (tuple(whole), dtype))
            if first != (tuple(whole), dtype):
                raise CheckpointError(f"{kind} of {name}: {dtype} on one rank, {first[1]} on another")
    tensors: dict[str, dict[str, StoredTensor]] = {kind: {} for kind in KINDS}
    for (kind, name), pieces in parts.items():
        whole, dtype = kinds[kind, name]
        require_cover(f"{kind} of {name}", whole, [(piece.start, piece.shape) for piece in pieces])
        tensors[kind][name] = StoredTensor(whole, dtype, tuple(pieces))
    return tensors

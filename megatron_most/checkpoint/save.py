"""Writing a checkpoint while training goes on: a snapshot to the host, then a thread a rank, then one rename.

Ranks write what falls to them into a draft folder and leave a note there; rank 0 waits for all notes, writes the
manifest and gives the folder its name, unless a newer attempt of the job has taken the run over. No collective runs
beside the training step's. A draft that cannot be finished is removed, and what was there before stays.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint.pieces import Box, Piece, divide_work, lay_out
from megatron_most.checkpoint.record import KINDS, Record, StoredPiece, StoredTensor
from megatron_most.checkpoint.shelf import Shelf
from megatron_most.checkpoint.tensor_file import write_tensors
from megatron_most.errors import CheckpointError
from megatron_most.runtime import Claim, get_logger, write_atomically

_log = get_logger(__name__)
_WAIT_S = 1800.0  # rank 0 gives up on the others' notes after this


@dataclass(frozen=True)
class Snapshot:
    """Everything of one step that will be written, on the host."""

    step: int
    tensors: dict[str, dict[tuple[str, Box, Box], torch.Tensor]]
    """kind -> place -> numbers."""
    training: dict[str, Any]
    texts: dict[str, str]
    """More files, small ones, written by rank 0: name -> content."""


class Saver:
    """One rank's part in writing checkpoints. All ranks make one, together."""

    def __init__(
        self,
        shelf: Shelf,
        pieces: Mapping[str, list[Piece]],
        claim: Claim | None,
        *,
        keep: int,
        versions: dict[str, str],
    ) -> None:
        import torch.distributed as dist

        self.shelf, self.pieces, self.keep = shelf, pieces, keep
        self._claim, self._versions = claim, versions
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._rank = dist.get_rank() if ranks > 1 else 0
        held: list[Any] = [None] * ranks
        number = [claim.number if claim else 0]
        if ranks > 1:
            dist.all_gather_object(held, lay_out(pieces))
            dist.broadcast_object_list(number)
        else:
            held = [lay_out(pieces)]
        self._attempt, self._ranks = int(number[0]), ranks
        self._mine = divide_work(held)[self._rank]
        self._wholes = {p.name: p.whole for boxes in pieces.values() for p in boxes}
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def snapshot(
        self,
        step: int,
        tensors: Iterable[tuple[str, str, torch.Tensor]],
        training: dict[str, Any],
        texts: dict[str, str],
    ) -> Snapshot:
        """Copy this rank's share of (kind, local name, tensor) to the host; the caller may then change the tensors."""
        kept: dict[str, dict[tuple[str, Box, Box], torch.Tensor]] = {kind: {} for kind in KINDS}
        for kind, local, tensor in tensors:
            for piece in self.pieces.get(local, ()):  # buffers that are not part of a model's state have none
                if piece.place in self._mine:
                    kept[kind][piece.place] = piece.of(tensor).detach().to("cpu", copy=True).contiguous()
        missing = {place[0] for place in self._mine} - {place[0] for place in kept["weight"]}
        if missing:
            raise CheckpointError(f"{min(missing)}: not among the tensors to save")
        return Snapshot(step, kept, training, texts)

    def write(self, snapshot: Snapshot) -> None:
        """Start writing; the last one is waited for first. What went wrong with it is raised here."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name=f"checkpoint-{snapshot.step}")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. CheckpointError where it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure if isinstance(failure, CheckpointError) else CheckpointError(f"saving failed: {failure!r}")

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, snapshot: Snapshot) -> None:
        draft = self.shelf.draft(snapshot.step, self._attempt)
        try:
            draft.mkdir(parents=True, exist_ok=True)
            try:
                note = self._write_share(draft, snapshot)
            except OSError as error:
                note = {"error": f"rank {self._rank}: {error.strerror or error}"}
            write_atomically(draft / f".note-{self._rank:05d}.json", json.dumps(note))
            if self._rank == 0:
                self._publish(draft, snapshot)
            elif "error" in note:
                raise CheckpointError(f"{draft}: {note['error']}")
        except Exception as error:  # a thread's errors reach nobody: it is raised by the next wait()
            self._failure = error
            if self._rank == 0:
                shutil.rmtree(draft, ignore_errors=True)

    def _write_share(self, draft: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Two files: what a model is, and what only an optimizer wants."""
        note: dict[str, Any] = {"files": {}, "pieces": []}
        for stem, kinds in (("weights", KINDS[:1]), ("moments", KINDS[1:])):
            file = f"{stem}-{self._rank:05d}.safetensors"
            tensors: dict[str, torch.Tensor] = {}
            for kind in kinds:
                for place, tensor in snapshot.tensors[kind].items():
                    name, start, shape = place
                    key = f"{kind}/{name}"
                    if shape != self._wholes[name]:
                        key += "@" + ",".join(map(str, start))
                    tensors[key] = tensor
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    note["pieces"].append([kind, name, self._wholes[name], dtype, file, key, start, shape])
            if tensors:
                note["files"][file] = write_tensors(draft / file, tensors)
        return note

    def _publish(self, draft: Path, snapshot: Snapshot) -> None:
        """Rank 0: wait for all notes, write the manifest, and put the checkpoint on the shelf."""
        notes = [self._note(draft, rank) for rank in range(self._ranks)]
        errors = [note["error"] for note in notes if "error" in note]
        if errors:
            raise CheckpointError(f"{draft}: {errors[0]}; make room: the next save is tried again")
        tensors: dict[str, dict[str, StoredTensor]] = {kind: {} for kind in KINDS}
        files = {name: tuple(entry) for note in notes for name, entry in note["files"].items()}
        for note in notes:
            for kind, name, whole, dtype, file, key, start, shape in note["pieces"]:
                piece = StoredPiece(file, key, tuple(start), tuple(shape))
                known = tensors[kind].get(name)
                pieces = (*known.pieces, piece) if known else (piece,)
                tensors[kind][name] = StoredTensor(tuple(whole), dtype, pieces)
        for name, text in snapshot.texts.items():
            write_atomically(draft / name, text)
            files[name] = _size_and_sum(draft / name)
        for note_file in draft.glob(".note-*"):
            note_file.unlink()
        record = Record(
            step=snapshot.step,
            attempt=self._attempt,
            tensors=tensors,
            files=files,  # type: ignore[arg-type]
            training=snapshot.training,
            versions=self._versions,
        )
        digest = record.save(draft)
        if self._claim is not None:
            self._claim.check()
        self.shelf.publish(draft, snapshot.step, digest)
        self.shelf.thin_out(self.keep)

    def _note(self, draft: Path, rank: int) -> dict[str, Any]:
        path, until = draft / f".note-{rank:05d}.json", time.monotonic() + _WAIT_S
        while not path.exists():
            if time.monotonic() > until:
                raise CheckpointError(f"{draft}: rank {rank} has not written its part within {_WAIT_S:.0f} s")
            time.sleep(0.02)
        return json.loads(path.read_text())


def _size_and_sum(path: Path) -> tuple[int, str]:
    from megatron_most.runtime import sha256_file

    return path.stat().st_size, sha256_file(path)

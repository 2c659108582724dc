"""The folder of a run's checkpoints: which there are, which is the newest whole one, and how one is added.

A checkpoint is a folder `step-00000500`, there whole or not at all: one rename adds it, and the same rename takes away
what it replaces. `latest` names the newest, and is written after it; where `latest` is lost or wrong, the folders
themselves decide, newest first, and that is said. An attempt that went back to an earlier step takes the place of all
that was saved after it, and an older attempt can add nothing to what a newer one has saved.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from megatron_most.checkpoint.record import SUM, Record, parse_record, read_manifest, read_record, sum_of
from megatron_most.errors import CheckpointError, DataError
from megatron_most.runtime import agree, get_logger, read_file, remedy_of, sync_folder, write_atomically

LATEST = "latest"
STALE_S = 60.0  # how long a rank waits for its view of a shared file system to become that of rank 0
_STEP = re.compile(r"step-([0-9]{8,})")
_ASIDE = re.compile(r"\.replaced-by-([0-9]{8,})\.step-([0-9]{8,})")
_log = get_logger(__name__)
T = TypeVar("T")


class TakenOver(CheckpointError):
    """A newer attempt of the job owns the run: this one saves nothing more and had better end."""


class OtherView(CheckpointError):
    """A rank does not see the checkpoint that rank 0 has chosen. To pass over it would undo what was saved."""


class Shelf:
    """Checkpoints below one folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._published: tuple[str, int] | None = None  # sum and attempt of the last one, which need not be read again

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def draft(self, step: int, attempt: int, save: str) -> Path:
        """Where a checkpoint is written before it has its name; `save` tells every writing of it from every other."""
        return self.folder / f".step-{step:08d}.attempt-{attempt}.{save}"

    def steps(self) -> list[int]:
        """Of all checkpoints, the newest first."""
        return sorted(self._folders(), reverse=True)

    def last_attempt(self) -> int:
        """The attempt that saved the newest readable checkpoint; 0 where there is none."""
        for _, folder in sorted(self._folders().items(), reverse=True):
            with suppress(CheckpointError, DataError):
                if self._published and read_file(folder / SUM) == f"{self._published[0]}\n".encode():
                    return self._published[1]
                return read_record(folder).attempt
        return 0

    def publish(self, draft: Path, step: int, digest: str, attempt: int = 0) -> None:
        """Give the draft its name, then say so in `latest`. TakenOver where a newer attempt has saved here.

        What is there of this step and of later ones is left by an attempt that went back: it is put aside first, and
        counts until the draft has its name. A kill in between leaves all of it, or the new one alone.
        """
        if (last := self.last_attempt()) > attempt:
            raise TakenOver(
                f"{self.folder}: attempt {last} of this run has saved here, so attempt {attempt} saves nothing more"
            )
        self._settle()
        moved: list[tuple[Path, Path]] = []
        try:
            for later, place in sorted(self._folders().items()):  # `step` itself first: see _settle
                if later < step:
                    continue
                aside = self.folder / f".replaced-by-{step:08d}.{self.path(later).name}"
                place.rename(aside)
                moved.append((place, aside))
            if os.path.lexists(self.path(step)):
                raise CheckpointError(
                    f"{self.path(step)}: not saved: what has this name is no folder, or a link to nowhere; move it "
                    "away; what was saved before is whole"
                )
            draft.rename(self.path(step))
        except BaseException:
            for place, aside in reversed(moved):
                with suppress(OSError):
                    aside.rename(place)
            raise
        sync_folder(self.folder)
        self._published = digest, attempt
        self._settle()
        if (newest := self.steps()[0]) > step:  # it came while this process slept
            raise TakenOver(f"{self.folder}: step {newest} of a newer attempt has come before step {step} of this one")
        said = json.dumps({"step": step, "manifest_sha256": digest})
        try:
            write_atomically(self.folder / LATEST, said + "\n")
        except OSError as error:  # this one is saved all the same, and the folders themselves decide
            path, why = self.folder / LATEST, error.strerror or error
            helps = remedy_of(error, path) or "move away what has its name"
            _log.warning("%s: cannot be written: %s; step %d is saved all the same; %s", path, why, step, helps)

    def thin_out(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints; 0 keeps all."""
        for step in self.steps()[keep:] if keep else []:
            discard(self._folders()[step])

    def clear_drafts(self) -> None:
        """At the start of an attempt, which holds the claim: what others left unfinished goes.

        A former attempt that still lives then has nothing left to publish, even if it has just found its claim good.
        """
        self._settle()
        for draft in self.folder.glob(".step-*"):
            discard(draft)
        for trash in self.folder.glob(".old-*"):
            shutil.rmtree(trash, ignore_errors=True)
        for torn in self.folder.glob(f".{LATEST}.*.tmp"):
            torn.unlink(missing_ok=True)

    def find_newest(self, verify: Callable[[Path, Record], None]) -> tuple[Path, Record] | None:
        """The newest checkpoint that `verify` finds whole; None where there is none at all.

        All ranks call it and come to the same answer: rank 0 reads what is there and all take its word, each of them
        proves that it sees the same, and a folder that one of them finds damaged is passed over by all. CheckpointError
        where there are checkpoints and none is whole, OtherView where a rank looks at another folder than rank 0.
        """
        folders = _as_rank_0(sorted(self._folders().items(), reverse=True))
        if not folders:
            return None
        if _is_rank_0():
            self._compare_with_latest(folders[0][0])
        wrong = []
        for step, folder in folders:
            try:
                record = read_together(folder)
                if record.step != step:
                    raise CheckpointError(f"{folder}: holds step {record.step}, so it is not what its name says")
                _together(partial(verify, folder, record))
            except OtherView:
                raise
            except CheckpointError as error:
                _log.warning("%s is not whole: %s; trying the one before", folder.name, error)
                wrong.append(str(error))
                continue
            return folder, record
        raise CheckpointError(f"{self.folder}: none of {len(folders)} checkpoints is whole; the newest: {wrong[0]}")

    def _folders(self) -> dict[int, Path]:
        """step -> folder, those put aside for one that never came included."""
        found: dict[int, Path] = {}
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:  # those put aside come first
            aside = _ASIDE.fullmatch(path.name)
            if aside and not self.path(int(aside[1])).exists():
                found[int(aside[2])] = path
            elif (named := _STEP.fullmatch(path.name)) and path.is_dir():
                found[int(named[1])] = path
        return found

    def _settle(self) -> None:
        """Finish what a kill left half done: what was put aside goes, or back where its successor never came.

        The step that the successor replaces was moved first and goes back last, so that the successor's name is free
        until the very rename that adds it.
        """
        for path in sorted(self.folder.glob(".replaced-by-*"), reverse=True):
            if aside := _ASIDE.fullmatch(path.name):
                successor, own = self.path(int(aside[1])), self.path(int(aside[2]))
                if successor.exists() or own.exists():
                    discard(path)
                else:
                    path.rename(own)

    def _compare_with_latest(self, newest: int) -> None:
        try:
            words = f"names step {json.loads(read_file(self.folder / LATEST))['step']!r}"
        except DataError as error:
            words = f"does not help ({error})"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            words = f"cannot be read ({type(error).__name__})"
        if words != f"names step {newest}":
            _log.warning("%s: %s, but step %d is there; taking the newest whole one", LATEST, words, newest)


def discard(folder: Path) -> None:
    """Remove a folder of a shelf: at once for all who look, its files after that."""
    trash = folder.with_name(f".old-{secrets.token_hex(4)}{folder.name}")
    with suppress(FileNotFoundError):
        folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def read_together(folder: Path) -> Record:
    """The record that rank 0 reads, on all ranks, once they all see the folder that it sees. All ranks call it, and
    all raise what one of them raises.
    """
    manifest = _as_rank_0(_together(lambda: read_manifest(folder) if _is_rank_0() else b""))
    record = parse_record(folder, manifest)
    _together(partial(_await_view, folder, sum_of(manifest)))
    return record


def _await_view(folder: Path, wanted: bytes) -> None:
    """Caches of a shared file system show an older folder for a while; a wrong mount does so for ever."""
    until = time.monotonic() + STALE_S
    while True:
        try:
            found: bytes | DataError = read_file(folder / SUM)
        except DataError as error:
            found = error
        if found == wanted:
            return
        if time.monotonic() > until:
            words = f"cannot be read ({found})" if isinstance(found, DataError) else "is another than rank 0 sees"
            raise OtherView(
                f"{folder / SUM} {words} after {STALE_S:g} s; see that this rank's node has the same file system "
                "mounted there as rank 0's, then start again"
            )
        time.sleep(min(0.5, STALE_S / 10))


def _together(act: Callable[[], T]) -> T:
    """What `act` returns, or on all ranks alike the CheckpointError that it raised on any of them."""
    result, wrong = None, None
    try:
        result = act()
    except CheckpointError as error:
        wrong = error
    agree(wrong)
    return result  # type: ignore[return-value]


def _as_rank_0(value: T) -> T:
    """What rank 0 sees: shared file systems show a new name to one node before another."""
    import torch.distributed as dist

    box = [value]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def _is_rank_0() -> bool:
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0

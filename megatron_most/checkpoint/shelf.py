"""The folder of a run's checkpoints: which there are, which is the newest whole one, and how one is added.

A checkpoint is a folder `step-00000500`, there whole or not at all. `latest` names the newest, and is written after it;
where `latest` is lost or wrong, the folders themselves are looked through, newest first, and that is said.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_most.checkpoint.record import Record, read_record
from megatron_most.errors import CheckpointError
from megatron_most.runtime import get_logger, sync_folder, write_atomically

LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")
_log = get_logger(__name__)


class Shelf:
    """Checkpoints below one folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def draft(self, step: int, attempt: int) -> Path:
        """Where a checkpoint is written before it has its name."""
        return self.folder / f".step-{step:08d}.attempt-{attempt}"

    def steps(self) -> list[int]:
        """Of all checkpoints, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [_STEP.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def publish(self, draft: Path, step: int, digest: str) -> None:
        """Give the draft its name, then say so in `latest`."""
        target = self.path(step)
        if target.exists():  # of an attempt that went back and came here again: the new one takes its place
            trash = self.folder / f".old-{target.name}"
            shutil.rmtree(trash, ignore_errors=True)
            target.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
        sync_folder(draft)
        draft.rename(target)
        sync_folder(self.folder)
        write_atomically(self.folder / LATEST, json.dumps({"step": step, "manifest_sha256": digest}) + "\n")

    def thin_out(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints, and drafts that nobody finishes any more; 0 keeps all."""
        for step in self.steps()[keep:] if keep else []:
            trash = self.folder / f".old-{self.path(step).name}"
            self.path(step).rename(trash)
        for path in self.folder.glob(".old-*"):
            shutil.rmtree(path, ignore_errors=True)

    def clear_drafts(self) -> None:
        """At the start of an attempt, which holds the claim: what others left unfinished goes."""
        for pattern in (".step-*", ".old-*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def find_newest(self, verify: Callable[[Path, Record], None]) -> tuple[Path, Record] | None:
        """The newest checkpoint that `verify` finds whole; None where there is none at all.

        Every rank must come to the same answer: `verify` agrees with the others. CheckpointError where there are
        checkpoints and none is whole.
        """
        steps = self.steps()
        if not steps:
            return None
        self._compare_with_latest(steps[0])
        wrong = []
        for step in steps:
            folder = self.path(step)
            try:
                record = read_record(folder)
                verify(folder, record)
            except CheckpointError as error:
                _log.warning("%s is not whole: %s; trying the one before", folder.name, error)
                wrong.append(str(error))
                continue
            return folder, record
        raise CheckpointError(f"{self.folder}: none of {len(steps)} checkpoints is whole; the newest: {wrong[0]}")

    def _compare_with_latest(self, newest: int) -> None:
        try:
            named = json.loads((self.folder / LATEST).read_text())["step"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s: cannot be read (%s); the folders were looked through", self.folder / LATEST, error)
            return
        if named != newest:
            _log.warning("%s: names step %s, but step %d is there; taking the newest whole one", LATEST, named, newest)

"""One live writer a folder: a claim is a numbered file, and the highest number owns the folder.

A second process is refused while the first lives. A claim whose holder is dead (killed, or its machine gone) is
followed by the next number, and the former holder, should it wake up, finds the higher number and may publish nothing.
On this machine a holder is looked up by its process; elsewhere by its heartbeat, the file's time, which any shared
file system keeps. A job that Slurm has requeued takes over from its own earlier start at once: that one may live on
where a node was cut off, and Slurm has given up on it. Claims are made by a hard link, which either exists or not;
locks are not used, since Lustre and NFS differ in what they promise.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_most.errors import DataError
from megatron_most.runtime.log import get_logger
from megatron_most.runtime.process import is_running, this_process

BEAT_S = 10.0
DEAD_AFTER_S = 60.0
_NAME = re.compile(r"\.claim-(\d{6,})")
_log = get_logger(__name__)


@dataclass(frozen=True)
class Claim:
    """The right to write a folder, for as long as nobody holds a higher number."""

    folder: Path
    number: int

    def check(self) -> None:
        """Raise where another process has taken the folder over; call it before anything is published."""
        if _newest(self.folder) != self.number:
            raise DataError(
                f"{self.folder}: another process has taken this folder over, since this one seemed dead; "
                "nothing more is written"
            )


@contextlib.contextmanager
def claim(folder: Path | str) -> Iterator[Claim]:
    """Hold a folder for the length of the block. DataError where a live process holds it."""
    folder = Path(folder)
    own = Claim(folder, _take(folder))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(_path(folder, own.number), ended), daemon=True)
    beating.start()
    try:
        yield own
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):  # the folder may have been renamed or removed by its holder
            _path(folder, own.number).unlink()


def _take(folder: Path) -> int:
    while True:
        last = _newest(folder)
        if last and (holder := _alive(_path(folder, last))):
            raise DataError(f"{folder}: {holder} is writing here; wait for it, or choose another folder")
        number = last + 1
        if _link(folder, number):
            break
    if _newest(folder) != number:  # we were slow: others have come and gone since we looked
        _path(folder, number).unlink(missing_ok=True)
        raise DataError(f"{folder}: another process has just taken this folder; wait for it, or choose another")
    if last:
        _log.info("%s: its last writer is dead; this process goes on from there", folder)
        _path(folder, last).unlink(missing_ok=True)
    return number


def _link(folder: Path, number: int) -> bool:
    """Make the claim, content and all, in one step; False where it exists."""
    draft = folder / f".claim-draft-{secrets.token_hex(4)}"
    draft.write_text(json.dumps({**this_process(), **_slurm_start(os.environ)}))
    try:
        os.link(draft, _path(folder, number))
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _slurm_start(env: Mapping[str, str]) -> dict[str, str | int]:
    """Which job of Slurm this is, and its how many-th start; nothing outside of Slurm."""
    if "SLURM_JOB_ID" not in env:
        return {}
    cluster, job, restarts = (env.get(f"SLURM_{name}", "") for name in ("CLUSTER_NAME", "JOB_ID", "RESTART_COUNT"))
    return {"job": f"{cluster} {job}", "restart": int(restarts) if restarts.isdecimal() else 0}  # unset on the first


def _newest(folder: Path) -> int:
    numbers = [int(found[1]) for entry in os.scandir(folder) if (found := _NAME.fullmatch(entry.name))]
    return max(numbers, default=0)


def _path(folder: Path, number: int) -> Path:
    return folder / f".claim-{number:06d}"


def _alive(path: Path) -> str | None:
    """Who holds the claim, in words, if anyone does."""
    try:
        holder = json.loads(path.read_text())
        host, process, boot, _ = (holder[key] for key in ("host", "process", "boot", "started"))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        holder, host, process, boot = {}, "an unknown machine", 0, ""
    words = f"process {process} on {host}"
    own = _slurm_start(os.environ)
    if own and holder.get("job") == own["job"] and holder["restart"] < own["restart"]:
        _log.info("%s: held by %s, of an earlier start of this job", path.parent, words)
        return None
    if boot == this_process()["boot"]:
        return words if is_running(holder) else None
    _log.info("%s: held by %s; waiting up to %.0f s for a sign of life", path.parent, words, DEAD_AFTER_S)
    with contextlib.suppress(FileNotFoundError):
        seen, until = path.stat().st_mtime_ns, time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < until:
            time.sleep(min(1.0, DEAD_AFTER_S / 10))
            if path.stat().st_mtime_ns != seen:
                return words
    return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):  # renamed with its folder at the end, or taken over
            os.utime(path)

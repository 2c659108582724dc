"""Which rows of a manifest belong to shard i of n: runs of neighbours, never parting a recording.

Neighbours share a recording, so its file is opened by one shard and its cuts stay together for interleaving. Inside a
Slurm array the shard is that of the array task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from megatron_most.data.manifest import Manifest, parse_row
from megatron_most.data.rows import Utterance
from megatron_most.errors import DataError

Shard = tuple[int, int]


def find_shard(text: str, env: Mapping[str, str] = os.environ) -> Shard:
    """ "i/n", counted from 0; "auto": the Slurm array task, or the whole."""
    if text != "auto":
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not int(found[1]) < int(found[2]):
            raise DataError(f"--shard {text}: not i/n with i in 0..n-1; the first of four is 0/4")
        return int(found[1]), int(found[2])
    if "SLURM_ARRAY_TASK_ID" not in env:
        return 0, 1
    try:
        task, least, most = (int(env[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX"))
        count = int(env["SLURM_ARRAY_TASK_COUNT"])
    except (KeyError, ValueError) as error:
        raise DataError(f"Slurm's array variables are incomplete ({error}); give --shard i/n") from error
    if most - least + 1 != count or not least <= task <= most:
        raise DataError(
            f"a Slurm array of {count} tasks from {least} to {most} has gaps, so its shards cannot be counted; "
            "submit --array=0-N, or give --shard i/n"
        )
    return task - least, count


def shard_folder(out: Path, shard: Shard) -> Path:
    """`out` itself for the only shard, else a folder below it."""
    return out if shard == (0, 1) else out / f"{shard[0]:05d}-of-{shard[1]:05d}"


def shard_rows(manifest: Manifest, shard: Shard) -> tuple[int, int]:
    """First row, and the row after the last."""
    first, last = (_bound(manifest, shard[0] + step, shard[1]) for step in (0, 1))
    return first, last


def _bound(manifest: Manifest, index: int, count: int) -> int:
    """The first row from index/count of the way on where another recording begins."""
    rows = manifest.header.rows
    at = index * rows // count
    if at in (0, rows) or manifest.header.kind != "speech":
        return at
    recording = None
    for number, line in manifest.lines(at - 1):
        row = parse_row("speech", line)
        assert isinstance(row, Utterance), "a speech manifest holds utterances"
        if recording is not None and row.recording != recording:
            return number
        recording = row.recording
    return rows

"""Which rows of manifests belong to shard i of n: runs of neighbours, never parting a recording.

Several manifests count as one list of rows, so shards laid end to end are the whole in its order. Neighbours share a
recording, so its file is opened by one shard and its cuts stay together for interleaving. Inside a Slurm array the
shard is that of the array task; an array that was submitted in part is refused, for its tasks would take themselves
for the whole of a smaller one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_most.data.manifest import Manifest, parse_row
from megatron_most.data.rows import Utterance
from megatron_most.errors import DataError
from megatron_most.runtime import JOB

Shard = tuple[int, int]
WHOLE: Shard = (0, 1)
_FOLDER = re.compile(r"(\d{5,})-of-(\d{5,})(\.part)?")


def find_shard(text: str, env: Mapping[str, str] = os.environ) -> Shard:
    """ "i/n", counted from 0; "auto": the Slurm array task, or the whole."""
    if text != "auto":
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not int(found[1]) < int(found[2]):
            raise DataError(f"--shard {text}: not i/n with i in 0..n-1; the first of four is 0/4")
        return int(found[1]), int(found[2])
    if "SLURM_ARRAY_TASK_ID" not in env:
        return WHOLE
    try:
        task, least, most, count = (int(env[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
        step = int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError) as error:
        raise DataError(f"Slurm's array variables are incomplete ({error}); give --shard I/N") from error
    if least not in (0, 1) or step != 1 or most - least + 1 != count or not least <= task <= most:
        raise DataError(
            f"a Slurm array of {count} tasks from {least} to {most}, step {step}: part of an array, or one with gaps, "
            f"where task {task} cannot tell its shard; give --shard I/N, N being the number of all shards (such as "
            "--shard $SLURM_ARRAY_TASK_ID/N), or submit the whole array again: finished shards end at once"
        )
    return task - least, count


def shard_folder(out: Path, shard: Shard) -> Path:
    """`out` itself for the only shard, else a folder below it. DataError where `out` is dealt otherwise already."""
    number, count = shard
    named = f"shard {number} of {count}" if shard != WHOLE else "the whole in one"
    remedy = (
        "to make one of these shards again give --shard I/N with their N (in a Slurm array, --shard "
        "$SLURM_ARRAY_TASK_ID/N); else choose another folder, or remove that"
    )
    for entry in sorted(os.listdir(out)) if out.is_dir() else ():
        found = _FOLDER.fullmatch(entry)
        if found and int(found[2]) != count:
            raise DataError(f"{out / entry}: is one of {int(found[2])} shards, but this would be {named}; {remedy}")
    if shard == WHOLE:
        return out
    for whole in (out / JOB, out.with_name(f"{out.name}.part") / JOB):
        if whole.exists():
            raise DataError(f"{whole.parent}: is made in one, but this would be {named}; choose another folder")
    return out / f"{number:05d}-of-{count:05d}"


def shard_folders(out: Path) -> list[Path]:
    """The folders of finished shards in `out`, in order."""
    found = {entry: _FOLDER.fullmatch(entry.name) for entry in out.glob("*-of-*")}
    return sorted(entry for entry, name in found.items() if name and not name[3] and entry.is_dir())


def shard_rows(manifest: Manifest, shard: Shard) -> tuple[int, int]:
    """First row, and the row after the last."""
    [span] = shard_spans([manifest], shard)
    return span


def shard_spans(manifests: Sequence[Manifest], shard: Shard) -> list[tuple[int, int]]:
    """First row of each manifest, and the row after the last."""
    number, count = shard
    first, last = _bound(manifests, number, count), _bound(manifests, number + 1, count)
    spans, before = [], 0
    for manifest in manifests:
        rows = manifest.header.rows
        spans.append((min(max(first - before, 0), rows), min(max(last - before, 0), rows)))
        before += rows
    return spans


def _bound(manifests: Sequence[Manifest], index: int, count: int) -> int:
    """The first row from index/count of the way on where another recording begins; rows count over all manifests."""
    at = index * sum(manifest.header.rows for manifest in manifests) // count
    before = 0
    for manifest in manifests:
        rows = manifest.header.rows
        if before < at < before + rows and manifest.header.kind == "speech":
            return before + _next_recording(manifest, at - before)
        before += rows
    return at


def _next_recording(manifest: Manifest, at: int) -> int:
    """The first row from row `at` on, above 0, that begins a recording."""
    recording = None
    for number, line in manifest.lines(at - 1):
        row = parse_row("speech", line)
        assert isinstance(row, Utterance), "a speech manifest holds utterances"
        if recording is not None and row.recording != recording:
            return number
        recording = row.recording
    return manifest.header.rows

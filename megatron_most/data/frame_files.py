"""Features of a dataset's spans, kept: made once by `prepare_data.py frames`, mapped in training.

In: a dataset of frames and its audio. Out: `features.bin`, the frames of all spans end to end in float16 or float32,
and `frames.json`, which says of which dataset, by which source, and which spans. Shards run side by side and lie in
folders below; killed, a shard goes on where it was. A span that cannot be heard ends the run with the document's name:
it is in the dataset, and training would miss it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.dataset import open_dataset
from megatron_most.data.dataset_info import DatasetInfo
from megatron_most.data.heard import Heard
from megatron_most.data.indexed import IndexedDocuments
from megatron_most.data.seal import SEAL, check_seal, sealed
from megatron_most.data.shards import Shard, shard_folder, shard_folders
from megatron_most.data.spans import FRAME_FILES, SpanTable
from megatron_most.errors import DataError
from megatron_most.runtime import (
    JOB,
    Meter,
    is_done,
    num_cores,
    open_journal,
    read_file,
    require_file,
    sha256_file,
    write_atomically,
)
from megatron_most.speech import FrameIdentity, FrameSource

FORMAT = "most-frames-1"
HEADER, FEATURES = "frames.json", "features.bin"
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_FILES = (FEATURES, JOB)
_AT_ONCE = 256
_REMEDY = "make the frames again"


@dataclass(frozen=True, kw_only=True)
class FrameHeader:
    """What one shard of kept frames holds."""

    identity: FrameIdentity
    spans: tuple[str, ...]
    """The hashes of the dataset's sidecar."""
    stored: str
    """float16 or float32."""
    shard: tuple[int, int]
    first: int
    last: int
    """Spans first..last-1 of the dataset."""
    frames: int
    files: dict[str, tuple[int, str]]
    """name -> (bytes, sha256)"""
    format: str = FORMAT

    def to_json(self) -> str:
        return sealed({**asdict(self), "identity": self.identity.to_dict()})


class KeptFrames:
    """One or more shards, opened: all spans of one dataset."""

    def __init__(self, path: Path, shards: Sequence[tuple[Path, FrameHeader]]) -> None:
        self.path, self.shards = path, shards
        head = shards[0][1]
        self.identity, self.spans, self.stored = head.identity, head.spans, head.stored
        end = 0
        for number, (folder, shard) in enumerate(shards):
            same = (shard.identity, shard.spans, shard.stored) == (self.identity, self.spans, self.stored)
            if not same or shard.shard != (number, len(shards)) or shard.first != end:
                raise DataError(f"{folder}: not shard {number} of {len(shards)} of one set; {_REMEDY}, or copy it here")
            end = shard.last
        self.num_spans = end
        self._firsts = np.array([shard.first for _, shard in shards])
        self._features: list[NDArray[Any]] = []
        for folder, shard in shards:
            size, _ = shard.files[FEATURES]
            found = require_file(folder / FEATURES, remedy=_REMEDY).stat().st_size
            wanted = shard.frames * self.identity.width * STORED[self.stored].itemsize
            if not found == size == wanted:
                raise DataError(f"{folder / FEATURES}: {found} bytes where {HEADER} says {wanted}; {_REMEDY}")
            shape = (shard.frames, self.identity.width)
            kind = STORED[self.stored]
            mapped = np.memmap(folder / FEATURES, kind, "r", shape=shape) if found else np.empty(shape, kind)
            self._features.append(mapped)

    def require(self, info: DatasetInfo, table: SpanTable, folder: Path) -> None:
        """DataError where these are not the frames of this dataset."""
        if info.frames is None or self.identity.key != info.frames.key:
            raise DataError(
                f"{self.path}: frames of {self.identity}, but {folder} has those of {info.frames}; {_REMEDY}"
            )
        kept = sum(shard.frames for _, shard in self.shards)
        if self.num_spans != len(table) or kept != int(table.frames_before[-1]):
            raise DataError(
                f"{self.path}: {kept} frames of {self.num_spans} spans, but {folder} has {table.frames_before[-1]} of "
                f"{len(table)}; {_REMEDY}"
            )

    def features(self, number: int, table: SpanTable) -> np.ndarray:
        """[T, F] float32 of a span."""
        shard = int(np.searchsorted(self._firsts, number, "right")) - 1
        before = table.frames_before
        base = int(before[self._firsts[shard]])
        first, last = int(before[number]) - base, int(before[number + 1]) - base
        return np.asarray(self._features[shard][first:last], np.float32)

    def verify(self) -> None:
        """Raise where a byte is not what it was."""
        for folder, shard in self.shards:
            for name, (_, wanted) in shard.files.items():
                if sha256_file(folder / name) != wanted:
                    raise DataError(f"{folder / name}: damaged (its sha256 is not that of {HEADER}); {_REMEDY}")


def open_kept(path: Path | str) -> KeptFrames:
    """Kept frames of one shard, or a folder of all shards."""
    path = Path(path)
    folders = [path] if (path / HEADER).is_file() else shard_folders(path)
    if not folders:
        hint = "it is unfinished: run `frames` again" if path.with_name(path.name + ".part").exists() else "make them"
        raise DataError(f"{path}: no kept frames here ({HEADER} is missing); {hint}")
    return KeptFrames(path, [(folder, _read_header(folder / HEADER)) for folder in folders])


def keep_frames(
    dataset: Path, source: FrameSource, out: Path | str, shard: Shard, audio_roots: Sequence[Path],
    *, stored: Literal["float16", "float32"] = "float16", threads: int = 0,
) -> Path:  # fmt: skip
    """The frames of one shard of a dataset's spans. Goes on after a kill."""
    info, documents = open_dataset(dataset)
    if info.frames is None:
        raise DataError(f"{dataset}: speech is units there; frames are kept of datasets built with --speech frames")
    if source.identity.key != info.frames.key:
        raise DataError(f"{dataset}: has frames of {info.frames}, not of {source.identity}; give the same --frames.*")
    table = SpanTable(dataset, documents.lengths)
    first, last = (len(table) * number // shard[1] for number in (shard[0], shard[0] + 1))
    spans = tuple(info.files[name][1] for name in FRAME_FILES)
    folder = shard_folder(Path(out), shard)
    job = {"what": "frames", "spans": list(spans), "frames": source.identity.to_dict(), "stored": stored,
           "shard": list(shard)}  # fmt: skip
    if is_done(folder, job):
        return folder
    heard = Heard(source, audio_roots)
    before = table.frames_before
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(folder, job, (FEATURES,)))
        at = int(journal.progress["next"]) if journal.progress else first
        total = float(table.records["duration"][first:last].sum()) / 3600
        done = float(table.records["duration"][first:at].sum()) / 3600
        meter = stack.enter_context(Meter(total, "frames", _hours, done=done))
        pool = stack.enter_context(ThreadPoolExecutor(threads or min(8, num_cores())))
        for numbers in _chunks(at, last):
            found = pool.map(lambda number: _hear(heard, table, documents, number), numbers)
            for number, features in zip(numbers, found, strict=True):
                with np.errstate(over="ignore"):  # said below, in words
                    data = features.astype(STORED[stored])
                if not np.isfinite(data).all():
                    raise DataError(f"{_name(documents, table, number)}: a feature is beyond {stored}; keep float32")
                journal.write(FEATURES, data.tobytes())
            journal.commit({"next": numbers[-1] + 1})
            meter.advance(float(table.records["duration"][numbers[0] : numbers[-1] + 1].sum()) / 3600)
        header = FrameHeader(
            identity=source.identity, spans=spans, stored=stored, shard=shard, first=first, last=last,
            frames=int(before[last] - before[first]), files={},
        )  # fmt: skip
        journal.seal(lambda part: _finish(part, header))
    documents.close()
    return folder


def _chunks(first: int, last: int) -> Iterator[range]:
    return (range(at, min(at + _AT_ONCE, last)) for at in range(first, last, _AT_ONCE))


def _hear(heard: Heard, table: SpanTable, documents: IndexedDocuments, number: int) -> np.ndarray:
    try:
        return heard.features(number, table)
    except DataError as error:
        raise DataError(f"{_name(documents, table, number)}: {error}") from error


def _name(documents: IndexedDocuments, table: SpanTable, number: int) -> str:
    return f"document {documents.document_id(int(table.records['document'][number]))}"


def _finish(part: Path, header: FrameHeader) -> None:
    files = {name: ((part / name).stat().st_size, sha256_file(part / name)) for name in _FILES}
    write_atomically(part / HEADER, FrameHeader(**{**vars(header), "files": files}).to_json())


def _read_header(path: Path) -> FrameHeader:
    data = read_file(path, remedy=_REMEDY)
    try:
        found = json.loads(data)
        if found.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        check_seal(data, path, _REMEDY)
        del found[SEAL]
        if set(found["files"]) != set(_FILES) or found["stored"] not in STORED:
            raise ValueError("files, or how they are stored, are not as this version has them")
        found["identity"] = FrameIdentity.from_dict(found["identity"])
        found["shard"], found["spans"] = tuple(found["shard"]), tuple(found["spans"])
        found["files"] = {name: tuple(entry) for name, entry in found["files"].items()}
        return FrameHeader(**found)
    except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as the header of kept frames ({error}); {_REMEDY}") from error


def _hours(done: float, total: float, seconds: float) -> str:
    return f"{done:.2f}/{total:.2f} h, {done * 3600 / max(seconds, 1e-9):.0f}x real time"

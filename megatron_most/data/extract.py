"""Manifest -> unit set: decode, encode by a frozen codec, write; resumable, sharded, overlapped.

Rows go through in chunks that depend on the manifest alone, so a batch never depends on when a run was killed. While a
chunk is encoded, the next is decoded by threads and the last is written. Utterances that cannot be read are set aside
by reason and the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_most.data.augment import augmented, augmenter_of
from megatron_most.data.manifest import Manifest, parse_row
from megatron_most.data.rejects import Rejects, RowError
from megatron_most.data.rows import Utterance
from megatron_most.data.shards import Shard, shard_folder, shard_rows
from megatron_most.data.unit_set import ARRAYS, FILES, HASHED, HEADER, IDS, REJECTS, UnitHeader
from megatron_most.errors import DataError
from megatron_most.runtime import (
    Journal,
    Meter,
    confine,
    is_done,
    num_cores,
    open_journal,
    reading,
    sha256_file,
    write_atomically,
)
from megatron_most.speech import AudioError, Augmenter, SpeechCodec, UnitSequence, read_span

CHUNK_ROWS, CHUNK_S = 256, 1200.0
LOUDEST = 1000.0
"""Samples beyond this are no sound of a float file, whose full scale is 1, and would overflow in features."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How utterances are read."""

    max_seconds: float = 120.0
    """Longer utterances are rejected; cut them first."""
    channel: Literal["mix", "cut"] = "mix"
    """mix: the mean of all channels. cut: the channel that the manifest names."""
    max_reject_rate: float = 0.05
    decode_threads: int = 0
    """0: as many as there are cores for this process (as Slurm and cpusets give them), eight at most."""


@dataclass(frozen=True)
class _Chunk:
    """Decoded rows, the good and the bad, and where the next chunk starts."""

    rows: list[tuple[int, Utterance, np.ndarray]]
    bad: list[tuple[str, str, str]]
    next_row: int


def extract_units(
    manifest: Manifest, codec: SpeechCodec, out: Path | str, shard: Shard, options: ExtractOptions, audio_root: Path
) -> Path:
    """The units of one shard: in `out`, or, where there are several, in a folder below. Goes on after a kill."""
    if manifest.header.kind != "speech":
        raise DataError(f"{manifest.folder}: a manifest of {manifest.header.kind}; units are made from speech")
    if not options.max_seconds > 0:
        raise DataError(f"--max-seconds {options.max_seconds:g}: give a length of time above 0")
    if options.decode_threads < 0:
        raise DataError(
            f"--decode-threads {options.decode_threads}: give a number, or 0 for as many as there are cores"
        )
    with reading(audio_root, "give where the audio is with --audio-root"):
        if not audio_root.is_dir():
            raise DataError(f"{audio_root}: no such folder; give where the audio is with --audio-root")
    folder = shard_folder(Path(out), shard)
    job = {
        "what": "units",
        "manifest": manifest.header.sha256,
        "codec": {name: value for name, value in codec.identity.to_dict().items() if name != "precision"},
        "precision": codec.identity.precision,
        "shard": list(shard),
        "max_seconds": options.max_seconds,
        "channel": options.channel,
    }
    if manifest.header.augmentation is not None:
        job["augmentation"] = manifest.header.augmentation.get("hash")
    if is_done(folder, job):
        return folder
    manifest.verify()
    augmenter = augmenter_of(manifest)
    first, last = shard_rows(manifest, shard)
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(folder, job, FILES, reports=(REJECTS,)))
        done = _Progress(**journal.progress) if journal.progress else _Progress(next_row=first)
        rejects = Rejects(
            lambda line: journal.write(REJECTS, line),
            options.max_reject_rate,
            done.rejects,
            where=journal.path(REJECTS),
        )
        total_h = manifest.header.seconds / 3600 * (last - first) / max(manifest.header.rows, 1)
        meter = stack.enter_context(Meter(total_h, "units", _hours, done=done.seconds / 3600))
        threads = stack.enter_context(ThreadPoolExecutor(options.decode_threads or min(8, num_cores())))
        ahead = stack.enter_context(ThreadPoolExecutor(1))
        writer = stack.enter_context(ThreadPoolExecutor(1))
        reader = _Reader(audio_root, codec, options, threads, augmenter)
        chunks = reader.chunks(manifest, done.next_row, last)
        coming: Future[_Chunk | None] = ahead.submit(next, chunks, None)
        writing: Future[None] | None = None
        while (chunk := coming.result()) is not None:
            coming = ahead.submit(next, chunks, None)
            units = codec.encode([wave for _, _, wave in chunk.rows]) if chunk.rows else []
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, journal, rejects, done, chunk, units, first)
            meter.advance(sum(utterance.duration for _, utterance, _ in chunk.rows) / 3600)
        if writing is not None:
            writing.result()
        rejects.check(last - first, at_end=True)
        journal.seal(lambda part: _finish(part, manifest, codec, shard, (first, last), done))
    return folder


@dataclass
class _Progress:
    """What a commit remembers."""

    next_row: int
    utterances: int = 0
    units: int = 0
    seconds: float = 0.0
    rejects: dict[str, int] | None = None


class _Reader:
    """Decodes chunks by threads."""

    def __init__(
        self, root: Path, codec: SpeechCodec, options: ExtractOptions, threads: ThreadPoolExecutor,
        augmenter: Augmenter | None,
    ) -> None:  # fmt: skip
        self._root, self._codec, self._options, self._threads = root, codec, options, threads
        self._augmenter = augmenter

    def chunks(self, manifest: Manifest, start: int, stop: int) -> Iterator[_Chunk]:
        rows: list[tuple[int, Utterance]] = []
        seconds = 0.0
        for number, line in manifest.lines(start, stop):
            row = parse_row("speech", line)
            assert isinstance(row, Utterance), "a speech manifest holds utterances"
            rows.append((number, row))
            seconds += min(row.duration, self._options.max_seconds)
            if len(rows) == CHUNK_ROWS or seconds >= CHUNK_S:
                yield self._decode(rows)
                rows, seconds = [], 0.0
        if rows:
            yield self._decode(rows)

    def _decode(self, rows: list[tuple[int, Utterance]]) -> _Chunk:
        good, bad = [], []
        for (number, row), wave in zip(rows, self._threads.map(lambda pair: self._read(pair[1]), rows), strict=True):
            if isinstance(wave, np.ndarray):
                good.append((number, row, wave))
            else:
                bad.append((row.id, wave[0], wave[1]))
        return _Chunk(good, bad, rows[-1][0] + 1)

    def _read(self, row: Utterance) -> np.ndarray | tuple[str, str]:
        """The wave, or why there is none."""
        identity = self._codec.identity
        if row.duration > self._options.max_seconds:
            return "too long", f"{row.duration:g} s; at most {self._options.max_seconds:g} s (--max-seconds)"
        try:
            path = confine(self._root, row.audio)
        except DataError:
            return "outside the data root", row.audio
        channel = row.channel if self._options.channel == "cut" else None
        try:
            wave = read_span(path, row.start, row.read_duration, sample_rate=identity.sample_rate, channel=channel)
        except (AudioError, RowError) as error:
            detail = error.detail.replace(str(path), row.audio)  # lists of rejects are passed on
            at_fault = "; not in the audio root, see --audio-root" if error.reason == "missing file" else ""
            return error.reason, detail + at_fault
        if (highest := float(np.abs(wave).max(initial=0.0))) > LOUDEST:
            return "not sound", f"a sample of {highest:.3g}, where full scale is 1"
        wave = augmented(self._augmenter, row, wave, identity.sample_rate)
        if len(wave) < self._codec.min_samples:
            return "too short", f"{row.duration:g} s make no unit"
        return wave


def _write(
    journal: Journal, rejects: Rejects, done: _Progress, chunk: _Chunk, units: list[UnitSequence], first: int
) -> None:
    """Append one chunk and commit it."""
    ends = done.units + np.cumsum([len(sequence.units) for sequence in units], dtype=np.int64)
    parts: dict[str, Any] = {
        "units.u16": [sequence.units for sequence in units],
        "durations.u32": [sequence.durations for sequence in units],
        "ends.i64": [ends],
        "rows.i64": [np.array([number for number, _, _ in chunk.rows])],
    }
    for name, arrays in parts.items():
        for array in arrays:
            journal.write(name, np.ascontiguousarray(array, ARRAYS[name]).tobytes())
    journal.write(IDS, "".join(f"{row.id}\n" for _, row, _ in chunk.rows).encode())
    for id, reason, detail in chunk.bad:
        rejects.add(id, reason, detail)
    done.next_row = chunk.next_row
    done.utterances += len(units)
    done.units = int(ends[-1]) if len(ends) else done.units
    done.seconds += sum(row.duration for _, row, _ in chunk.rows)
    done.rejects = dict(rejects.counts)
    journal.commit(dict(vars(done)))
    rejects.check(chunk.next_row - first)


def _finish(
    part: Path, manifest: Manifest, codec: SpeechCodec, shard: Shard, rows: tuple[int, int], done: _Progress
) -> None:
    header = UnitHeader(
        codec=codec.identity,
        manifest_sha256=manifest.header.sha256,
        manifest_rows=manifest.header.rows,
        corpus=manifest.header.corpus,
        split=manifest.header.split,
        shard=shard,
        first_row=rows[0],
        last_row=rows[1],
        utterances=done.utterances,
        units=done.units,
        seconds=round(done.seconds, 3),
        rejects=done.rejects or {},
        files={name: ((part / name).stat().st_size, sha256_file(part / name)) for name in HASHED},
        augmentation=(manifest.header.augmentation or {}).get("hash"),
    )
    write_atomically(part / HEADER, header.to_json())


def _hours(done: float, total: float, seconds: float) -> str:
    return f"{done:.2f}/{total:.2f} h, {done * 3600 / seconds:.0f}x real time"

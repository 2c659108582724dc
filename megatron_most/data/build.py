"""Manifests and units -> one indexed dataset of a task; resumable, sharded, by several worker processes.

Rows go through in chunks; workers turn chunks into bytes and the parent appends them in order. What comes of a row
depends on no chunk's bounds, so the files are the same for any number of workers and of kills, and shards laid end to
end (merge.py) are those that one process would have made.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_most.data.build_frames import require_frames_fit
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.build_worker import Built, Chunk, Worker
from megatron_most.data.dataset import dtype_for, facts_of, find_repeated, save_dataset
from megatron_most.data.dataset_info import OVERLAPS, REJECTS, DatasetInfo, Source
from megatron_most.data.index_format import BIN, IDS, IDX
from megatron_most.data.index_writer import write_index
from megatron_most.data.manifest import Manifest, parse_row
from megatron_most.data.rejects import Rejects
from megatron_most.data.rows import Utterance
from megatron_most.data.shards import WHOLE, Shard, shard_folder, shard_spans
from megatron_most.data.spans import RAW_FRAMES, write_spans
from megatron_most.data.tasks import FRAME_TASKS, INSTRUCT_TASKS, SPEECH_TASKS, TASKS
from megatron_most.data.unit_set import UnitSet
from megatron_most.errors import DataError
from megatron_most.runtime import Meter, in_order, is_done, open_journal
from megatron_most.vocab import TAG_NAMES

CHUNK_ROWS, MOST_ROWS = 512, 8192
_COMMIT_S = 2.0
_RAW = (".lengths.i32", ".modes.i8", ".counts.i32")


@dataclass
class _Progress:
    """What a commit remembers."""

    manifest: int = 0
    next_row: int = -1
    rows: int = 0
    documents: int = 0
    sequences: int = 0
    trained_tokens: int = 0
    longest: int = 0
    microseconds: int = 0
    untimed_units: int = 0
    tokens_by_tag: dict[str, int] = field(default_factory=dict)
    overlaps: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)

    def add(self, built: Built, chunk: Chunk) -> None:
        self.manifest, self.next_row = chunk.manifest, chunk.first_row + len(chunk.lines)
        self.rows += len(chunk.lines)
        self.documents += built.documents
        self.sequences += built.sequences
        self.trained_tokens += built.trained_tokens
        self.longest = max(self.longest, built.longest)
        self.microseconds += built.speech.microseconds
        self.untimed_units += built.speech.untimed_units
        self.tokens_by_tag = dict(Counter(self.tokens_by_tag) + Counter(built.tokens_by_tag))
        self.overlaps = dict(Counter(self.overlaps) + Counter(built.overlap_counts))


def build(inputs: BuildInputs, options: BuildOptions, out: Path | str, shard: Shard = WHOLE) -> Path:
    """One dataset, or one shard of it. Continues a run that was killed."""
    units = _match(inputs, options)
    folder = shard_folder(Path(out), shard)
    job = _describe(inputs, options, shard)
    if is_done(folder, job):
        return folder
    spans = shard_spans(inputs.manifests, shard)
    _verify(inputs, units, spans)
    total = sum(last - first for first, last in spans)
    worker = Worker(inputs=inputs, units=units, options=options)
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(folder, job, _files(inputs), (REJECTS, OVERLAPS)))
        done = _Progress(**journal.progress) if journal.progress else _Progress()
        rejects = Rejects(
            lambda line: journal.write(REJECTS, line),
            options.max_reject_rate,
            done.rejects,
            where=journal.path(REJECTS),
        )
        meter = stack.enter_context(Meter(total, f"build {options.task}", _rows, done=done.rows))
        committed = time.monotonic()
        for chunk, built in in_order(worker, _chunks(inputs, options, spans, done), options.workers):
            for name, data in built.files.items():
                journal.write(name, data)
            for id, reason, detail in built.bad:
                rejects.add(id, reason, detail)
            done.add(built, chunk)
            done.rejects = dict(rejects.counts)
            meter.advance(len(chunk.lines))
            rejects.check(done.rows)
            if time.monotonic() - committed > _COMMIT_S:
                journal.commit(dict(vars(done)))
                committed = time.monotonic()
        rejects.check(done.rows, at_end=True)
        if not done.documents and shard == WHOLE:  # a shard may be empty: there are fewer recordings than shards
            raise DataError(
                f"{folder}: no document came of {done.rows} rows (rejected: {rejects}); look at "
                f"{journal.path(REJECTS)}, and at --part, which leaves rows out"
            )
        journal.commit(dict(vars(done)))
        journal.seal(lambda part: _finish(part, inputs, options, shard, done))
    return folder


def _files(inputs: BuildInputs) -> tuple[str, ...]:
    """What grows with every chunk."""
    return (BIN, IDS, REJECTS, OVERLAPS, *_RAW, *(RAW_FRAMES if inputs.frames else ()))


def _match(inputs: BuildInputs, options: BuildOptions) -> list[UnitSet | None]:
    """The unit set of each manifest. What the task cannot use is refused here, before any work."""
    if not inputs.manifests:
        raise DataError("no manifest; give at least one with --manifest")
    if not 0 <= options.hold_out < 1:
        raise DataError(f"--hold-out {options.hold_out}: not a share; give 0 or more and less than 1")
    if options.workers < 1:
        raise DataError(f"--workers {options.workers}: give at least 1")
    if options.task not in TASKS:
        raise DataError(f"task {options.task!r}: not known; use one of {', '.join(TASKS)}")
    kind = "speech" if options.task in SPEECH_TASKS else "chat" if options.task in INSTRUCT_TASKS else "text"
    for manifest in inputs.manifests:
        if manifest.header.kind != kind:
            raise DataError(f"{manifest.folder}: a {manifest.header.kind} manifest, but {options.task} needs {kind}")
    hashes = [manifest.header.sha256 for manifest in inputs.manifests]
    for manifest in inputs.manifests:
        if hashes.count(manifest.header.sha256) > 1:
            raise DataError(f"{manifest.folder}: the same rows are given twice; give each manifest once")
    for other in inputs.units[1:]:
        inputs.units[0].codec.require_same(other.codec, str(inputs.units[0].path), str(other.path))
    if inputs.units and inputs.units[0].codec.num_units > inputs.tokens.num_units:
        raise DataError(
            f"{inputs.units[0].path}: {inputs.units[0].codec.num_units} units, but the token map has places for "
            f"{inputs.tokens.num_units}; make the token map with --num-units {inputs.units[0].codec.num_units}"
        )
    if inputs.frames:
        require_frames_fit(options.task, FRAME_TASKS, inputs.frames, kind == "chat")
        for manifest in (*inputs.manifests, *inputs.frames.speech):
            manifest.require_plain("a model of frames, whose speech data.augment changes in training,")
    if options.task == "tts":
        for manifest in inputs.manifests:
            manifest.require_plain("who learns to speak")
    if options.copy < 1 or (options.copy > 1 and not (kind == "chat" and any(u.augmentation for u in inputs.units))):
        raise DataError(f"--copy {options.copy}: from 1 on, and for chats whose utterances have augmented units")
    if options.task == "interleaved" and options.task_options.by == "segments":
        for manifest in inputs.manifests:
            manifest.require_plain("interleaving by segments, which joins neighbours,")
    if kind != "speech" or inputs.frames:
        return [None] * len(inputs.manifests)
    by_manifest = {units.manifest_sha256: units for units in inputs.units}
    for manifest in inputs.manifests:
        if manifest.header.sha256 not in by_manifest:
            raise DataError(f"{manifest.folder}: none of the unit sets was made from it; give its units with --units")
    return [by_manifest[sha] for sha in hashes]


def _verify(inputs: BuildInputs, units: list[UnitSet | None], spans: list[tuple[int, int]]) -> None:
    """Prove what this shard reads: the manifests it has rows of, and the parts of their units that hold these rows.
    Chats may name any utterance.
    """
    for manifest, of_rows, (first, last) in zip(inputs.manifests, units, spans, strict=True):
        if first < last:
            manifest.verify()
            for part in of_rows.shards if of_rows else ():
                if part.header.first_row < last and first < part.header.last_row:
                    part.verify()
    if not any(units):
        for units_set in inputs.units:
            for part in units_set.shards:
                part.verify()


def _describe(inputs: BuildInputs, options: BuildOptions, shard: Shard) -> dict[str, Any]:
    """All that decides the bytes; the number of workers does not."""
    codec = inputs.units[0].codec.to_dict() if inputs.units else None
    return {
        "what": "dataset",
        "task": options.task,
        "manifests": [manifest.header.sha256 for manifest in inputs.manifests],
        "units": [_units_hash(units) for units in inputs.units],
        "codec": codec,
        "token_map": inputs.tokens.hash,
        "tokenizer": inputs.tokenizer.identity.to_dict(),
        "templates": inputs.templates.hash,
        **_phrasing(inputs),
        "evaluation": {known.name: known.hash for known in inputs.evaluation},
        "shard": list(shard),
        **(inputs.frames.describe() if inputs.frames else {}),
        **_plain(options),
    }


def _plain(options: BuildOptions) -> dict[str, Any]:
    """The options that decide the bytes, by their names on the command line."""
    kept = {name: getattr(options, name) for name in ("part", "hold_out", "hold_out_by", "refuse_overlap")}
    if options.copy != 1:
        kept["copy"] = options.copy
    if options.task == "interleaved":
        kept |= {f"interleave.{name}": value for name, value in asdict(options.task_options).items()}
    return kept


def _phrasing(inputs: BuildInputs) -> dict[str, int]:
    return {"phrasing_seed": inputs.templates.seed} if inputs.templates.seed else {}


def _units_hash(units: UnitSet) -> str:
    sums = "".join(digest for shard in units.shards for _, digest in shard.header.files.values())
    return hashlib.sha256(sums.encode()).hexdigest()


def _chunks(
    inputs: BuildInputs, options: BuildOptions, spans: list[tuple[int, int]], done: _Progress
) -> Iterator[Chunk]:
    """What is left to do. Interleaving needs the cuts of a recording together: there a chunk ends with a recording, or
    with so many rows of it, counted from its first.
    """
    whole_recordings = options.task == "interleaved"
    for number, (manifest, (first, last)) in enumerate(zip(inputs.manifests, spans, strict=True)):
        if number < done.manifest:
            continue
        start = max(first, done.next_row) if number == done.manifest else first
        if start >= last:  # to skip rows is to read them
            continue
        lines: list[bytes] = []
        recording, begun = None, 0
        for row, line in manifest.lines(start, last):
            if len(lines) >= CHUNK_ROWS:
                goes_on = whole_recordings and _recording(line) == recording and len(lines) - begun < MOST_ROWS
                if not goes_on:
                    yield Chunk(number, row - len(lines), lines)
                    lines = []
            lines.append(line)
            if whole_recordings and len(lines) == CHUNK_ROWS:
                recording, begun = _recording(line), CHUNK_ROWS - 1
                while begun and _recording(lines[begun - 1]) == recording:
                    begun -= 1
        if lines:
            yield Chunk(number, last - len(lines), lines)


def _recording(line: bytes) -> str:
    row = parse_row("speech", line)
    assert isinstance(row, Utterance), "interleaving is of speech"
    return row.recording


def _finish(part: Path, inputs: BuildInputs, options: BuildOptions, shard: Shard, done: _Progress) -> None:
    repeated, examples = find_repeated([part / IDS])
    if repeated:
        raise DataError(
            f"{part}: {repeated} document ids come from more than one row, the first {examples[0]!r}: manifests of one "
            "corpus overlap; give each row once"
        )
    lengths, modes, counts = (part / name for name in _RAW)
    write_index(part / IDX, lengths, modes, counts, dtype_for(inputs.tokens))
    if inputs.frames:
        write_spans(part)
    info = DatasetInfo(
        task=options.task,
        tokens=inputs.tokens,
        codec=inputs.units[0].codec if inputs.units else None,
        tokenizer=inputs.tokenizer.identity,
        templates=(inputs.templates.name, inputs.templates.hash),
        documents=done.documents,
        sequences=done.sequences,
        tokens_by_tag={name: done.tokens_by_tag.get(name, 0) for name in TAG_NAMES},
        trained_tokens=done.trained_tokens,
        longest=done.longest,
        seconds=done.microseconds / 1e6,
        untimed_units=done.untimed_units,
        files={},
        provenance=tuple(_source(manifest) for manifest in inputs.manifests),
        rejects=done.rejects,
        overlaps={known.name: done.overlaps.get(known.name, 0) for known in inputs.evaluation},
        options={
            "shard": list(shard),
            **_plain(options),
            **_phrasing(inputs),
            **(inputs.frames.options if inputs.frames else {}),
        },
        frames=inputs.frames.source.identity if inputs.frames else None,
        wording=inputs.templates.wording,
    )
    save_dataset(replace(info, files=facts_of(part, info.data_files)), part)


def _source(manifest: Manifest) -> Source:
    head = manifest.header
    return Source(
        corpus=head.corpus,
        split=head.split,
        licence=head.licence,
        source=head.source,
        language=head.language,
        normalisation=head.normalisation,
        manifest_sha256=head.sha256,
        rows=head.rows,
    )


def _rows(done: float, total: float, seconds: float) -> str:
    return f"{int(done)}/{int(total)} rows"

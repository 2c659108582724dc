"""One chunk of manifest lines -> bytes of a dataset; what each worker process of `build` does."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field

from megatron_most.data.augment import drawn_id
from megatron_most.data.build_frames import SpanFinder
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.dataset import dtype_for
from megatron_most.data.document import NO_SPEECH, AudioSpan, DocumentRuns, Speech
from megatron_most.data.index_writer import encode_documents
from megatron_most.data.manifest import parse_row
from megatron_most.data.overlap import Overlap, OverlapFinder
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import Row, Utterance
from megatron_most.data.spans import encode_spans
from megatron_most.data.tasks import FrameRow, TaskContext, make_documents
from megatron_most.data.unit_set import UnitSet
from megatron_most.errors import DataError
from megatron_most.speech import UnitSequence
from megatron_most.vocab import AUDIO, TAG_NAMES, tag_id


@dataclass(frozen=True)
class Chunk:
    """Neighbouring lines of one manifest."""

    manifest: int
    first_row: int
    lines: list[bytes]


@dataclass
class Built:
    """What came of a chunk."""

    files: dict[str, bytes]
    bad: list[tuple[str, str, str]]
    documents: int = 0
    sequences: int = 0
    trained_tokens: int = 0
    longest: int = 0
    speech: Speech = NO_SPEECH
    tokens_by_tag: dict[str, int] = field(default_factory=dict)
    overlap_counts: dict[str, int] = field(default_factory=dict)


class Worker:
    """Called with a chunk, in this process or a forked one."""

    def __init__(self, *, inputs: BuildInputs, units: list[UnitSet | None], options: BuildOptions) -> None:
        self._inputs, self._units, self._options = inputs, units, options
        self._kinds = [manifest.header.kind for manifest in inputs.manifests]
        self._finder = OverlapFinder(inputs.evaluation) if inputs.evaluation else None
        self._spans = SpanFinder(inputs.frames) if inputs.frames else None
        self._context = TaskContext(
            token_map=inputs.tokens,
            tokenizer=inputs.tokenizer,
            templates=inputs.templates,
            units_of=self._units_of,
            heard_of=self._heard_of,
            options=options.task_options,
            frames_tag=tag_id(inputs.frames.tag) if inputs.frames else AUDIO,
            spans_of=self._spans.by_id if self._spans else None,
        )
        self._dtype = dtype_for(inputs.tokens)

    def __call__(self, chunk: Chunk) -> Built:
        bad: list[tuple[int, tuple[str, str, str]]] = []  # by row, for no order must depend on chunks
        numbers: dict[str, int] = {}
        rows: list[Row | tuple[Utterance, UnitSequence] | FrameRow] = []
        overlaps: list[bytes] = []
        counts: Counter[str] = Counter()
        units, kind = self._units[chunk.manifest], self._kinds[chunk.manifest]
        takes_all = self._options.part == "all"
        for number, line in enumerate(chunk.lines, chunk.first_row):
            try:
                row = parse_row(kind, line)
                if not (takes_all or self._is_in(row)):
                    continue
                sequence: UnitSequence | AudioSpan | None = None
                if self._spans is not None and isinstance(row, Utterance):
                    sequence = self._spans.span(row, self._inputs.manifests[chunk.manifest])
                if units is not None and (sequence := units.find(number)) is None:
                    raise RowError("no units", "the utterance was rejected when units were extracted")
                if self._finder is not None and (hits := self._finder.find(row)):
                    overlaps += [_overlap_line(row, hit) for hit in hits]
                    counts.update({hit.set_name for hit in hits})
                    if self._options.refuse_overlap:
                        detail = "; ".join(f"{hit.kind} of {hit.set_name}: {hit.what}" for hit in hits)
                        raise RowError(f"overlaps {hits[0].set_name}", detail)
            except RowError as error:
                bad.append((number, (_id(line, number), error.reason, error.detail)))
                continue
            numbers[row.id] = number
            is_pair = sequence is not None and isinstance(row, Utterance)
            rows.append((row, sequence) if is_pair else row)  # type: ignore[arg-type]
        try:
            documents, rejections = make_documents(self._options.task, rows, self._context)
        except DataError as error:
            raise DataError(f"{self._inputs.manifests[chunk.manifest].folder}: {error}") from error
        bad += [(numbers[one.id], (one.id, one.reason, one.detail)) for one in rejections]
        built = self._encode(documents, [entry for _, entry in sorted(bad)], overlaps)
        built.overlap_counts = dict(counts)
        return built

    def _encode(self, documents: list[DocumentRuns], bad: list[tuple[str, str, str]], overlaps: list[bytes]) -> Built:
        encoded = encode_documents(documents, self._dtype)
        files = {
            "tokens.bin": encoded.tokens,
            "ids.txt": encoded.ids,
            "overlaps.jsonl": b"".join(overlaps),
            ".lengths.i32": encoded.lengths,
            ".modes.i8": encoded.modes,
            ".counts.i32": encoded.counts,
        }
        if self._spans is not None:
            files |= encode_spans(documents)
        built = Built(files=files, bad=bad, documents=len(documents), sequences=len(encoded.modes))
        by_tag = [0] * len(TAG_NAMES)
        for document in documents:
            length = 0
            for run in document.runs:
                size = len(run.ids)
                length += size
                by_tag[run.tag] += size
                built.trained_tokens += size * run.is_trained
            built.longest = max(built.longest, length)
            built.speech += document.speech
        built.tokens_by_tag = dict(zip(TAG_NAMES, by_tag, strict=True))
        return built

    def _is_in(self, row: Row) -> bool:
        """Whether a row belongs to the part being built: a pure function of its speaker, recording or id."""
        key: str | None = row.id
        if isinstance(row, Utterance) and row.augmented:
            key = row.augmented.of  # what is held out stays so in every copy
        if isinstance(row, Utterance) and self._options.hold_out_by != "row":
            key = row.speaker if self._options.hold_out_by == "speaker" else row.recording
            if key is None:
                raise RowError("no speaker", "held out by speaker; try --hold-out-by recording")
        assert key is not None, "ids are there"
        at = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
        return (at < self._options.hold_out) == (self._options.part == "valid")

    def _units_of(self, id: str) -> UnitSequence | None:
        """Plain ones: an assistant must not learn to speak with noise and echo."""
        for units in self._inputs.units:
            if units.augmentation is None and (found := units.by_id(id)) is not None:
                return found
        return None

    def _heard_of(self, id: str) -> UnitSequence | None:
        """Augmented ones where there are such; else what was said plainly."""
        for units in self._inputs.units:
            by = units.augmentation
            if by is not None and (found := units.by_id(drawn_id(id, by, self._options.copy))) is not None:
                return found
        return self._units_of(id)


def _overlap_line(row: Row, hit: Overlap) -> bytes:
    entry = {"id": row.id, "set": hit.set_name, "kind": hit.kind, "what": hit.what}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _id(line: bytes, number: int) -> str:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return f"row {number + 1}"

"""Which document comes next: tasks blended by weight, each from an endless shuffled stream of its own.

How many of the first N documents are of which task, and which document a task's j-th is, are closed forms: no state
is kept, nothing drifts, and any place of the stream can be asked for alone. Weights count documents, and documents
that are left out (longer than a row, under `drop`) do not count.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from megatron_most.data.batch import Document
from megatron_most.data.packing import LONG_POLICIES, LongPolicy
from megatron_most.data.shuffle import Permutation
from megatron_most.errors import ConfigError, DataError
from megatron_most.vocab import TokenMap

if TYPE_CHECKING:
    from megatron_most.data.frame_augment import FrameAugment
    from megatron_most.data.frame_opening import FrameOpener

SPLIT_TASKS = ("text-lm", "audio-lm", "interleaved")
"""Tasks whose long documents are split unless told otherwise: any part of them is as good as another."""
_BLOCK = 1 << 20


class DocumentSource(Protocol):
    """An indexed dataset, or anything that can be read like one."""

    @property
    def fingerprint(self) -> str:
        """Changes when any document does."""

    @property
    def lengths(self) -> np.ndarray:
        """Ids of each document."""

    def __len__(self) -> int: ...

    def document(self, index: int) -> Document: ...

    def document_id(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What one task of a blend is read from, and how often."""

    name: str
    sources: Sequence[DocumentSource]
    """Shards or corpora, taken as one after the other in this order."""
    weight: float | Fraction = 1.0
    """Its part of all documents, relative to the other tasks'."""
    long_policy: LongPolicy | None = None
    """None: `split` for text-lm, audio-lm and interleaved, `drop` for the others."""
    codec: str | None = None
    """What made the units, as `CodecIdentity.key` names it; one blend has one. None: not known, or no units."""
    tokenizer: str | None = None
    """Likewise of the text."""
    frames: str | None = None
    """Likewise of the continuous frames, as `FrameIdentity.key` names it."""

    def __post_init__(self) -> None:
        is_number = isinstance(self.weight, int | float | Fraction) and not isinstance(self.weight, bool)
        if not is_number or not math.isfinite(self.weight) or self.weight <= 0:
            raise ConfigError(f"{self.name}.weight", self.weight, "not a number above 0", "leave the task out instead")
        if self.long_policy is not None and self.long_policy not in LONG_POLICIES:
            raise ConfigError(
                f"{self.name}.long_policy", self.long_policy, "unknown", f"use one of {', '.join(LONG_POLICIES)}"
            )
        if not self.sources:
            raise DataError(f"task {self.name}: no dataset; name one, or leave the task out")
        for number, source in enumerate(self.sources):
            if not len(source):
                raise DataError(f"task {self.name}, dataset {number}: holds no document; leave it out")
            if not source.fingerprint:
                raise DataError(f"task {self.name}, dataset {number}: without a fingerprint; open it with open_dataset")

    @property
    def policy(self) -> LongPolicy:
        return self.long_policy or ("split" if self.name in SPLIT_TASKS else "drop")

    @property
    def exact_weight(self) -> Fraction:
        """0.4 as 2/5, not as the nearest binary number."""
        return Fraction(str(self.weight))


def open_task(
    folders: Sequence[Path | str],
    token_map: TokenMap,
    *,
    name: str | None = None,
    weight: float = 1.0,
    long_policy: LongPolicy | None = None,
    features_of: FrameOpener | None = None,
    augment: FrameAugment | None = None,
) -> TaskSpec:
    """Datasets of one task, checked against each other and the model's vocabulary. `name` is the task's own if not
    given; the default policy is that of the datasets' task, whatever it is called here. `features_of` says where the
    features of continuous frames come from, and `augment` how they are changed.
    """
    from megatron_most.data.dataset import open_dataset
    from megatron_most.data.frames_read import FrameDocuments
    from megatron_most.data.spans import SpanTable

    opened = [(folder, *open_dataset(folder)) for folder in folders]
    if not opened:
        raise DataError(f"task {name}: no dataset; name one, or leave the task out")
    made = []
    sources: list[DocumentSource] = []
    for folder, info, documents in opened:
        token_map.require_same(info.tokens, str(folder))
        codec, tokenizer = info.codec, info.tokenizer
        frames = info.frames.key if info.frames else None
        made.append((info.task, codec.key if codec else None, tokenizer.sha256 if tokenizer else None, frames))
        for what, first, here in zip(
            ("task", "codec", "tokenizer", "source of frames"), made[0], made[-1], strict=True
        ):
            if first != here:
                raise DataError(
                    f"{folder}: its {what} is {here}, but {first} in {opened[0][0]}; datasets taken as one must agree"
                )
        if info.frames is None:
            sources.append(documents)
            continue
        if features_of is None:
            raise DataError(f"{folder}: holds continuous frames, which only training reads")
        table = SpanTable(Path(folder), documents.lengths)
        features = features_of(Path(folder), info, table, changes_sound=augment is not None and augment.changes_sound)
        width, wave_id = info.frames.width, info.tokens.begin_wave_id
        stack = info.frames.stack
        sources.append(FrameDocuments(documents, table, width, wave_id, features, augment=augment, stack=stack))
    task, codec_key, tokenizer_hash, frames_key = made[0]
    return TaskSpec(
        name=name or task,
        sources=sources,
        weight=weight,
        long_policy=long_policy or ("split" if task in SPLIT_TASKS else "drop"),
        codec=codec_key,
        tokenizer=tokenizer_hash,
        frames=frames_key,
    )


class Blend:
    """Tasks and their weights."""

    def __init__(self, tasks: Sequence[TaskSpec]) -> None:
        if not tasks:
            raise DataError("a blend of no tasks; name at least one")
        names = [task.name for task in tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"task {twice[0]}: named twice in one blend; give each name once, with all its datasets")
        for what in ("codec", "tokenizer", "frames"):
            made_by = {getattr(task, what): task.name for task in tasks if getattr(task, what) is not None}
            if len(made_by) > 1:
                one, other, *_ = made_by.values()
                raise DataError(
                    f"tasks {one} and {other}: made with different {what.rstrip('s')}s; one model can learn one only"
                )
        self.tasks = tuple(tasks)
        total = sum((task.exact_weight for task in tasks), Fraction(0))
        self.shares = tuple(task.exact_weight / total for task in tasks)
        # Two lightest parts become one, until one is left: as (whole, first part, second part, the first's share).
        self._splits: list[tuple[int, int, int, Fraction]] = []
        parts = [(share, number) for number, share in enumerate(self.shares)]
        heapq.heapify(parts)
        while len(parts) > 1:
            (share, first), (other_share, second) = heapq.heappop(parts), heapq.heappop(parts)
            whole = len(tasks) + len(self._splits)
            self._splits.append((whole, first, second, share / (share + other_share)))
            heapq.heappush(parts, (share + other_share, whole))

    def counts(self, documents: int) -> tuple[int, ...]:
        """How many of the first `documents` are of each task; never fewer when `documents` grows.

        The whole is split in two, each part in two again, the first part having round(documents * share). Plain
        roundings of cumulative weights would be simpler, but take documents back from a task with less than one in a
        window. Off the exact share by less than 1 with up to three tasks, and by less than 1.7 with any number (the
        parts on a task's way up grow at least as Fibonacci's numbers do).
        """
        of_part = {len(self.tasks) + len(self._splits) - 1: documents}
        for whole, first, second, share in reversed(self._splits):
            of_first = (2 * of_part[whole] * share.numerator + share.denominator) // (2 * share.denominator)
            of_part[first], of_part[second] = of_first, of_part[whole] - of_first
        return tuple(of_part[number] for number in range(len(self.tasks)))


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """One task's data: what there is, and what a row is too short for. Known before the first step."""

    name: str
    share: float
    documents: int
    """Of one epoch, those left out not counted."""
    ids: int
    long_policy: LongPolicy
    long_documents: int
    """Longer than a row: so many are split, dropped or cut in an epoch."""
    ids_left_out: int
    """Of dropped documents and cut-off beginnings."""


@dataclass(frozen=True, kw_only=True)
class TaskProgress:
    """What has been taken of one task up to some place."""

    name: str
    documents: int
    epochs: float
    long_documents: int
    """Split or cut; dropped ones are never taken."""


class TaskStream:
    """A task's documents, numbered through its sources in order: one after the other, or shuffled for ever."""

    def __init__(self, spec: TaskSpec, row_length: int, seed: int) -> None:
        self.spec, self._most, self._seed = spec, row_length + 1, seed
        self._starts = np.cumsum([0, *(len(source) for source in spec.sources)])
        too_long = []
        self.num_ids, self.num_long, self.ids_left_out = 0, 0, 0
        for number, source in enumerate(spec.sources):
            lengths = np.asarray(source.lengths)
            if len(lengths) != len(source):
                raise DataError(
                    f"task {spec.name}, dataset {number}: {len(lengths)} lengths for {len(source)} documents; verify it"
                )
            if lengths.min() < 2:
                raise DataError(
                    f"{self.name_of(number, int(lengths.argmin()))}: has {lengths.min()} tokens, at least 2 are needed "
                    "to learn one from another; build the dataset without it"
                )
            long = np.flatnonzero(lengths > self._most)
            if long.size and spec.policy == "refuse":
                raise DataError(
                    f"{self.name_of(number, int(long[0]))}: {lengths[long[0]]} tokens do not fit a row of {row_length} "
                    f"({long.size} such documents); choose long_policy split, drop or cut_left, or longer rows"
                )
            kept_ids = {"drop": 0, "cut_left": long.size * self._most}.get(spec.policy, int(lengths[long].sum()))
            self.ids_left_out += int(lengths[long].sum()) - kept_ids
            self.num_ids += int(lengths.sum())
            self.num_long += long.size
            too_long.append(long + self._starts[number])
        left_out = np.concatenate(too_long) if spec.policy == "drop" else np.empty(0, dtype=np.int64)
        self._kept_before = left_out - np.arange(len(left_out))  # documents kept before each that is left out
        self.num_ids -= self.ids_left_out
        self.num_documents = int(self._starts[-1]) - len(left_out)
        if not self.num_documents:
            raise DataError(f"task {spec.name}: every document is longer than a row of {row_length}; use longer rows")

    def draw(self, first: int, stop: int) -> np.ndarray:
        """Numbers of the first-th to (stop-1)-th documents of the endless stream, each once in an epoch."""
        parts = []
        while first < stop:
            epoch, at = divmod(first, self.num_documents)
            end = min(self.num_documents, at + stop - first)
            parts.append(Permutation(self.num_documents, self._seed, "task", self.spec.name, epoch)(np.arange(at, end)))
            first += end - at
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def epochs(self, first: int, stop: int) -> np.ndarray:
        """Which epoch each of these is of."""
        return np.arange(first, stop) // self.num_documents

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, document in it, its ids) of each number in 0..num_documents-1."""
        numbers = numbers + np.searchsorted(self._kept_before, numbers, side="right")
        sources = np.searchsorted(self._starts, numbers, side="right") - 1
        documents = numbers - self._starts[sources]
        num_ids = np.empty(len(numbers), dtype=np.int64)
        for number in np.unique(sources).tolist():
            here = sources == number
            num_ids[here] = self.spec.sources[number].lengths[documents[here]]
        return sources, documents, num_ids

    def long_before(self, stop: int) -> int:
        """Long documents among the first `stop` of the stream: split or cut, for dropped ones are not in it."""
        if self.spec.policy == "drop" or not self.num_long:
            return 0
        epochs, rest = divmod(stop, self.num_documents)
        first, count = epochs * self.num_documents, epochs * self.num_long
        for start in range(first, first + rest, _BLOCK):
            num_ids = self.locate(self.draw(start, min(start + _BLOCK, first + rest)))[2]
            count += int((num_ids > self._most).sum())
        return count

    def summary(self, share: float) -> TaskSummary:
        return TaskSummary(
            name=self.spec.name,
            share=share,
            documents=self.num_documents,
            ids=self.num_ids,
            long_policy=self.spec.policy,
            long_documents=self.num_long,
            ids_left_out=self.ids_left_out,
        )

    def name_of(self, source: int, document: int) -> str:
        return f"task {self.spec.name}, document {self.spec.sources[source].document_id(document)}"

"""From a blend of datasets to the batches of each step, from any place of the stream, on any number of data ranks.

The stream is cut into windows of so many documents; a window's documents are packed into rows by their lengths alone.
All that is in window w is a function of the seed and w, so a Position (window, row) is all that resuming needs: every
rank makes the same plan of the global step, and reads only the rows it is dealt.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from megatron_most.data.batch import Document, PackedBatch, pack_rows
from megatron_most.data.blend import Blend, TaskProgress, TaskSpec, TaskStream, TaskSummary
from megatron_most.data.frames_read import FrameDocuments
from megatron_most.data.packing import PackedRow, Piece, cut_long, deal_rows, pack_lengths
from megatron_most.data.place import Position, ReaderState, TaskState
from megatron_most.data.shuffle import Permutation
from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import num_cores
from megatron_most.vocab import TokenMap

STREAM_VERSION = 1
"""Raised when the same seed would give another order: a place kept by the older code is then refused."""


class Reader:
    """The stream of a blend, and its validation sets. Building it reads lengths only."""

    def __init__(
        self,
        blend: Blend,
        *,
        row_length: int,
        seed: int,
        token_map: TokenMap,
        window: int = 2048,
        validation: Sequence[TaskSpec] = (),
        validation_documents: int = 1024,
        threads: int = 0,
    ) -> None:
        """`threads` hear what is kept as sound; 0: as many as there are cores, eight at most."""
        sizes = {"row_length": row_length, "window": window, "validation_documents": validation_documents}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ConfigError(name, value, "not a whole number from 1 on", "use one")
        self.blend, self.row_length, self.seed, self.token_map, self.window = blend, row_length, seed, token_map, window
        self.validation_documents = validation_documents
        names = [task.name for task in blend.tasks]
        self._streams = [TaskStream(spec, row_length, seed) for spec in (*blend.tasks, *validation)]
        self._validation = {spec.name: len(names) + at for at, spec in enumerate(validation)}
        if len(self._validation) < len(validation):
            raise DataError("two validation sets of one name; give each name once, with all its datasets")
        self.task_names = (*names, *(name for name in self._validation if name not in names))
        """In the order of `PackedBatch.tasks_BS`: a validation set has the number of the task of its name."""
        self._numbers = [self.task_names.index(stream.spec.name) for stream in self._streams]
        self._num_threads = threads
        self._is_slow = [any(getattr(source, "is_slow", False) for source in s.spec.sources) for s in self._streams]
        self._keeps_end = np.array([stream.spec.policy == "cut_left" for stream in self._streams])
        self.window_rows = functools.lru_cache(maxsize=4)(self._plan_window)
        """The rows of a window."""

    # The plan: the same on all ranks, from lengths alone.

    def _plan_window(self, window: int) -> tuple[PackedRow, ...]:
        before, after = (self.blend.counts(number * self.window) for number in (window, window + 1))
        drawn = [
            (task, self._streams[task].draw(first, stop), self._streams[task].epochs(first, stop))
            for task, (first, stop) in enumerate(zip(before, after, strict=True))
        ]
        order = Permutation(self.window, self.seed, "documents", window)(np.arange(self.window))
        rows = self._pack(drawn, order)
        return tuple(rows[at] for at in Permutation(len(rows), self.seed, "rows", window)(range(len(rows))).tolist())

    def _pack(self, drawn: Sequence[tuple[int, np.ndarray, np.ndarray]], order: np.ndarray) -> list[PackedRow]:
        """Rows of the drawn documents (task, numbers, epochs), which are taken in `order`."""
        located = [self._streams[task].locate(numbers) for task, numbers, _ in drawn]
        tasks = np.repeat([task for task, _, _ in drawn], [len(numbers) for _, numbers, _ in drawn])[order]
        epochs = np.concatenate([epochs for _, _, epochs in drawn])[order]
        sources, documents, num_ids = (np.concatenate(parts)[order] for parts in zip(*located, strict=True))
        which, starts, stops = cut_long(num_ids, self._keeps_end[tasks], self.row_length)
        columns = (tasks[which], sources[which], documents[which], starts, stops, epochs[which])
        pieces = list(map(Piece, *(column.tolist() for column in columns)))
        return [PackedRow(tuple(pieces[at] for at in row)) for row in pack_lengths(stops - starts, self.row_length)]

    def take(self, position: Position, num_rows: int) -> tuple[list[PackedRow], Position]:
        """The next rows of the stream, and the place after them."""
        window, row = position.window, position.row
        self._check_place(position)
        taken: list[PackedRow] = []
        while len(taken) < num_rows:
            rows = self.window_rows(window)
            more = rows[row : row + num_rows - len(taken)]
            taken += more
            row += len(more)
            if row == len(rows):
                window, row = window + 1, 0
        return taken, Position(window, row)

    def take_window(self, position: Position) -> tuple[list[PackedRow], Position]:
        """For batches that count documents: the rows of a whole window, as many as they happen to be."""
        if position.row:
            raise DataError(f"place in the data: row {position.row} of a window, but batches of documents begin at 0")
        return list(self.window_rows(position.window)), Position(position.window + 1)

    def validation_rows(self, task: str) -> list[PackedRow]:
        """The first `validation_documents` documents of a validation set, each once, in their order but for packing."""
        if task not in self._validation:
            raise DataError(f"no validation set {task}; there are: {', '.join(self._validation) or 'none'}")
        number = self._validation[task]
        stop = min(self.validation_documents, self._streams[number].num_documents)
        rows: list[PackedRow] = []
        for first in range(0, stop, self.window):
            numbers = np.arange(first, min(first + self.window, stop))
            rows += self._pack([(number, numbers, np.zeros_like(numbers))], np.arange(len(numbers)))
        return rows

    def validation_fingerprints(self, task: str) -> list[str]:
        """Of the datasets of a validation set."""
        return [source.fingerprint for source in self._streams[self._validation[task]].spec.sources]

    def validation_samples(self, task: str) -> Iterator[tuple[str, Document]]:
        """The validation documents one by one, with their names, as they are read."""
        for row in self.validation_rows(task):
            for piece in row.pieces:
                if piece.start == 0:
                    yield self._name(piece), self._read(piece)

    # Reading: of the rows asked for only.

    def batch(self, rows: Sequence[PackedRow]) -> PackedBatch:
        """Read the rows' documents."""
        whole = self._read_all(rows)
        return self._pack_batch(rows, whole)

    def _pack_batch(self, rows: Sequence[PackedRow], whole: Mapping[tuple[int, ...], Document]) -> PackedBatch:
        documents = [[_part(whole[piece.key], piece) for piece in row.pieces] for row in rows]
        tasks = [[self._numbers[piece.task] for piece in row.pieces] for row in rows]
        return pack_rows(documents, self.row_length, self.token_map, tasks)

    def _read_all(self, rows: Sequence[PackedRow]) -> dict[tuple[int, ...], Document]:
        """The documents that the rows hold, each once; those whose sound has to be heard, by several threads."""
        pieces = {piece.key: piece for row in rows for piece in row.pieces}
        slow = [key for key, piece in pieces.items() if self._is_slow[piece.task]]
        if not slow:
            return {key: self._read(piece) for key, piece in pieces.items()}
        heard = dict(zip(slow, self._threads.map(lambda key: self._read(pieces[key]), slow), strict=True))
        return {key: heard[key] if key in heard else self._read(piece) for key, piece in pieces.items()}

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._num_threads or min(8, num_cores()), thread_name_prefix="hear")

    def _read(self, piece: Piece) -> Document:
        source = self._streams[piece.task].spec.sources[piece.source]
        if isinstance(source, FrameDocuments):
            document = source.draw(piece.document, piece.epoch)
        else:
            document = source.document(piece.document)
        if len(document.ids) != source.lengths[piece.document]:
            raise DataError(
                f"{self._name(piece)}: holds {len(document.ids)} tokens where its index says "
                f"{source.lengths[piece.document]}; verify the dataset"
            )
        return document

    def batches(self, rows: Sequence[PackedRow], rank: int, ranks: int, micro_batch_size: int) -> list[PackedBatch]:
        """Data rank `rank`'s micro-batches of a step of these rows; as many on each rank."""
        dealt = deal_rows(rows, rank, ranks, micro_batch_size)
        whole = self._read_all([row for mine in dealt for row in mine])  # at once: threads have more to share
        return [self._pack_batch(mine, whole) for mine in dealt]

    @property
    def validation_names(self) -> tuple[str, ...]:
        """Tasks that have a validation set."""
        return tuple(self._validation)

    def validation_batches(self, task: str, rank: int, ranks: int, micro_batch_size: int) -> Iterator[PackedBatch]:
        """Data rank `rank`'s part of a validation set; as many on each rank."""
        return (self.batch(dealt) for dealt in deal_rows(self.validation_rows(task), rank, ranks, micro_batch_size))

    def names(self, rows: Sequence[PackedRow]) -> list[list[str]]:
        """Which documents each row holds, in order, for reports of errors."""
        return [[f"{self._name(piece)}[{piece.start}:{piece.stop}]" for piece in row.pieces] for row in rows]

    def _name(self, piece: Piece) -> str:
        return self._streams[piece.task].name_of(piece.source, piece.document)

    # What has been seen, and whether the stream is still the same.

    def summaries(self) -> tuple[TaskSummary, ...]:
        """One for each task of the blend, then one for each validation set (of share 0)."""
        shares = [float(share) for share in self.blend.shares] + [0.0] * len(self._validation)
        return tuple(stream.summary(share) for stream, share in zip(self._streams, shares, strict=True))

    def progress(self, position: Position) -> tuple[TaskProgress, ...]:
        """Of each task, up to a place. A document counts where it begins. Costs a look at every document of a begun
        epoch if the task has long ones, so it is for logs, not for every step.
        """
        self._check_place(position)
        before = self.blend.counts(position.window * self.window)
        begun, long = [0] * len(before), [0] * len(before)
        for row in self.window_rows(position.window)[: position.row] if position.row else ():
            for piece in row.pieces:
                spec = self._streams[piece.task].spec
                if piece.start == 0 or spec.policy == "cut_left":
                    begun[piece.task] += 1
                    long[piece.task] += bool(spec.sources[piece.source].lengths[piece.document] > self.row_length + 1)
        counts = [first + more for first, more in zip(before, begun, strict=True)]
        streams = self._streams[: len(before)]
        return tuple(
            TaskProgress(
                name=stream.spec.name,
                documents=count,
                epochs=count / stream.num_documents,
                long_documents=stream.long_before(first) + more,
            )
            for stream, count, first, more in zip(streams, counts, before, long, strict=True)
        )

    def state(self, position: Position) -> ReaderState:
        """To be kept with a checkpoint."""
        tasks = tuple(
            TaskState(
                name=stream.spec.name,
                share=str(share),
                long_policy=stream.spec.policy,
                documents=stream.num_documents,
                fingerprints=tuple(source.fingerprint for source in stream.spec.sources),
            )
            for stream, share in zip(self._streams, self.blend.shares, strict=False)  # validation has no part in it
        )
        return ReaderState(
            position=position,
            version=STREAM_VERSION,
            seed=self.seed,
            row_length=self.row_length,
            window=self.window,
            token_map=self.token_map.hash,
            tasks=tasks,
        )

    def check_state(self, state: ReaderState) -> Position:
        """The place to go on from, if this reader's stream is the one it was kept of."""
        ours = self.state(state.position)
        for name in ("version", "seed", "row_length", "window", "token_map"):
            _require_same(name, getattr(state, name), getattr(ours, name))
        _require_same("tasks", [task.name for task in state.tasks], [task.name for task in ours.tasks])
        for theirs, mine in zip(state.tasks, ours.tasks, strict=True):
            for name in ("share", "long_policy"):
                _require_same(f"{name} of task {mine.name}", getattr(theirs, name), getattr(mine, name))
            where = f"datasets of task {mine.name}"
            _require_same(f"number of {where}", len(theirs.fingerprints), len(mine.fingerprints))
            for number, (was, now) in enumerate(zip(theirs.fingerprints, mine.fingerprints, strict=True)):
                _require_same(f"fingerprint of dataset {number} of task {mine.name}", was, now)
            _require_same(f"documents of task {mine.name}", theirs.documents, mine.documents)
        self._check_place(state.position)
        return state.position

    def _check_place(self, position: Position) -> None:
        if position.row and position.row >= (rows := len(self.window_rows(position.window))):
            raise DataError(
                f"place in the data: row {position.row} of window {position.window}, which has {rows} rows; "
                "it is damaged or of other data"
            )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One data rank's part of a step, and all ranks' rows of it."""

    batches: list[PackedBatch]
    rows: list[PackedRow]
    after: Position
    """Where the next step begins."""

    def filled(self, row_length: int) -> float:
        """The part of the rows' places that is not pads, fillers not counted."""
        return sum(row.filled for row in self.rows) / (len(self.rows) * row_length)


class Steps:
    """The steps of one data rank from `position` on, for ever. With `ahead`, a thread reads the next one meanwhile;
    what goes wrong there is raised by the `next()` that asks for that step.
    """

    def __init__(
        self,
        reader: Reader,
        position: Position,
        *,
        rows: int | Iterator[int] | None,
        rank: int = 0,
        ranks: int = 1,
        micro_batch_size: int = 1,
        ahead: bool = True,
    ) -> None:
        """`rows` of a global step, or of one step after the other; None = each step takes one window, which counts
        documents.
        """
        self._reader, self._position = reader, position
        self._rows = itertools.repeat(rows) if rows is None or isinstance(rows, int) else rows
        self._rank, self._ranks, self._micro_batch_size = rank, ranks, micro_batch_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if ahead else None
        self._coming: Future[Step] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        if self._thread is None:
            step = self._step(self._position)
        else:
            step = (self._coming or self._thread.submit(self._step, self._position)).result()
            self._coming = self._thread.submit(self._step, step.after)
        self._position = step.after
        return step

    def _step(self, position: Position) -> Step:
        number = next(self._rows)
        rows, after = self._reader.take_window(position) if number is None else self._reader.take(position, number)
        batches = self._reader.batches(rows, self._rank, self._ranks, self._micro_batch_size)
        return Step(batches=batches, rows=rows, after=after)

    def close(self) -> None:
        """Waits for the step being read, if any."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _part(document: Document, piece: Piece) -> Document:
    here = slice(piece.start, piece.stop)
    wave = None if document.wave is None else document.wave.cut(piece.start, piece.stop)
    return Document(document.ids[here], document.tags[here], document.is_trained[here], wave)


def _require_same(name: str, was: object, now: object) -> None:
    if type(was) is not type(now) or was != now:
        raise DataError(
            f"the data is not that of the checkpoint: {name} was {was!r} and is {now!r}; use the same, or begin the "
            "data anew"
        )

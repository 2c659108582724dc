"""The stream is a function of seed and place, and of nothing else: on any number of ranks, from any place, in any
process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.data.batch import Document, PackedBatch
from megatron_most.data.blend import Blend, TaskSpec
from megatron_most.data.packing import PackedRow
from megatron_most.data.reader import Position, Reader, ReaderState, Steps
from megatron_most.errors import ConfigError, DataError
from megatron_most.vocab import tiny_token_map

TOKENS = tiny_token_map()
LIMIT = 50
"""Ids below it are text of the tiny vocabulary."""


class Shelf:
    """A dataset in memory. Ids say which document and place they are of, as far as a small vocabulary can."""

    def __init__(self, name: str, lengths: list[int], fingerprint: str = "") -> None:
        self.name, self.lengths, self.fingerprint = name, np.array(lengths, dtype=np.int64), fingerprint or f"of {name}"
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> Document:
        self.reads.append(index)
        n = int(self.lengths[index])
        first = int.from_bytes(hashlib.blake2b(f"{self.name}/{index}".encode(), digest_size=4).digest())
        ids = (np.arange(n) * 7 + first) % LIMIT
        return Document(ids.astype(np.int32), np.zeros(n, np.int8), np.ones(n, bool))  # type: ignore[arg-type]

    def document_id(self, index: int) -> str:
        return f"{self.name}-{index}"


def lengths(number: int, seed: int, low: int = 2, high: int = 34) -> list[int]:
    return np.random.default_rng(seed).integers(low, high, number).tolist()


def tasks(**changes: Any) -> list[TaskSpec]:
    specs = [
        TaskSpec(name="asr", weight=0.4, sources=[Shelf("a", lengths(23, 1)), Shelf("b", lengths(8, 2))]),
        TaskSpec(name="tts", weight=0.4, sources=[Shelf("c", lengths(50, 3))]),
        TaskSpec(name="text-lm", weight=0.2, sources=[Shelf("d", lengths(11, 4, 2, 150))]),
    ]
    return [dataclasses.replace(spec, **changes.get(spec.name, {})) for spec in specs]


def reader(seed: int = 7, window: int = 40, row_length: int = 32, **more: Any) -> Reader:
    blend = Blend(more.pop("specs", None) or tasks())
    return Reader(blend, row_length=row_length, seed=seed, token_map=TOKENS, window=window, **more)


def digest(rows: list[PackedRow] | tuple[PackedRow, ...]) -> str:
    return hashlib.sha256(json.dumps([row.pieces for row in rows]).encode()).hexdigest()


def same_tensors(a: PackedBatch, b: PackedBatch) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return all(torch.equal(x, y) for x, y in pairs if torch.is_tensor(x))


def rows_of(batches: list[PackedBatch], name: str) -> list[list[float]]:
    return [row for batch in batches for row in getattr(batch, name).tolist()]


# One stream

NAMES = ("tokens_BS", "labels_BS", "tasks_BS", "documents_BS", "loss_weights_BS", "is_pad_BS")


def global_rows(
    ours: Reader, position: Position, rows: int | None, ranks: int, micro_batch_size: int, steps: int
) -> Any:
    """What all ranks read in some steps, in the order of the global step, and the place after it."""
    everything = []
    for rank in range(ranks):  # each rank by itself, with a reader of its own
        with Steps(
            ours, position, rows=rows, rank=rank, ranks=ranks, micro_batch_size=micro_batch_size, ahead=rank % 2 == 0
        ) as stream:
            everything.append([next(stream) for _ in range(steps)])
    out = []
    for step in range(steps):
        mine = [everything[rank][step] for rank in range(ranks)]
        assert len({len(s.batches) for s in mine}) == 1 and len({s.after for s in mine}) == 1
        per_rank = [list(zip(*(rows_of(s.batches, name) for name in NAMES), strict=True)) for s in mine]
        in_turn = [row for turn in zip(*per_rank, strict=True) for row in turn]
        number = len(mine[0].rows)
        assert all(all(row[-1]) for row in in_turn[number:])  # fillers are pads only
        out += in_turn[:number]
    return out, everything[0][-1].after


@pytest.mark.parametrize("rows", [10, 7, None])
def test_the_stream_goes_on_unchanged_when_data_ranks_become_1_then_2_then_4(rows: int | None) -> None:
    unbroken, end = global_rows(reader(), Position(), rows, 1, 1, 9)
    position, pieces = Position(), []
    for ranks, micro_batch_size in ((1, 2), (2, 3), (4, 1)):
        more, position = global_rows(reader(), position, rows, ranks, micro_batch_size, 3)
        pieces += more
        ours = reader()
        position = ours.check_state(ReaderState.from_dict(json.loads(json.dumps(ours.state(position).to_dict()))))
    assert pieces == unbroken and position == end
    assert len({json.dumps(row) for row in unbroken}) > len(unbroken) / 3  # rows that differ, or nothing is shown


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_taking_rows_in_any_portions_gives_the_same_rows(sizes: list[int]) -> None:
    ours = reader(window=16)
    whole, end = ours.take(Position(), sum(sizes))
    position, taken = Position(), []
    for size in sizes:
        rows, position = ours.take(position, size)
        taken += rows
    assert taken == whole and position == end


def test_a_window_is_the_same_whatever_was_looked_at_before_and_in_another_process() -> None:
    wanted = [5, 0, 123456, 2]
    ours = reader()
    found = [digest(ours.window_rows(window)) for window in wanted]
    other = reader()
    assert [digest(other.window_rows(window)) for window in reversed(wanted)] == found[::-1]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_reader as t; ours = t.reader(); "
        f"print([t.digest(ours.window_rows(w)) for w in {wanted}])"
    )
    root, here = Path(__file__).parents[2], Path(__file__).parent
    ran = subprocess.run([sys.executable, "-c", code, str(here)], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(found)
    assert len(set(found)) == len(wanted) and digest(reader(seed=8).window_rows(5)) != found[0]


def test_every_rank_plans_without_reading_and_reads_its_own_rows_only() -> None:
    specs = tasks()
    ours = reader(specs=specs)
    rows, _ = ours.take(Position(), 12)
    shelves = [[source for source in spec.sources if isinstance(source, Shelf)] for spec in specs]
    assert not any(shelf.reads for task in shelves for shelf in task)
    ours.batches(rows, rank=1, ranks=3, micro_batch_size=2)
    read = {(t, s, d) for t, task in enumerate(shelves) for s, shelf in enumerate(task) for d in shelf.reads}
    assert read == {piece[:3] for row in rows[1::3] for piece in row.pieces}


# What is in it


def documents_of(rows: list[PackedRow] | tuple[PackedRow, ...]) -> Counter[tuple[int, ...]]:
    """(task, source, document) of each document that begins here; one cut on the left begins at its only piece."""
    return Counter(piece[:3] for row in rows for piece in row.pieces if piece.start == 0)


def test_windows_hold_as_many_documents_of_each_task_as_the_weights_say_and_each_once_an_epoch() -> None:
    specs = tasks()
    ours = reader(specs=specs, window=10)
    sizes = [summary.documents for summary in ours.summaries()]
    seen: Counter[tuple[int, ...]] = Counter()
    for window in range(60):
        seen += documents_of(ours.window_rows(window))
        by_task = [sum(n for key, n in seen.items() if key[0] == task) for task in range(3)]
        assert by_task == [4 * (window + 1), 4 * (window + 1), 2 * (window + 1)]
        progress = ours.progress(Position(window + 1))
        assert [p.documents for p in progress] == by_task
        assert [p.epochs for p in progress] == pytest.approx([n / size for n, size in zip(by_task, sizes, strict=True)])
        for (task, _, _), times in seen.items():
            assert by_task[task] // sizes[task] <= times <= -(-by_task[task] // sizes[task])
    assert len([key for key in seen if key[0] == 1]) == sizes[1] > 40


def test_progress_within_a_window_counts_what_was_taken() -> None:
    ours = reader(specs=tasks(asr={"long_policy": "cut_left"}), window=30, row_length=20)
    position, taken = Position(), []
    for _ in range(25):
        rows, position = ours.take(position, 7)
        taken += rows
        begun = [piece for row in taken for piece in row.pieces if piece.start == 0 or piece.task == 0]
        whole = [int(ours.blend.tasks[p.task].sources[p.source].lengths[p.document]) for p in begun]
        progress = ours.progress(position)
        for task in range(3):
            mine = [n for piece, n in zip(begun, whole, strict=True) if piece.task == task]
            long = 0 if task == 1 else sum(n > 21 for n in mine)
            assert (progress[task].documents, progress[task].long_documents) == (len(mine), long)
    assert progress[0].long_documents and progress[2].long_documents


def labels_learnt(ours: Reader, rows: list[PackedRow]) -> Counter[tuple[int, ...]]:
    return Counter((*p[:3], label) for row in rows for p in row.pieces for label in range(p.start + 1, p.stop))


@pytest.mark.parametrize("policy", ["split", "drop", "cut_left"])
def test_a_long_document_is_split_dropped_or_cut_as_told_and_counted(policy: Any) -> None:
    sizes = [5, 40, 100, 33, 34, 2]
    spec = TaskSpec(name="asr", sources=[Shelf("a", sizes)], long_policy=policy)
    ours = reader(specs=[spec], window=60)
    [summary] = ours.summaries()
    epochs = 60 // summary.documents
    ours = reader(specs=[spec], window=epochs * summary.documents)
    learnt = labels_learnt(ours, list(ours.window_rows(0)))
    kept = {"split": sizes, "drop": [5, 33, 2], "cut_left": [5, 33, 33, 33, 33, 2]}[policy]
    assert summary.ids == sum(kept) and summary.ids_left_out == sum(sizes) - sum(kept)
    assert summary.long_documents == 3 and set(learnt.values()) == {epochs}
    expected = {
        "split": {(d, label) for d, n in enumerate(sizes) for label in range(1, n)},
        "drop": {(d, label) for d, n in enumerate(sizes) if n <= 33 for label in range(1, n)},
        "cut_left": {(d, label) for d, n in enumerate(sizes) for label in range(max(1, n - 32), n)},
    }[policy]
    assert {(key[2], key[3]) for key in learnt} == expected


def test_tokens_labels_and_task_numbers_are_those_of_the_documents_named() -> None:
    ours = reader()
    rows, _ = ours.take(Position(1, 2), 9)
    batch = ours.batch(rows)
    for r, (row, names) in enumerate(zip(rows, ours.names(rows), strict=True)):
        at = 0
        for piece, name in zip(row.pieces, names, strict=True):
            source = ours.blend.tasks[piece.task].sources[piece.source]
            ids = list(source.document(piece.document).ids)[piece.start : piece.stop]
            here = slice(at, at + len(ids) - 1)
            assert batch.tokens_BS[r, here].tolist() == ids[:-1] and batch.labels_BS[r, here].tolist() == ids[1:]
            assert batch.tasks_BS[r, here].unique().tolist() == [piece.task]
            assert batch.positions_BS[r, here].tolist() == list(range(len(ids) - 1))
            task = ours.task_names[piece.task]
            assert name == f"task {task}, document {source.document_id(piece.document)}[{piece.start}:{piece.stop}]"
            at += len(ids) - 1
        assert at == row.filled and batch.is_pad_BS[r, at:].all() and (batch.tasks_BS[r, at:] == -1).all()


def test_no_place_of_the_stream_has_longer_documents_than_another() -> None:
    """Best fit makes rows from long to short; were they not shuffled, every window would begin with the long ones."""
    spec = TaskSpec(name="asr", sources=[Shelf("a", lengths(500, 0, 2, 200))])
    ours = reader(specs=[spec], window=500, row_length=400)
    halves = np.zeros(2)
    for window in range(40):
        rows = ours.window_rows(window)
        sizes = [np.mean([p.stop - p.start for p in row.pieces]) for row in rows]
        halves += [np.mean(sizes[: len(sizes) // 2]), np.mean(sizes[len(sizes) // 2 :])]
    assert abs(halves[0] / halves[1] - 1) < 0.1


def test_steps_can_count_documents_instead_of_rows() -> None:
    ours = reader(window=128)
    with Steps(ours, Position(), rows=None, ranks=2, micro_batch_size=4) as stream:
        for number in range(4):
            step = next(stream)
            assert documents_of(step.rows).total() == 128 and step.after == Position(number + 1)
            assert step.filled(32) > 0.9
    with pytest.raises(DataError, match="row 1 of a window, but batches of documents begin at 0"):
        ours.take_window(Position(0, 1))


# Validation


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_validation_reads_the_first_documents_once_each_on_any_number_of_ranks(ranks: int) -> None:
    sets = [
        TaskSpec(name="tts", sources=[Shelf("v", lengths(30, 5)), Shelf("w", lengths(60, 6))]),
        TaskSpec(name="dev", sources=[Shelf("x", [40, 5, 6])]),
    ]
    ours = reader(validation=sets, validation_documents=50, window=20)
    assert ours.task_names == ("asr", "tts", "text-lm", "dev")
    rows = ours.validation_rows("tts")
    first = [(s, d) for s, size in ((0, 30), (1, 60)) for d in range(size)]
    fits = [(s, d) for s, d in first if sets[0].sources[s].lengths[d] <= 33]
    assert sorted(key[1:] for key in documents_of(rows).elements()) == sorted(fits[:50])
    batches = [list(ours.validation_batches("tts", rank, ranks, 2)) for rank in range(ranks)]
    assert len({len(mine) for mine in batches}) == 1
    per_rank = [rows_of(mine, "tokens_BS") for mine in batches]
    in_turn = [row for turn in zip(*per_rank, strict=True) for row in turn]
    assert in_turn[: len(rows)] == ours.batch(rows).tokens_BS.tolist()
    assert {number for mine in batches for b in mine for number in b.tasks_BS.unique().tolist()} == {-1, 1}
    assert documents_of(ours.validation_rows("dev")).total() == 2  # one of 40 is dropped, and counted:
    assert [(s.name, s.long_documents) for s in ours.summaries()[-1:]] == [("dev", 1)]
    with pytest.raises(DataError, match="no validation set asr; there are: tts, dev"):
        ours.validation_rows("asr")


# State


def test_data_or_settings_that_changed_are_refused_by_name() -> None:
    state = reader().state(Position(3, 1))
    again = tasks()
    again[0] = dataclasses.replace(again[0], sources=[again[0].sources[0], Shelf("b", lengths(8, 2), "other")])
    changed = {
        "seed was 7 and is 8": reader(seed=8),
        "window was 40 and is 41": reader(window=41),
        "row_length was 32 and is 33": reader(row_length=33),
        "share of task asr was '2/5' and is '1/4'": reader(specs=tasks(asr={"weight": 0.2})),
        "long_policy of task asr was 'drop' and is 'split'": reader(specs=tasks(asr={"long_policy": "split"})),
        "fingerprint of dataset 1 of task asr was 'of b' and is 'other'": reader(specs=again),
        "tasks was ['asr', 'tts', 'text-lm'] and is ['tts', 'asr', 'text-lm']": reader(
            specs=[tasks()[n] for n in (1, 0, 2)]
        ),
        "number of datasets of task asr was 2 and is 1": reader(specs=tasks(asr={"sources": [Shelf("a", [5])]})),
        "token_map was": Reader(
            Blend(tasks()), row_length=32, seed=7, token_map=tiny_token_map(num_units=21), window=40
        ),
    }
    for message, other in changed.items():
        with pytest.raises(DataError) as refused:
            other.check_state(state)
        assert message in str(refused.value)
    with pytest.raises(DataError, match="version was 0 and is 1"):
        reader().check_state(dataclasses.replace(state, version=0))
    assert reader().check_state(state) == Position(3, 1)


DAMAGE: dict[str, Any] = {
    "not a mapping": lambda state: [1],
    "nothing": lambda state: {},
    "a field less": lambda state: {key: value for key, value in state.items() if key != "seed"},
    "a field more": lambda state: {**state, "more": 1},
    "no place": lambda state: {**state, "position": None},
    "a negative row": lambda state: {**state, "position": {"window": 0, "row": -1}},
    "a window that is text": lambda state: {**state, "position": {"window": "0", "row": 0}},
    "a window that is a truth": lambda state: {**state, "position": {"window": True, "row": 0}},
    "a row beyond its window": lambda state: {**state, "position": {"window": 0, "row": 1000}},
    "a seed that is text": lambda state: {**state, "seed": "7"},
    "tasks that are a number": lambda state: {**state, "tasks": 3},
    "a task that is a number": lambda state: {**state, "tasks": [3]},
    "fingerprints that are text": lambda state: {**state, "tasks": [{**state["tasks"][0], "fingerprints": "ab"}]},
    "a task less": lambda state: {**state, "tasks": state["tasks"][:2]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_refused(name: str) -> None:
    ours = reader()
    good = json.loads(json.dumps(ours.state(Position(2, 3)).to_dict()))
    assert ours.check_state(ReaderState.from_dict(good)) == Position(2, 3)
    with pytest.raises(DataError, match="damaged|not that of the checkpoint"):
        ours.check_state(ReaderState.from_dict(DAMAGE[name](good)))


def test_a_place_outside_its_window_is_refused_before_rows_are_taken() -> None:
    with pytest.raises(DataError, match="row 99 of window 1, which has .* rows"):
        reader().take(Position(1, 99), 1)
    for name in ("row_length", "window", "validation_documents"):
        for value in (0, -1, True, 2.0):
            with pytest.raises(ConfigError, match=f"{name} = "):
                Reader(Blend(tasks()), **{"row_length": 32, "seed": 1, "token_map": TOKENS, name: value})  # type: ignore[arg-type]


# Reading ahead


class Torn(Shelf):
    """A dataset that cannot be read from some time on."""

    def document(self, index: int) -> Document:
        if len(self.reads) >= 30:
            raise DataError(f"{self.name}: gone")
        return super().document(index)


def test_an_error_while_reading_ahead_is_raised_by_the_step_it_is_of() -> None:
    def steps_before_the_error(ahead: bool) -> int:
        ours = reader(specs=[TaskSpec(name="asr", sources=[Torn("a", lengths(50, 1))])])
        with Steps(ours, Position(), rows=4, ahead=ahead) as stream:
            for number in range(20):
                try:
                    next(stream)
                except DataError:
                    with pytest.raises(DataError, match="a: gone"):  # again, not the step after it
                        next(stream)
                    return number
        raise AssertionError("no error")

    assert steps_before_the_error(True) == steps_before_the_error(False) > 1


def test_reading_ahead_gives_the_same_steps_and_leaves_no_thread() -> None:
    with Steps(reader(), Position(), rows=5, ahead=False) as plain, Steps(reader(), Position(), rows=5) as ahead:
        for _ in range(8):
            a, b = next(plain), next(ahead)
            assert a.after == b.after and a.rows == b.rows
            assert all(same_tensors(x, y) for x, y in zip(a.batches, b.batches, strict=True))
        assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())

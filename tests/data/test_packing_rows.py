"""Rows hold every document once and hardly any pads; long documents lose nothing unless a policy says so; and what is
packed costs what it costs alone.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.config import load_recipe, replace
from megatron_most.data import Kind, check_batch, synthetic_document
from megatron_most.data.batch import Document, pack_rows
from megatron_most.data.blend import Blend, TaskSpec
from megatron_most.data.packing import PackedRow, Piece, cut_long, deal_rows, pack_lengths
from megatron_most.data.reader import Reader
from megatron_most.engine import make_plan, open_groups
from megatron_most.errors import DataError
from megatron_most.model import build_model
from megatron_most.runtime import Ranks, find_device
from megatron_most.vocab import TEXT, tiny_token_map
from tests.harness import run_ranks

TOKENS = tiny_token_map()


def libriheavy_like(documents: int, seed: int) -> np.ndarray:
    """Ids of ASR documents: cuts of 2-30 s (14 s in the mean), about 15 merged units and 3.5 text tokens a second,
    and a prompt.
    """
    draw = np.random.default_rng(seed)
    seconds = np.clip(draw.gamma(4.0, 3.5, documents), 2, 30)
    units_a_second = np.clip(draw.normal(15, 1.5, documents), 10, 20)
    return (seconds * (units_a_second + 3.5) + draw.integers(12, 20, documents)).astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_libriheavy_like_rows_are_98_percent_full(seed: int) -> None:
    num_ids = libriheavy_like(2048, seed)
    assert 40 < num_ids.min() < 70 and 600 < num_ids.max() < 750 and 240 < num_ids.mean() < 300
    rows = pack_lengths(num_ids, 2048)
    assert (num_ids - 1).sum() / (len(rows) * 2048) >= 0.98


def test_a_window_is_packed_in_milliseconds() -> None:
    num_ids, took = libriheavy_like(2048, 0), []
    for _ in range(5):
        start = time.thread_time()
        pack_lengths(num_ids, 2048)
        took.append(time.thread_time() - start)
    assert min(took) < 0.05  # 0.003 on an idle core


LENGTHS = st.integers(1, 64).flatmap(
    lambda row: st.tuples(st.just(row), st.lists(st.integers(2, row + 1), max_size=80))
)


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_every_document_has_one_row_and_no_row_overflows(case: tuple[int, list[int]]) -> None:
    row_length, num_ids = case
    rows = pack_lengths(num_ids, row_length)
    assert sorted(at for row in rows for at in row) == list(range(len(num_ids)))
    assert all(sum(num_ids[at] - 1 for at in row) <= row_length for row in rows)
    assert all(row == sorted(row) for row in rows)


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_rows_are_as_full_as_a_plain_search_for_the_best_fit_makes_them(case: tuple[int, list[int]]) -> None:
    row_length, num_ids = case
    rooms: list[int] = []
    for size in sorted((n - 1 for n in num_ids), reverse=True):
        fits = [room for room in rooms if room >= size]
        if fits:
            rooms[rooms.index(min(fits))] -= size
        else:
            rooms.append(row_length - size)
    ours = [row_length - sum(num_ids[at] - 1 for at in row) for row in pack_lengths(num_ids, row_length)]
    assert sorted(ours) == sorted(rooms)


# Long documents


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(2, 100), st.booleans()), max_size=20))
def test_split_learns_every_label_once_and_cut_left_keeps_the_end(row: int, documents: list[tuple[int, bool]]) -> None:
    num_ids = np.array([n for n, _ in documents], dtype=np.int64)
    keeps_end = np.array([keeps for _, keeps in documents], dtype=bool)
    pieces = list(zip(*(column.tolist() for column in cut_long(num_ids, keeps_end, row)), strict=True))
    assert all(2 <= stop - start <= row + 1 for _, start, stop in pieces)
    for number, (n, keeps) in enumerate(documents):
        mine = [(start, stop) for which, start, stop in pieces if which == number]
        labels = [label for start, stop in mine for label in range(start + 1, stop)]
        if keeps:
            assert mine == [(max(0, n - row - 1), n)]
        else:
            assert labels == list(range(1, n))


# Dealing rows to data ranks


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4))
def test_dealt_rows_are_the_step_s_rows_and_every_rank_has_as_many(num_rows: int, ranks: int, size: int) -> None:
    rows = [PackedRow((Piece(0, 0, number, 0, 5),)) for number in range(num_rows)]
    dealt = [deal_rows(rows, rank, ranks, size) for rank in range(ranks)]
    assert {len(mine) for mine in dealt} == {-(-num_rows // (ranks * size))}  # config.Plan.micro_batches
    assert all(len(batch) == size for mine in dealt for batch in mine)
    flat = [[row for batch in mine for row in batch] for mine in dealt]
    in_turn = [row for turn in zip(*flat, strict=True) for row in turn]
    assert in_turn[:num_rows] == rows
    assert all(row == PackedRow() and row.filled == 0 for row in in_turn[num_rows:])


# Laying documents into a batch


def laid_one_by_one(rows: list[list[Document]], tasks: list[list[int]], length: int) -> dict[str, Any]:
    """What pack_rows must give, a token at a time."""
    names = ("tokens", "tags", "labels", "label_tags", "loss_weights", "documents", "tasks", "is_pad", "positions")
    empty = dict(zip(names, (TOKENS.pad_id, TEXT, TOKENS.pad_id, TEXT, 0, -1, -1, True, 0), strict=True))
    out = {f"{name}_BS": [[value] * length for _ in rows] for name, value in empty.items()}
    for r, row in enumerate(rows):
        at = 0
        for d, document in enumerate(row):
            for i in range(len(document.ids) - 1):
                ids, tags, is_trained = document.ids, document.tags, document.is_trained
                found = (ids[i], tags[i], ids[i + 1], tags[i + 1], is_trained[i + 1], d, tasks[r][d], False, i)
                for name, value in zip(names, found, strict=True):
                    out[f"{name}_BS"][r][at] = value
                at += 1
        for pad in range(at, length):
            out["positions_BS"][r][pad] = pad - at
    return out


DOCUMENT = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 60), min_size=n, max_size=n),
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.booleans(),
        st.integers(0, 5),
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(DOCUMENT, max_size=4), min_size=1, max_size=4))
def test_rows_are_laid_as_one_token_at_a_time_would_lay_them(rows: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    def document(ids: list[int], tags: list[int], is_trained: list[bool], as_arrays: bool, _: int) -> Document:
        if as_arrays:
            return Document(np.array(ids, np.uint16), np.array(tags, np.int8), np.array(is_trained))  # type: ignore[arg-type]
        return Document(ids, tags, is_trained)

    documents = [[document(*parts) for parts in row] for row in rows]
    tasks = [[parts[-1] for parts in row] for row in rows]
    batch = pack_rows(documents, 32, TOKENS, tasks)
    for name, expected in laid_one_by_one(documents, tasks, 32).items():
        assert getattr(batch, name).tolist() == expected, name
    assert batch.is_packed == any(len(row) > 1 for row in rows)
    assert {batch.tokens_BS.dtype, batch.tasks_BS.dtype, batch.documents_BS.dtype} == {torch.int64}
    assert torch.equal(pack_rows(documents, 32, TOKENS).tasks_BS, torch.full((len(rows), 32), -1))


def test_documents_that_do_not_fit_are_refused_by_row_and_number() -> None:
    good = Document([1, 2, 3], [0, 0, 0], [True] * 3)
    with pytest.raises(DataError, match="row 1, document 1: 4 tokens do not fit a row of 3"):
        pack_rows([[good], [good, good]], 3, TOKENS)
    with pytest.raises(DataError, match="row 0, document 0: ids, tags and is_trained differ in length"):
        pack_rows([[Document([1, 2], [0], [True, True])]], 8, TOKENS)
    with pytest.raises(DataError, match="row 0, document 1: a document needs at least 2 tokens, this has 1"):
        pack_rows([[good, Document([1], [0], [True])]], 8, TOKENS)
    with pytest.raises(DataError, match="tasks: not one number for each document"):
        pack_rows([[good], [good]], 8, TOKENS, [[0], []])
    with pytest.raises(DataError, match="tokens_BS: cannot be made int64"):
        pack_rows([[Document([1.5, 2.0], [0, 0], [True] * 2)]], 8, TOKENS)  # type: ignore[list-item]


def test_a_step_of_512_rows_is_laid_in_a_fraction_of_a_second() -> None:
    draw, took = np.random.default_rng(0), []
    arrays: Any = [draw.integers(0, 2, 340).astype(kind) for kind in (np.int32, np.int8, bool)]
    for _ in range(5):
        start = time.thread_time()
        pack_rows([[Document(*arrays)] * 6] * 512, 2048, TOKENS)
        took.append(time.thread_time() - start)
    assert min(took) < 0.2  # 0.04 on an idle core; a document at a time through torch took 0.3 to 0.45


# What the model makes of it


class Lessons:
    """A dataset of text, units and wave markers in memory. `other` changes what is in one document."""

    fingerprint = "lessons"

    def __init__(self, sizes: list[int], other: int | None = None) -> None:
        self.lengths, self.other = np.array(sizes), other

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> Document:
        kinds: list[Kind] = ["mixed", "audio", "wave", "text"]
        seed = 1 if index == self.other else 0
        return synthetic_document(TOKENS, kinds[index % 4], int(self.lengths[index]), seed, index)

    def document_id(self, index: int) -> str:
        return str(index)


def reader(lessons: Lessons) -> Reader:
    blend = Blend([TaskSpec(name="asr", sources=[lessons])])
    return Reader(blend, row_length=32, seed=1, token_map=TOKENS, window=len(lessons))


SIZES = [12, 6, 9, 5, 17, 4, 8, 11, 20, 3]


def losses_of(ranks: Ranks, recipe: str) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Of each token packed, the same when document 4 is another, and of each document alone."""
    plan = make_plan(replace(load_recipe(recipe), {"model.init_std": 0.2}), 1, ranks.device)
    plan.tokens.require_same(TOKENS, "tests")
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        found = []
        for other in (None, 4):
            ours = reader(Lessons(SIZES, other))
            rows = ours.window_rows(0)
            batch = ours.batch(rows)
            check_batch(batch, plan)
            assert max(len(row.pieces) for row in rows) >= 3 and any(
                piece.document == 4 and len(row.pieces) > 1 for row in rows for piece in row.pieces
            )
            loss = model(batch)
            at = {p.document: (r, d) for r, row in enumerate(rows) for d, p in enumerate(row.pieces)}
            found.append([loss[r][batch.documents_BS[r] == d].tolist() for _, (r, d) in sorted(at.items())])
        alone = []
        for number in range(len(SIZES)):
            single = pack_rows([[Lessons(SIZES).document(number)]], 32, TOKENS)
            alone.append(float(model(single)[~single.is_pad_BS].double().sum()))
    return found[0], found[1], alone


@pytest.mark.parametrize("recipe", ["most-tiny", "most-tiny-dense"])
def test_packed_documents_cost_what_they_cost_alone_and_do_not_see_each_other(recipe: str) -> None:
    [(packed, with_another, alone)] = run_ranks(losses_of, 1, recipe)
    sums = [sum(losses) for losses in packed]
    assert sums == pytest.approx(alone, rel=1e-6) and sum(sums) == pytest.approx(sum(alone), rel=1e-6)
    assert with_another[4] != pytest.approx(packed[4], rel=0.01)
    for number in set(range(len(SIZES))) - {4}:
        if recipe == "most-tiny-dense":
            assert with_another[number] == packed[number]  # every bit
        else:  # another number of tokens goes through an expert at once, and its sums are taken in another order
            assert with_another[number] == pytest.approx(packed[number], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: dataclasses.replace(b, tasks_BS=b.tasks_BS.float()), "tasks_BS: torch.float32 on cpu, where whole"),
        (lambda b: dataclasses.replace(b, tasks_BS=None), "tasks_BS: a NoneType, not a tensor"),
        (lambda b: dataclasses.replace(b, tasks_BS=b.tasks_BS[:, 1:]), r"tasks_BS: shape \(1, 31\) differs"),
    ],
)
def test_task_numbers_of_another_kind_or_shape_are_refused(change: Any, message: str) -> None:
    plan = make_plan(load_recipe("most-tiny"), 1, find_device("cpu"))
    ours = reader(Lessons(SIZES))
    batch = ours.batch(ours.window_rows(0)[:1])
    check_batch(batch, plan)
    with pytest.raises(DataError, match=message):
        check_batch(change(batch), plan)


def test_a_document_that_is_not_as_long_as_its_index_says_is_refused_by_id() -> None:
    lessons = Lessons([4, 5, 6])
    ours = reader(lessons)
    rows = ours.window_rows(0)
    read = lessons.document
    lessons.document = lambda index: read(0) if index == 2 else read(index)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="task asr, document 2: holds 4 tokens where its index says 6"):
        ours.batch(rows)

"""Documents come back from .bin/.idx as they went in, and Megatron-Core writes and reads the same bytes."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.data.document import DocumentRuns, Run
from megatron_most.data.index_writer import encode_documents, join_indexes, write_index
from megatron_most.data.indexed import IndexedDocuments, is_trained_mode, mode_of, tag_of_mode
from megatron_most.errors import DataError
from tests.datasets import random_documents

RAW = ("lengths", "modes", "counts")


def write(folder: Path, documents: Sequence[DocumentRuns], dtype: type = np.int32, at_once: int = 7) -> Path:
    """As `build` does: encoded a few at a time, appended."""
    folder.mkdir(exist_ok=True)
    names = {"tokens": "tokens.bin", "ids": "ids.txt"} | {name: name for name in RAW}
    parts = [encode_documents(documents[at : at + at_once], dtype) for at in range(0, len(documents), at_once)]
    for field, name in names.items():
        (folder / name).write_bytes(b"".join(getattr(part, field) for part in parts))
    write_index(folder / "tokens.idx", *(folder / name for name in RAW), dtype=dtype)
    return folder


def run(ids: list[int], tag: int = 0, is_trained: bool = False) -> Run:
    return Run(np.array(ids, np.int32), tag, is_trained)


def document(id: str, *runs: Run) -> DocumentRuns:
    return DocumentRuns(id, runs)


@st.composite
def documents_and_dtype(draw: st.DrawFn) -> tuple[list[DocumentRuns], type]:
    """Any documents with at least a token each: runs may be empty or alike."""
    dtype = draw(st.sampled_from([np.int32, np.uint16]))
    top = int(np.iinfo(dtype).max)
    one_run = st.builds(
        run,
        st.lists(st.sampled_from([0, 1, 7, top - 1, top]), max_size=6),
        st.integers(0, 2),
        st.booleans(),
    )
    names = st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), min_size=1, max_size=5)
    some = st.builds(document, names, one_run, one_run, one_run) | st.builds(document, names, one_run)
    return draw(st.lists(some.filter(lambda found: found.length > 0), min_size=1, max_size=20)), dtype


@settings(max_examples=60, deadline=None)
@given(documents_and_dtype(), st.integers(1, 5))
def test_any_documents_come_back_as_they_went_in(case: tuple[list[DocumentRuns], type], at_once: int) -> None:
    documents, dtype = case
    with tempfile.TemporaryDirectory() as name, IndexedDocuments(write(Path(name), documents, dtype, at_once)) as found:
        assert len(found) == len(documents)
        assert found.lengths.tolist() == [one.length for one in documents]
        for index, one in enumerate(documents):
            back = found.document(index)
            assert (back.ids.dtype, back.tags.dtype, back.is_trained.dtype) == (dtype, np.int8, bool)
            assert np.array_equal(back.ids, one.ids())
            assert np.array_equal(back.tags, one.tags())
            assert np.array_equal(back.is_trained, one.is_trained())
            assert found.document_id(index) == one.id
        assert found.num_sequences == sum(len(one.merged().runs) for one in documents)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_the_bytes_are_those_that_cores_builder_writes(tmp_path: Path, dtype: type) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = random_documents(300, seed=1)
    builder = IndexedDatasetBuilder(str(tmp_path / "core.bin"), dtype=dtype, multimodal=True)
    for one in documents:
        for each in one.runs:
            builder.add_item(torch.tensor(each.ids), mode_of(each.tag, each.is_trained))
        builder.end_document()
    builder.finalize(str(tmp_path / "core.idx"))
    write(tmp_path, documents, dtype)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"tokens.{suffix}").read_bytes() == (tmp_path / f"core.{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_stock_core_reads_the_same_tokens_and_modes(tmp_path: Path, dtype: type) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = random_documents(300, seed=2)
    stock = IndexedDataset(str(write(tmp_path, documents, dtype) / "tokens"), multimodal=True)
    runs = [each for one in documents for each in one.runs]
    assert len(stock) == len(runs)
    for number, each in enumerate(runs):
        ids, mode = stock[number]
        assert ids.tolist() == each.ids.tolist()
        assert int(mode) == mode_of(each.tag, each.is_trained)
    bounds = np.cumsum([0] + [len(one.runs) for one in documents])
    assert stock.document_indices.tolist() == bounds.tolist()


def test_a_mode_holds_tag_and_training_in_eight_bits() -> None:
    pairs = [(tag, is_trained) for tag in range(3) for is_trained in (False, True)]
    modes = [mode_of(*pair) for pair in pairs]
    assert modes == [0, -128, 1, -127, 2, -126]
    array = np.array(modes, np.int8)
    assert [(tag_of_mode(mode), is_trained_mode(mode)) for mode in modes] == pairs
    assert list(zip(tag_of_mode(array).tolist(), is_trained_mode(array).tolist(), strict=True)) == pairs


def test_neighbouring_runs_of_one_kind_become_one_sequence() -> None:
    encoded = encode_documents(
        [
            document("a", run([1]), run([]), run([2, 3]), run([4], 1), run([5], 1, True)),
            document("b", run([6], 1, True)),
        ],
        np.int32,
    )
    assert np.frombuffer(encoded.lengths, np.int32).tolist() == [3, 1, 1, 1]  # and never across documents
    assert np.frombuffer(encoded.counts, np.int32).tolist() == [3, 1]
    assert encoded.ids == b"a\nb\n"


def test_documents_encoded_apart_are_the_bytes_of_all_at_once() -> None:
    documents = random_documents(50)
    whole, parts = encode_documents(documents, np.int32), [encode_documents([one], np.int32) for one in documents]
    for field in ("tokens", "ids", *RAW):
        assert getattr(whole, field) == b"".join(getattr(part, field) for part in parts)
    assert encode_documents([], np.int32).tokens == b""


@pytest.mark.parametrize(
    ("bad", "dtype", "message"),
    [
        (document("x"), np.int32, "'x': holds no tokens"),
        (document("x", run([]), run([], 1)), np.int32, "'x': holds no tokens"),
        (document("x", run([1, 65536])), np.uint16, "'x': token id 65536 is not in 0..65535"),
        (document("x", run([1, -1])), np.int32, "'x': token id -1 is not in"),
        (document("x", Run(np.array([1 << 31]), 0, True)), np.int32, "'x': token id 2147483648"),
        (document("x", run([1], 3)), np.int32, "'x': 3 is no tag"),
        (document("x", run([1], -1)), np.int32, "'x': -1 is no tag"),
        (document("x\ny", run([1])), np.int32, r"'x\\ny' \(number 2\): an id is one line"),
        (document("x\ry", run([1])), np.int32, "an id is one line"),
        (document("", run([1])), np.int32, "an id is one line, not empty"),
        (document("\ud800", run([1])), np.int32, "cannot be written as UTF-8"),
    ],
)
def test_a_document_that_cannot_be_kept_is_refused_by_name(bad: DocumentRuns, dtype: type, message: str) -> None:
    honest = [document("a", run([1])), document("b", run([2], 1, True))]
    with pytest.raises(DataError, match=message):
        encode_documents([*honest, bad, document("c", run([3]))], dtype)
    encode_documents([*honest, document("c", run([3]))], dtype)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("lengths", 6, "1.5 lengths, but"),
        ("lengths", 8, "lengths, but"),
        ("counts", 5, "no int32 numbers"),
        ("counts", 4, "do not fit"),
    ],
)
def test_columns_that_do_not_fit_leave_the_old_index(tmp_path: Path, name: str, keep: int, message: str) -> None:
    write(tmp_path, random_documents(5))
    old = (tmp_path / "tokens.idx").read_bytes()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(DataError, match=message):
        write_index(tmp_path / "tokens.idx", *(tmp_path / raw for raw in RAW), dtype=np.int32)
    assert (tmp_path / "tokens.idx").read_bytes() == old
    assert not list(tmp_path.glob(".*"))


def test_an_index_of_a_million_documents_is_written_and_read_in_little_memory(tmp_path: Path) -> None:
    count = 1_000_000
    np.ones(count, np.int32).tofile(tmp_path / "lengths")
    np.zeros(count, np.int8).tofile(tmp_path / "modes")
    np.ones(count, np.int32).tofile(tmp_path / "counts")
    np.zeros(count, np.int32).tofile(tmp_path / "tokens.bin")
    tracemalloc.start()
    try:
        write_index(tmp_path / "tokens.idx", *(tmp_path / name for name in RAW), dtype=np.int32)
        written = tracemalloc.get_traced_memory()[1]
        join_indexes(tmp_path / "joined.idx", [IndexedDocuments(tmp_path)] * 2)
        joined = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "tokens.idx").stat().st_size == 34 + 21 * count + 8
    assert written < 8e6  # a column of pointers alone has 8 MB
    assert joined < 60e6  # opening looks at a piece of 2^20 numbers at a time


def test_joined_indexes_are_the_index_of_all_documents(tmp_path: Path) -> None:
    documents = random_documents(40)
    cuts = [0, 13, 14, 40]
    parts = [write(tmp_path / str(a), documents[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    join_indexes(tmp_path / "joined.idx", [IndexedDocuments(part) for part in parts])
    assert (tmp_path / "joined.idx").read_bytes() == (write(tmp_path / "all", documents) / "tokens.idx").read_bytes()


def read_all(documents: IndexedDocuments) -> list[tuple[list[int], list[int], list[bool]]]:
    found = [documents.document(index) for index in range(len(documents))]
    return [(list(map(int, d.ids)), list(map(int, d.tags)), list(map(bool, d.is_trained))) for d in found]


def send_all(documents: IndexedDocuments, pipe: multiprocessing.connection.Connection) -> None:  # type: ignore[name-defined]
    pipe.send(read_all(documents))


def test_an_open_dataset_is_read_alike_after_fork_and_pickle(tmp_path: Path) -> None:
    with IndexedDocuments(write(tmp_path, random_documents(20)), "print") as documents:
        here = read_all(documents)
        ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=send_all, args=(documents, theirs))
        child.start()
        assert ours.recv() == here
        child.join()
        again = pickle.loads(pickle.dumps(documents))
        assert (read_all(again), again.fingerprint) == (here, "print")
        assert len(pickle.dumps(documents)) < 1000  # its name, not its content
        kept = pickle.dumps(documents)
    write(tmp_path, random_documents(21))
    with pytest.raises(DataError, match="changed while it was open"):
        pickle.loads(kept)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_documents_outlive_the_dataset_and_cannot_be_written_to(tmp_path: Path, dtype: type) -> None:
    documents = IndexedDocuments(write(tmp_path, [document("a", run([5, 6, 7], 1, True))], dtype))
    found = documents.document(0)
    documents.close()
    assert list(found.ids) == [5, 6, 7]
    for array in (found.ids, found.tags, found.is_trained):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0  # type: ignore[index]
    with pytest.raises(IndexError):
        documents.document(0)


def test_a_number_outside_is_refused_not_counted_from_the_end(tmp_path: Path) -> None:
    documents = IndexedDocuments(write(tmp_path, random_documents(3)))
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"document {index} of 3"):
            documents.document(index)
        with pytest.raises(IndexError, match=f"document {index} of 3"):
            documents.document_id(index)


@pytest.mark.parametrize("size", [1, 4096, 4097, 1 << 16, (1 << 16) + 1, 200_000])
def test_a_document_of_one_sequence_of_any_length_comes_back(tmp_path: Path, size: int) -> None:
    ids = (np.arange(size) % 1000).astype(np.int32)
    both = [DocumentRuns("a", (Run(ids, 1, True),)), DocumentRuns("b", (Run(ids[::-1].copy(), 0, False),))]
    for _ in range(2):  # what is kept of the first reading serves the second
        documents = IndexedDocuments(write(tmp_path, both))
        for number, (tag, is_trained) in enumerate([(1, True), (0, False)]):
            found = documents.document(number)
            assert np.array_equal(found.ids, ids[:: 1 - 2 * number]) and found.ids.size == size
            assert np.array_equal(found.tags, np.full(size, tag))
            assert np.array_equal(found.is_trained, np.full(size, is_trained))


def test_ids_of_another_number_of_documents_are_refused(tmp_path: Path) -> None:
    write(tmp_path, random_documents(3))
    documents = IndexedDocuments(tmp_path)
    for text in ("a\nb\n", "a\nb\nc", "a\nb\nc\nd\n", ""):
        (tmp_path / "ids.txt").write_text(text)
        with pytest.raises(DataError, match=r"ids\.txt: \d whole lines for 3 documents"):
            documents.document_id(0)


def test_a_dataset_without_documents_is_empty_not_broken(tmp_path: Path) -> None:
    with IndexedDocuments(write(tmp_path, [])) as documents:
        assert (len(documents), documents.num_sequences, documents.lengths.tolist()) == (0, 0, [])

"""Damaged datasets are refused by name of the file, when opened or when verified; honest ones pass."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.data.dataset import dtype_for, load_info, open_dataset
from megatron_most.data.dataset_info import DatasetInfo
from megatron_most.data.document import DocumentRuns, Run
from megatron_most.data.verify import find_problems, verify
from megatron_most.errors import DataError
from megatron_most.vocab import deepseek_token_map, tiny_token_map
from tests.datasets import TOKENS, edit_record, random_documents, sign_again, write_dataset

Damage = Callable[[Path], None]
BIN, IDX = "tokens.bin", "tokens.idx"
DOCUMENTS = random_documents(40)
SEQUENCES = sum(len(document.runs) for document in DOCUMENTS)
SIZES = {
    BIN: 2 * sum(document.length for document in DOCUMENTS),
    IDX: 34 + 13 * SEQUENCES + 8 * (len(DOCUMENTS) + 1),
}
POINTERS, BOUNDS = 34 + 4 * SEQUENCES, 34 + 12 * SEQUENCES
MODES = BOUNDS + 8 * (len(DOCUMENTS) + 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole") / "set", DOCUMENTS, rejects=["missing text"] * 2)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def cut(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def grow(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + data) and None


def flip(name: str, at: int, bits: int = 0xFF) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= bits
        (folder / name).write_bytes(data)

    return damage


def put(name: str, at: int, kind: type, value: int) -> Damage:
    """Write a number over what stands at byte `at`."""

    def damage(folder: Path) -> None:
        data, number = bytearray((folder / name).read_bytes()), np.array([value], kind).tobytes()
        data[at : at + len(number)] = number
        (folder / name).write_bytes(data)

    return damage


def swap(first: str, second: str) -> Damage:
    def damage(folder: Path) -> None:
        one, two = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(two)
        (folder / second).write_bytes(one)

    return damage


def signed(damage: Damage) -> Damage:
    """Damage that the hashes of dataset.json agree with: only what the files say can give it away."""

    def both(folder: Path) -> None:
        damage(folder)
        sign_again(folder)

    return both


draw = random.Random(0)
HEADER = [(f"header byte {at}", flip(IDX, at), IDX) for at in range(34)]
CUT = [(f"{name} cut at {size}", cut(name, size), name) for name in SIZES
       for size in (0, 1, 33, 34, SIZES[name] // 2, SIZES[name] // 2 + 1, SIZES[name] - 2,
                    SIZES[name] - 1)]  # fmt: skip
FLIPS = [(f"{name} bit {bit} of byte {at}", flip(name, at, 1 << bit), name) for name in SIZES
         for at, bit in ((draw.randrange(SIZES[name]), draw.randrange(8)) for _ in range(16))]  # fmt: skip
OTHER = [
    ("bin and idx swapped", swap(BIN, IDX), "tokens.(bin|idx)"),
    ("ids and rejects swapped", swap("ids.txt", "rejects.jsonl"), "ids.txt"),
    ("a byte after bin", grow(BIN, b"\0"), BIN),
    ("a token after bin", grow(BIN, b"\0\0"), BIN),
    ("a byte after idx", grow(IDX, b"\0"), IDX),
    ("bin gone", lambda folder: (folder / BIN).unlink(), BIN),
    ("idx gone", lambda folder: (folder / IDX).unlink(), IDX),
    ("ids gone", lambda folder: (folder / "ids.txt").unlink(), "ids.txt"),
    ("an id more", grow("ids.txt", b"x\n"), "ids.txt"),
    ("a letter of an id", flip("ids.txt", 3, 1), "ids.txt"),
    ("a line of rejects less", cut("rejects.jsonl", 10), "rejects.jsonl"),
]
# What the hashes agree with. Ids of the tiny vocabulary: text to 39, units 40..61, audio marks 62 and 63, wave 64, 65.
SIGNED = [
    ("bin cut by a token", cut(BIN, SIZES[BIN] - 2), BIN),
    ("bin cut by a byte", cut(BIN, SIZES[BIN] - 1), BIN),
    ("bin empty", cut(BIN, 0), BIN),
    ("bin grown by a token", grow(BIN, b"\1\0"), BIN),
    ("idx cut", cut(IDX, SIZES[IDX] - 1), IDX),
    ("idx grown", grow(IDX, b"\0"), IDX),
    ("an id at the vocabulary's end", put(BIN, 100, np.uint16, TOKENS.vocab_size), BIN),
    ("an id far beyond the vocabulary", put(BIN, 100, np.uint16, 65535), BIN),
    ("an id no token uses", put(BIN, 100, np.uint16, TOKENS.used_size), BIN),
    ("a unit in a text", put(BIN, 0, np.uint16, TOKENS.first_unit_id), BIN),
    ("a wave marker in a text", put(BIN, 0, np.uint16, TOKENS.begin_wave_id), BIN),
    ("a sequence's tag changed", flip(IDX, MODES, 1), BIN),
    ("a mode of no tag", flip(IDX, MODES, 4), IDX),
    ("a mode of the bits between", flip(IDX, MODES + 1, 0x40), IDX),
    ("a sequence trained on by mistake", flip(IDX, MODES + 5, 0x80), "trained_tokens"),
    ("a length of 0", put(IDX, 34, np.int32, 0), IDX),
    ("a length below 0", put(IDX, 34, np.int32, -5), IDX),
    ("a length one more", flip(IDX, 34 + 4 * 3, 1), IDX),
    ("the last length", flip(IDX, 34 + 4 * (SEQUENCES - 1), 1), BIN),
    ("a pointer below 0", put(IDX, POINTERS + 8, np.int64, -2), IDX),
    ("a pointer beyond the file", put(IDX, POINTERS + 8, np.int64, 1 << 40), IDX),
    ("a pointer into an id", flip(IDX, POINTERS + 8, 1), IDX),
    ("the first pointer", put(IDX, POINTERS, np.int64, 2), IDX),
    ("the first bound", put(IDX, BOUNDS, np.int64, 1), IDX),
    ("a bound that goes back", put(IDX, BOUNDS + 16, np.int64, 0), IDX),
    ("a bound beyond the end", put(IDX, BOUNDS + 16, np.int64, SEQUENCES + 9), IDX),
    ("the last bound", put(IDX, BOUNDS + 8 * len(DOCUMENTS), np.int64, SEQUENCES - 1), IDX),
    ("an empty id", put("ids.txt", 0, np.uint8, 10), "ids.txt"),
    ("an id that is no UTF-8", put("ids.txt", 3, np.uint8, 0xFF), "ids.txt"),
    (
        "ids without their last end of line",
        lambda folder: (folder / "ids.txt").write_bytes((folder / "ids.txt").read_bytes()[:-1] + b"A") and None,
        "ids.txt",
    ),
    ("rejects that are no JSON", put("rejects.jsonl", 0, np.uint8, 65), "rejects.jsonl"),
    ("an id that stands twice", lambda folder: repeat_an_id(folder), "ids.txt"),
]


def repeat_an_id(folder: Path) -> None:
    lines = (folder / "ids.txt").read_text().splitlines()
    (folder / "ids.txt").write_text("\n".join([lines[1], *lines[1:]]) + "\n")


ALL = [*HEADER, *CUT, *FLIPS, *OTHER, *[(f"signed: {name}", signed(damage), file) for name, damage, file in SIGNED]]


@pytest.mark.parametrize(("damage", "file"), [(d, f) for _, d, f in ALL], ids=[name for name, _, _ in ALL])
def test_a_damaged_dataset_is_refused_by_the_name_of_the_file(copy: Path, damage: Damage, file: str) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    damage(copy)
    assert before != {path.name: path.read_bytes() for path in copy.iterdir()}, "nothing was damaged"
    with pytest.raises(DataError, match=file):
        verify(copy)


def test_there_are_more_than_a_hundred_kinds_of_damage() -> None:
    assert len(ALL) > 100
    assert len({name for name, _, _ in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("damage", "file"),
    [(d, f) for name, d, f in [*HEADER, *CUT, *OTHER[:7]] if name != "ids and rejects swapped"],
)
def test_what_sizes_and_the_index_give_away_is_refused_on_opening(copy: Path, damage: Damage, file: str) -> None:
    damage(copy)
    with pytest.raises(DataError, match=file):
        open_dataset(copy)


def same(folder: Path) -> None:
    pass


HONEST: list[tuple[str, Damage]] = [
    ("untouched", same),
    ("signed again", sign_again),
    ("a file beside", lambda folder: (folder / "page.html").write_text("plots") and None),
    ("another text for a text", lambda folder: signed(put(BIN, 0, np.uint16, 3))(folder)),
]


@pytest.mark.parametrize("change", [d for _, d in HONEST], ids=[name for name, _ in HONEST])
def test_an_honest_dataset_passes(copy: Path, change: Damage) -> None:
    change(copy)
    found = verify(copy)
    assert (found.documents, found.sequences, found.tokens) == (40, SEQUENCES, SIZES[BIN] // 2)
    assert found.is_whole and str(found) == f"40 documents, {SEQUENCES} sequences, {SIZES[BIN] // 2:,} tokens"
    info, documents = open_dataset(copy)
    assert documents.fingerprint == info.fingerprint
    assert [documents.document_id(n) for n in range(40)] == [document.id for document in DOCUMENTS]


def test_stock_core_is_asked_and_agrees(copy: Path, tmp_path: Path) -> None:
    assert str(verify(copy, with_core=True)).endswith("; Megatron-Core reads the same")
    tokens = deepseek_token_map()
    wide = write_dataset(tmp_path / "wide", random_documents(9, tokens=tokens), tokens=tokens, codec=None)
    assert open_dataset(wide)[1].dtype == np.int32
    assert verify(wide, with_core=True).is_whole


@pytest.mark.parametrize("bad", [-1, -(1 << 31), 102400 + 128, (1 << 31) - 1])
def test_a_wide_id_beyond_the_vocabulary_or_below_0_is_found(tmp_path: Path, bad: int) -> None:
    tokens = deepseek_token_map()
    folder = write_dataset(tmp_path / "set", random_documents(3, tokens=tokens), tokens=tokens, codec=None)
    signed(put(BIN, 8, np.int32, bad))(folder)
    found = find_problems(folder)
    (problem,) = found.problems
    assert str(found).startswith("1 problem in ")
    assert f"tokens.bin: token 2 (document 0): id {bad} is outside the vocabulary of 102400" in problem


def test_all_problems_are_counted_and_the_first_twenty_named(copy: Path) -> None:
    tokens = np.fromfile(copy / BIN, np.uint16)
    tokens[10:60] = TOKENS.vocab_size
    tokens.tofile(copy / BIN)
    cut("rejects.jsonl", 10)(copy)
    grow("ids.txt", b"one more\n")(copy)
    found = find_problems(copy)
    # rejects: size, a torn line, counts, hash. ids: size, number, hash. tokens: 50 ids, hash.
    assert found.num_problems == 4 + 3 + 51
    assert len(found.problems) == 20
    assert "token 10 (document 0): id 72 is outside the vocabulary of 72" in "\n".join(found.problems)
    with pytest.raises(
        DataError, match=r"(?s)58 problems in 40 documents.*tokens\.bin: its sha256.*and 38 more"
    ) as error:
        verify(copy)
    assert str(copy) in str(error.value)


def test_a_problem_names_the_document_of_the_token(copy: Path) -> None:
    at = sum(document.length for document in DOCUMENTS[:7])
    for place, document in ((at - 1, 6), (at, 7)):
        old = (copy / BIN).read_bytes()
        signed(put(BIN, 2 * place, np.uint16, TOKENS.begin_wave_id))(copy)
        (problem,) = find_problems(copy).problems
        assert (
            f"token {place} (document {document}): id {TOKENS.begin_wave_id} is wave, in a sequence tagged" in problem
        )
        (copy / BIN).write_bytes(old)


def test_pieces_of_any_size_find_the_same_problems(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tokens = np.fromfile(copy / BIN, np.uint16)
    wrong = np.sort(rng.choice(len(tokens), 15, replace=False))
    tokens[wrong] = TOKENS.used_size
    tokens.tofile(copy / BIN)
    sign_again(copy)
    whole = find_problems(copy)
    assert whole.num_problems == 15
    for size in (1, 2, 7, 64):
        monkeypatch.setattr("megatron_most.data.verify._TOKENS_AT_ONCE", size)
        assert find_problems(copy) == whole


def test_units_the_codec_does_not_have_are_found(tmp_path: Path) -> None:
    document = DocumentRuns("a", (Run(np.array([TOKENS.first_unit_id, TOKENS.first_unit_id + 21], np.int32), 1, True),))
    folder = write_dataset(tmp_path / "set", [document])
    assert verify(folder).is_whole
    edit(folder, lambda values: values["codec"].update(num_units=21))
    (problem,) = find_problems(folder).problems
    assert "token 1 (document 0): id 61 is used by neither the token map nor the codec" in problem


def test_two_sequences_of_one_kind_in_one_document_are_found(copy: Path) -> None:
    with pytest.raises(DataError, match="document [0-9]+: two neighbouring sequences have one mode"):
        # The bound between two documents that meet in one mode is moved: they then look like one.
        modes = [[(run.tag, run.is_trained) for run in document.runs] for document in DOCUMENTS]
        meet = next(n for n in range(1, 40) if modes[n - 1][-1] == modes[n][0] and len(modes[n]) > 1)
        bound = sum(map(len, modes[:meet])) + 1
        signed(put(IDX, BOUNDS + 8 * meet, np.int64, bound))(copy)
        verify(copy)


# What dataset.json says.


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_record(folder / "dataset.json", change)


def turned(counts: dict[str, int]) -> dict[str, int]:
    return {"text": counts["audio"], "audio": counts["text"], "wave": counts["wave"]}


EDITS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no counts", lambda v: v.pop("documents"), "missing: documents"),
    ("a key too many", lambda v: v.update(extra=1), "unknown: extra"),
    ("another format", lambda v: v.update(format="most-dataset-1"), "'most-dataset-1'.*again with this version"),
    ("no format", lambda v: v.pop("format"), "format = None"),
    ("documents one more", lambda v: v.update(documents=41), "documents"),
    ("documents below 0", lambda v: v.update(documents=-1), "documents = -1: not a count"),
    ("documents true", lambda v: v.update(documents=True), "documents = true: not a count"),
    ("documents as text", lambda v: v.update(documents="40"), 'documents = "40": not a count'),
    ("documents 40.0", lambda v: v.update(documents=40.0), "documents = 40.0: not a count"),
    ("sequences one less", lambda v: v.update(sequences=v["sequences"] - 1), "sequences"),
    ("a tag's tokens one more", lambda v: v["tokens_by_tag"].update(wave=1), "tokens_by_tag"),
    ("tokens of two tags changed about", lambda v: v.update(tokens_by_tag=turned(v["tokens_by_tag"])), "tokens_by_tag"),
    ("no tokens of a tag", lambda v: v["tokens_by_tag"].pop("wave"), "tokens_by_tag: wave"),
    ("a tag that is none", lambda v: v["tokens_by_tag"].update(image=0), "tokens_by_tag: image"),
    ("trained tokens one more", lambda v: v.update(trained_tokens=v["trained_tokens"] + 1), "trained_tokens"),
    ("more trained than there are", lambda v: v.update(trained_tokens=10**6), "trained_tokens = 1000000"),
    ("longest one more", lambda v: v.update(longest=v["longest"] + 1), "longest"),
    ("seconds below 0", lambda v: v.update(seconds=-1.0), "seconds = -1.0: not a number from 0 on"),
    ("seconds NaN", lambda v: v.update(seconds=float("nan")), "NaN is no number"),
    ("seconds infinite", lambda v: v.update(seconds=float("inf")), "Infinity is no number"),
    ("a reject more", lambda v: v["rejects"].update({"missing text": 3}), "rejects"),
    ("another reason", lambda v: v.update(rejects={"too long": 2}), "rejects"),
    ("no hash of bin", lambda v: v["files"].pop("tokens.bin"), "files: tokens.bin"),
    ("a file outside", lambda v: v["files"].update({"../x": [0, "0" * 64]}), "files.*'../x' is no name"),
    ("itself as a file", lambda v: v["files"].update({"dataset.json": [0, "0" * 64]}), "is no name of a data file"),
    ("a hash that is none", lambda v: v["files"]["tokens.bin"].__setitem__(1, "0"), "files.*is no sha256"),
    ("another hash", lambda v: v["files"]["tokens.bin"].__setitem__(1, "0" * 64), "tokens.bin: its sha256"),
    ("a size one more", lambda v: v["files"]["tokens.bin"].__setitem__(0, 1), "tokens.bin: .* says 1"),
    ("a source without licence", lambda v: v["provenance"][0].pop("licence"), "provenance.*entry 0: missing: licence"),
    ("rows as text", lambda v: v["provenance"][0].update(rows="5"), "provenance.*rows"),
    ("a task of nothing", lambda v: v.update(task=None), "task = null"),
    ("templates of one part", lambda v: v.update(templates=["chat"]), "templates"),
    ("a tokenizer in part", lambda v: v["tokenizer"].pop("kind"), "tokenizer"),
    ("a codec in part", lambda v: v["codec"].pop("hash"), "codec"),
    ("a codec of more units", lambda v: v["codec"].update(num_units=23), "codec.num_units = 23"),
    ("a token map in part", lambda v: v["tokens"].pop("eos_id"), "tokens.*missing: eos_id"),
    ("a token map out of order", lambda v: v["tokens"].update(first_unit_id=41), "tokens.*tag_ranges"),
    ("a token map of a big vocabulary", lambda v: v["tokens"].update(vocab_size=70000), "type of the ids|int32"),
    ("an option that is an object", lambda v: v["options"].update(x={}), "options.*neither a plain value"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [(c, m) for _, c, m in EDITS], ids=[name for name, _, _ in EDITS])
def test_a_wrong_word_in_dataset_json_is_refused_by_its_key(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(copy, change)
    with pytest.raises(DataError, match=message) as error:
        verify(copy)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "most-dataset-1", "format": "most-dataset-1"}', "\0"]
)
def test_what_is_no_json_object_is_refused(copy: Path, text: str) -> None:
    (copy / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_dataset(copy)


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset here"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"dataset\.json: malformed JSON.*decode"):
        open_dataset(tmp_path)


def test_dataset_json_gives_back_what_was_saved(whole: Path, tmp_path: Path) -> None:
    info = load_info(whole)
    assert isinstance(info, DatasetInfo)
    assert info.options["shard"] == [0, 1]
    info.save(tmp_path)
    assert (tmp_path / "dataset.json").read_bytes() == (whole / "dataset.json").read_bytes()
    assert load_info(tmp_path) == info


def test_what_could_not_be_read_again_is_not_saved(whole: Path, tmp_path: Path) -> None:
    import dataclasses

    info = load_info(whole)
    for change in ({"seconds": float("nan")}, {"documents": -1}, {"files": {}}, {"options": {"x": object}}):
        with pytest.raises((DataError, TypeError)):
            dataclasses.replace(info, **change).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_changes_with_tokens_index_and_token_map_only(whole: Path) -> None:
    import dataclasses

    info = load_info(whole)

    def printed(**changes: Any) -> str:
        return dataclasses.replace(info, **changes).fingerprint

    other = (1, "0" * 64)
    assert printed() == info.fingerprint
    assert printed(task="tts", options={}) == info.fingerprint
    assert printed(files={**info.files, "rejects.jsonl": other}) == info.fingerprint
    changed = [
        printed(files={**info.files, BIN: other}),
        printed(files={**info.files, IDX: other}),
        printed(tokens=tiny_token_map(multiple=16)),
    ]
    assert len({info.fingerprint, *changed}) == 4


def test_ids_are_stored_in_cores_choice_of_type() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for base in (40, 65400, 65460, 65474, 70000):
        tokens = tiny_token_map(base, multiple=1)
        assert dtype_for(tokens) == np.dtype(DType.optimal_dtype(tokens.vocab_size))
    assert {tiny_token_map(base, multiple=1).vocab_size for base in (65473, 65474)} == {65499, 65500}

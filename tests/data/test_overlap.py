"""What a corpus shares with evaluation sets is found: every run of words, speaker and recording, and no others."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.data import overlap
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.overlap import EvaluationSet, Overlap, OverlapFinder, load_evaluation_set, normalised_words
from megatron_most.data.rows import ChatRow, Row, SpeechPart, TextRow, Turn, Utterance
from megatron_most.errors import DataError

POEM = (
    "The quick brown fox jumps over the lazy dog while seven old sailors count their coins by the harbour wall and "
    "nobody sings"
)


def cut(id: str, text: str | None, speaker: str | None, recording: str) -> dict[str, Any]:
    said = {"id": id, "recording_id": recording, "start": 0, "duration": 2.0, "channel": 0}
    said |= {} if text is None else {"text": text}
    said |= {} if speaker is None else {"speaker": speaker}
    sources = [{"type": "file", "channels": [0], "source": f"{recording}.flac"}]
    about = {"id": recording, "sources": sources, "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0}
    made = {"id": id, "start": 0.0, "duration": 2.0, "channel": 0, "supervisions": [said], "recording": about}
    return {**made, "type": "MonoCut"}


def manifest(folder: Path, kind: Any) -> ManifestWriter:
    about: dict[str, Any] = dict(corpus="test", split="test", licence="CC0-1.0", source="made", normalisation="none")
    return ManifestWriter(folder, kind=kind, **about)


def utterance(text: str | None = None, speaker: str | None = None, recording: str = "r") -> Utterance:
    about: dict[str, Any] = dict(audio="a.flac", start=0.0, duration=1.0, channel=0, sampling_rate=16000)
    return Utterance(id="u", text=text, speaker=speaker, recording=recording, **about)


def chat(*turns: Sequence[Any]) -> ChatRow:
    return ChatRow(id="c", turns=tuple(Turn(role="user", parts=tuple(parts)) for parts in turns))


def row(text: str) -> TextRow:
    return TextRow(id="t", text=text)


def set_of(tmp_path: Path, *items: str, n: int = 13, name: str = "set") -> EvaluationSet:
    path = tmp_path / f"{name}.txt"
    path.write_text("\n".join(items), encoding="utf-8")
    return load_evaluation_set(name, path, n)


def whats(finder: OverlapFinder, row: Row) -> list[tuple[str, str]]:
    return [(found.kind, found.what) for found in finder.find(row)]


# The rule again, by sets of tuples.


def runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def naive_grams(items: list[list[str]], n: int) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """(runs to find anywhere, whole texts)"""
    anywhere, whole = set(), set()
    for words in items:
        if len(words) >= 4:
            anywhere |= runs(words, min(n, len(words)))
        elif words:
            whole.add(tuple(words))
    return anywhere, whole


def naive_overlaps(items: list[list[str]], texts: list[list[str]], n: int) -> bool:
    anywhere, whole = naive_grams(items, n)
    everything = [word for words in texts for word in words]
    if len(everything) < 4:
        return tuple(everything) in whole
    return any(runs(words, len(gram)) & {gram} for words in texts for gram in anywhere)


WORDS = st.lists(st.sampled_from("ab"), max_size=14)


@settings(max_examples=150, deadline=None)
@given(
    sets=st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=3),
    ns=st.lists(st.integers(4, 8), min_size=3, max_size=3),
    texts=st.lists(st.lists(st.sampled_from("abc"), max_size=30), min_size=1, max_size=3),
    block=st.sampled_from([1, 3, 8, 1 << 14]),
)
def test_fast_and_naive_search_agree(
    sets: list[list[list[str]]],
    ns: list[int],
    texts: list[list[str]],
    block: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with mock.patch.object(overlap, "_BLOCK", block):  # texts go past the end of a block too
        folder = tmp_path_factory.mktemp("sets")
        known = [
            set_of(folder, *map(" ".join, items), "x y z", n=n, name=f"set{at}")
            for at, (items, n) in enumerate(zip(sets, ns, strict=False))
        ]
        found = {hit.set_name: hit.what for hit in OverlapFinder(known).find(chat(*([" ".join(t)] for t in texts)))}
    for at, (items, n) in enumerate(zip(sets, ns, strict=False)):
        assert (f"set{at}" in found) == naive_overlaps(items, texts, n)
        if what := tuple(found.get(f"set{at}", "").split()):
            anywhere, whole = naive_grams(items, n)
            assert what in anywhere | whole  # what is reported is really in both
            assert any(what in runs(words, len(what)) for words in [*texts, [w for t in texts for w in t]])


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), seed=st.integers(0, 5))
def test_a_text_overlaps_with_itself_whatever_its_signs_and_spaces(
    text: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = text.encode(errors="ignore").decode()
    item = f"one {text} two three four"
    path = tmp_path_factory.mktemp("set") / "a.jsonl"
    path.write_text(json.dumps({"text": item}), encoding="utf-8")
    finder = OverlapFinder([load_evaluation_set("set", path)])
    longer = f"before, {'and ' * seed}{item.replace(' ', '  ' if seed else ' ')} - AFTER!"
    assert [hit.kind for hit in finder.find(row(longer))] == ["text"]


def test_case_punctuation_apostrophes_and_width_do_not_hide_an_overlap(tmp_path: Path) -> None:
    finder = OverlapFinder([set_of(tmp_path, "It's a well-known fact: don’t cross the Straße, ﬁne!")])
    same = "IT’S A WELL KNOWN (FACT)—DON'T … cross the STRASSE ｆｉｎｅ"
    assert whats(finder, row(f"Say: {same}")) == [("text", "its a well known fact dont cross the strasse fine")]
    assert not finder.find(row(same.replace("KNOWN", "KNOWING")))
    assert normalised_words("co\u00adoperate e\u0301 हिन्दी 🙂 — _x_ 3.14") == [
        "cooperate",
        "é",
        "हिन्दी",
        "x",
        "3",
        "14",
    ]


def test_a_run_of_n_words_is_found_anywhere_and_one_of_fewer_is_not(tmp_path: Path) -> None:
    finder = OverlapFinder([set_of(tmp_path, POEM)])
    words = POEM.split()
    for at in range(len(words) - 12):
        shared = " ".join(words[at : at + 13])
        assert whats(finder, row(f"a b c {shared} d e f")) == [("text", shared.lower())]
        assert not finder.find(row(f"a b c {' '.join(words[at : at + 12])} d e f"))


def test_short_items_match_as_a_whole_run_and_the_shortest_only_a_whole_text(tmp_path: Path) -> None:
    finder = OverlapFinder([set_of(tmp_path, "brick", "ice cream van", "seven old sailors count coins")])
    assert whats(finder, row("Brick.")) == [("text", "brick")]
    assert whats(finder, utterance("ICE CREAM VAN")) == [("text", "ice cream van")]
    assert whats(finder, chat([(1, 2)], ["brick", SpeechPart("u")])) == [("text", "brick")]
    assert whats(finder, chat(["Ice cream"], ["van?"])) == [("text", "ice cream van")]
    assert not finder.find(row("a brick"))
    assert not finder.find(row("an ice cream van"))
    assert not finder.find(row("ice cream"))
    assert not finder.find(chat(["brick"], ["What do you mean?"]))
    assert whats(finder, row("and so seven old sailors count coins here")) == [
        ("text", "seven old sailors count coins")
    ]
    assert not finder.find(row("and so seven old sailors count"))


def test_words_on_either_side_of_speech_or_a_turn_do_not_join(tmp_path: Path) -> None:
    finder = OverlapFinder([set_of(tmp_path, "seven old sailors count coins")])
    assert finder.find(chat(["seven old", "sailors count coins"]))  # neighbouring texts do
    assert not finder.find(chat(["seven old", (1, 2), "sailors count coins"]))
    assert not finder.find(chat(["seven old"], ["sailors count coins"]))
    assert not finder.find(utterance(None))


def test_long_texts_are_searched_to_the_last_word(tmp_path: Path) -> None:
    filler = "word " * (2 * overlap._BLOCK - 5)
    finder = OverlapFinder([set_of(tmp_path, POEM)])
    assert whats(finder, row(filler + POEM))[0][0] == "text"  # across the bound of two blocks
    assert not finder.find(row(filler))


def test_speakers_and_recordings_are_shared_across_corpora(tmp_path: Path) -> None:
    """LibriSpeech and LibriHeavy both name LibriVox's readers: the same voice is found under another recording."""
    with manifest(tmp_path / "test-clean", "speech") as out:
        out.add_cut(
            cut("librispeech-1", "HE HOPED THERE WOULD BE STEW", "librivox-1089", "librispeech-1089-134686-0000")
        )
        out.add_cut(cut("librispeech-2", None, None, "librispeech-1089-134686-0001"))
    finder = OverlapFinder([load_evaluation_set("test-clean", tmp_path / "test-clean")])
    assert finder.sets[0].num_texts == 1
    assert whats(finder, utterance("Other words.", "librivox-1089", "libriheavy-x")) == [("speaker", "librivox-1089")]
    assert finder.find(
        utterance("So he hoped there would be stew.", "librivox-1089", "librispeech-1089-134686-0001")
    ) == (
        Overlap("test-clean", "speaker", "librivox-1089"),
        Overlap("test-clean", "recording", "librispeech-1089-134686-0001"),
        Overlap("test-clean", "text", "he hoped there would be stew"),
    )
    assert not finder.find(utterance("Other words.", "librivox-108", "r"))
    assert not finder.find(utterance("Other words.", None, "r"))


def test_manifests_of_text_and_chats_are_evaluation_sets_too(tmp_path: Path) -> None:
    with manifest(tmp_path / "text", "text") as text_out:
        text_out.add_text("a", POEM)
    with manifest(tmp_path / "chat", "chat") as chat_out:
        chat_out.add_chat(chat(["seven old sailors count coins", SpeechPart("u")], [(1, 2)]))
    finder = OverlapFinder([load_evaluation_set(kind, tmp_path / kind) for kind in ("text", "chat")])
    both = f"{POEM}. Seven old sailors count coins"
    assert [hit.set_name for hit in finder.find(row(both))] == ["text", "chat"]
    assert [hit.set_name for hit in finder.find(row(POEM))] == ["text"]


def test_json_lines_give_every_text_or_those_of_the_named_fields(tmp_path: Path) -> None:
    question, answer = "how many coins has each old sailor", "each of them has four silver coins"
    entry = {"question": question, "more": [{"answer": answer, "n": 4, "none": None}], "id": "gsm8k"}
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + json.dumps(entry).encode() + b"\n\n"))
    every = OverlapFinder([load_evaluation_set("gsm8k", path)])
    assert every.find(row(question)) and every.find(row(answer)) and every.find(row("gsm8k"))
    for fields, found in ((("question",), (True, False)), (("more", "question"), (True, True))):
        named = OverlapFinder([load_evaluation_set("gsm8k", path, fields=fields)])
        assert (bool(named.find(row(question))), bool(named.find(row(answer)))) == found
        assert not named.find(row("gsm8k"))


def damaged_manifest(folder: Path) -> Path:
    with manifest(folder / "m", "text") as out:
        out.add_text("a", POEM)
    rows = folder / "m" / "rows.jsonl.gz"
    rows.write_bytes(gzip.compress(b'{"id": "a", "text": "changed"}\n', mtime=0))
    return folder / "m"


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", b'{"a": "x"}\n{"a": \n', {}, r"a\.jsonl:2: malformed JSON"),
        ("a.jsonl", b'{"a": "x"}\n\n["x"]\n', {}, r"a\.jsonl:3: malformed JSON: a list, not an object"),
        ("a.jsonl", b'{"a": "\xff"}\n', {}, r"a\.jsonl:1: invalid UTF-8"),
        ("a.jsonl", b"[" * 100000, {}, r"a\.jsonl:1: malformed JSON"),
        ("a.jsonl", b'{"a": "x"}\n', {"fields": ("b",)}, r"a\.jsonl:1: no field 'b'; the fields are: a"),
        ("a.txt", b"fine\nnot \xff fine\n", {}, r"a\.txt:2: invalid UTF-8, byte 4"),
        ("a.txt", b"fine", {"fields": ("b",)}, "no fields to choose"),
        ("a.txt", b"", {}, "holds no words"),
        ("a.txt", b"-- !! --\n", {}, "holds no words"),
        ("a.txt.gz", gzip.compress(b"word " * 1000, mtime=0)[:-9], {}, r"a\.txt\.gz: cannot be read"),
        ("a.txt.gz", b"plain", {}, r"a\.txt\.gz: cannot be read"),
        ("a.parquet", b"PAR1", {}, "give a manifest folder"),
        ("a.txt", b"fine", {"n": 3}, "n = 3 words; give 4 to 64"),
        ("a.txt", b"fine", {"n": 65}, "n = 65 words"),
        ("a.txt", b"fine", {"name": "two\nlines"}, "not a printable name"),
        ("a.txt", b"fine", {"name": ""}, "not a printable name"),
    ],
)
def test_what_cannot_be_read_is_refused_by_file_and_line(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_evaluation_set(**{"name": "set", "path": tmp_path / name, **options})
    assert "\n" not in str(caught.value).replace("'two\\nlines'", "")


def test_missing_paths_changed_manifests_and_equal_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_evaluation_set("set", tmp_path / "missing.txt")
    with pytest.raises(DataError, match="no manifest here"):
        load_evaluation_set("set", tmp_path)
    folder = damaged_manifest(tmp_path)
    with pytest.raises(DataError, match="changed since the manifest was made"):
        load_evaluation_set("set", folder)
    with pytest.raises(DataError, match="no fields to choose"):
        load_evaluation_set("set", folder, fields=("text",))
    known = set_of(tmp_path, POEM)
    with pytest.raises(DataError, match="'set': given twice"):
        OverlapFinder([known, known])


def test_hashes_are_equal_in_every_process(tmp_path: Path) -> None:
    """A run that continues tomorrow must find the same; python's own hash of a text differs between processes."""
    known = set_of(tmp_path, POEM, "brick")
    assert known.hash == "73e0a332215d3bfbc14496e1c38ac83daa1cec58c6e1d3cdacbac387c787d8db"
    assert known.hash != set_of(tmp_path, POEM, "bricks").hash
    assert known.hash != set_of(tmp_path, POEM, "brick", n=12).hash


def test_a_finder_can_be_sent_to_another_process_and_stays_small(tmp_path: Path) -> None:
    items = [" ".join(f"w{at * at % 997}" for at in range(start, start + 60)) for start in range(800)]
    finder = OverlapFinder([set_of(tmp_path, *items)])
    sent = pickle.dumps(finder)
    assert len(sent) < 24 * len(finder.sets[0].ngrams) + 10_000  # 8 in the set, 8 in the search, at most 4 in the table
    again: OverlapFinder = pickle.loads(sent)
    for text in (items[5], items[7][:-40] + " other", "nothing shared here at all"):
        assert again.find(row(text)) == finder.find(row(text))
    assert finder.find(row(items[5]))


def test_no_set_or_nothing_in_common_finds_nothing(tmp_path: Path) -> None:
    assert OverlapFinder([]).find(row(POEM)) == ()
    assert OverlapFinder([]).find(row("brick")) == ()
    finder = OverlapFinder([set_of(tmp_path, POEM)])
    assert finder.find(row("—")) == finder.find(utterance("")) == finder.find(chat([(1, 2)])) == ()


def test_the_memory_of_token_hashes_is_bounded() -> None:
    hashes = overlap._TokenHashes()
    with mock.patch.object(overlap, "_MOST_TOKENS", 10):
        for at in range(25):
            assert hashes[f"w{at}"] == hashes[f"W{at}!"]
            assert len(hashes) <= 10
    long = "x" * 1000
    assert len(hashes[long]) == 8 and long not in hashes


def fastest(search: Callable[[TextRow], object], documents: list[TextRow]) -> float:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for document in documents:
            search(document)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(documents)


def test_the_search_is_several_times_faster_than_a_set_of_tuples(tmp_path: Path) -> None:
    """Documents of 1000 words, 100,000 runs of ten lengths: 8 to 12 times were measured on a busy machine."""
    draw = random.Random(1)
    vocabulary = [f"w{at}" for at in range(20000)]

    def text(num_words: int) -> str:
        return " ".join(draw.choices(vocabulary, k=num_words))

    items = [text(4 + at % 57) for at in range(5000)]
    finder = OverlapFinder([set_of(tmp_path, *items)])
    assert len(finder.sets[0].ngrams) > 80_000
    anywhere, _ = naive_grams([item.split() for item in items], 13)

    def plainly(document: TextRow) -> bool:
        words = document.text.split()  # even without the work of normalising
        return any(tuple(words[at : at + n]) in anywhere for n in range(4, 14) for at in range(len(words) - n + 1))

    documents = [row(text(1000)) for _ in range(5)]
    assert not any(map(plainly, documents)) and not any(map(finder.find, documents))
    ratio = fastest(plainly, documents) / fastest(finder.find, documents)
    assert ratio > 3

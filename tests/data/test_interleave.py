"""Interleaved documents hold every word once, in speech or in text, and every unit of a speech span once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_most.data.document import Draft
from megatron_most.data.encoders import TokenizerIdentity
from megatron_most.data.interleave import (
    SpeechRow,
    TaskOptions,
    chains,
    checked_words,
    cut_spans,
    interleave_segments,
    interleave_words,
    unit_cuts,
)
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import Utterance, Word
from megatron_most.data.tasks import TaskContext, make_documents
from megatron_most.data.templates import load_templates
from megatron_most.errors import ConfigError
from megatron_most.speech.units import UnitSequence, merge_repeats
from megatron_most.vocab import AUDIO, TEXT, TokenMap, grow

FRAME_S = 0.04
TOKENS: TokenMap = grow(backbone="own", base_vocab_size=300, bos=256, eos=257, pad=257, num_units=50)


class Letters:
    """A stand-in tokenizer: one id a byte."""

    identity = TokenizerIdentity("hf", "x", 300)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]


def words_of(*times: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(Word(text=f"w{i}", start=start, duration=duration) for i, (start, duration) in enumerate(times))


def utterance(id: str = "u", duration: float = 4.0, **fields: Any) -> Utterance:
    given = {"audio": "a.wav", "start": 0.0, "channel": 0, "recording": "r", "sampling_rate": 16000}
    return Utterance(id=id, duration=duration, **given | fields)


def spoken(count: int, id: str = "u", word_s: float = 0.2, seed: int = 0, **fields: Any) -> SpeechRow:
    """`count` words end to end, and a unit for each frame before merging."""
    duration = count * word_s
    frames = np.random.default_rng(seed).integers(0, 3, round(duration / FRAME_S))
    words = words_of(*((i * word_s, word_s) for i in range(count)))
    return utterance(id, duration, words=words, **fields), merge_repeats(frames, FRAME_S)


def segment(id: str, start: float, duration: float = 2.0, **fields: Any) -> SpeechRow:
    units = UnitSequence(np.array([len(id), 9], np.uint16), np.array([20, 30], np.uint32), FRAME_S)
    return utterance(id, duration, start=start, **{"text": f"said {id}", **fields}), units


def heard(draft: Draft) -> list[str | list[int]]:
    """Texts and units of a draft's spans, its BOS and EOS checked and taken off."""
    first, *pieces, last = draft.pieces
    assert not isinstance(first.content, str) and first.content.tolist() == [TOKENS.bos_id]
    assert not isinstance(last.content, str) and last.content.tolist() == [TOKENS.eos_id]
    assert all(piece.is_trained for piece in draft.pieces)
    found: list[str | list[int]] = []
    for piece in pieces:
        assert piece.tag == (TEXT if isinstance(piece.content, str) else AUDIO)
        if isinstance(piece.content, str):
            found.append(piece.content)
        else:
            ids = piece.content.tolist()
            assert (ids[0], ids[-1]) == (TOKENS.begin_audio_id, TOKENS.end_audio_id)
            found.append([TOKENS.unit_of_id(id) for id in ids[1:-1]])
    return found


SIZES = st.tuples(st.integers(1, 6), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 80), text=SIZES, audio=SIZES, seed=st.integers(0, 5), id=st.text(max_size=5))
def test_spans_partition_the_words_alternate_and_keep_their_lengths(
    count: int, text: tuple[int, int], audio: tuple[int, int], seed: int, id: str
) -> None:
    options = TaskOptions(seed=seed)
    spans = cut_spans(count, text, audio, options, id)
    assert spans == cut_spans(count, text, audio, options, id)
    assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])] and spans[-1].last == count
    assert all(a.is_audio != b.is_audio for a, b in zip(spans, spans[1:], strict=False))
    for span in spans[:-1]:
        low, high = audio if span.is_audio else text
        assert low <= span.last - span.first <= high
    if count >= text[0] + audio[0]:
        assert len(spans) > 1
    low, _ = audio if spans[-1].is_audio else text
    assert len(spans) == 1 or spans[-1].last - spans[-1].first >= low


def test_both_orders_and_all_lengths_are_drawn() -> None:
    options = TaskOptions()
    firsts = [cut_spans(60, (2, 4), (5, 6), options, f"u{i}")[0] for i in range(400)]
    by_order = [[span.last for span in firsts if span.is_audio is order] for order in (False, True)]
    assert all(150 < len(lengths) < 250 for lengths in by_order)
    assert set(by_order[0]) == {2, 3, 4} and set(by_order[1]) == {5, 6}
    others = [cut_spans(60, (2, 4), (5, 6), TaskOptions(seed=1), f"u{i}")[0] for i in range(400)]
    assert others != firsts


@st.composite
def rows(draw: st.DrawFn) -> SpeechRow:
    """Words with pauses between them, and units of random runs."""
    gaps = draw(st.lists(st.integers(0, 8), min_size=1, max_size=30))
    lengths = draw(st.lists(st.integers(1, 12), min_size=len(gaps), max_size=len(gaps)))
    times, at = [], 0
    for gap, length in zip(gaps, lengths, strict=True):
        times.append(((at + gap) * 0.03, length * 0.03))
        at += gap + length
    frames = draw(st.lists(st.integers(0, 4), min_size=round(at * 0.03 / FRAME_S) + 1, max_size=1000))
    frames = frames[: round(at * 0.03 / FRAME_S) + 1]
    said = utterance(draw(st.text("abc", min_size=1, max_size=4)), at * 0.03, words=words_of(*times))
    return said, merge_repeats(np.array(frames), FRAME_S)


@settings(max_examples=100, deadline=None)
@given(row=rows(), low=st.integers(1, 4))
def test_speech_and_text_spans_hold_each_word_once_and_each_unit_at_most_once(row: SpeechRow, low: int) -> None:
    options = TaskOptions(text_words=(low, low + 3), audio_words=(low, low + 2), leftovers="keep")
    spans = cut_spans(len(row[0].words), options.text_words, options.audio_words, options, row[0].id)
    cuts = unit_cuts(checked_words(*row), spans, row[1])
    assert cuts[0] == 0 and cuts[-1] == len(row[1]) and cuts == sorted(cuts)
    try:
        draft = interleave_words(row, TOKENS, options)
        found = heard(draft)
    except RowError as error:
        assert error.reason == "no units"
        assume(False)
    assert len(found) == len(spans)
    frames = sum(
        row[1].durations[a:b].sum() for span, a, b in zip(spans, cuts, cuts[1:], strict=False) if span.is_audio
    )
    assert draft.speech.microseconds == pytest.approx(1e6 * FRAME_S * frames, abs=len(spans))  # of the kept units alone
    middles = (np.cumsum(row[1].durations) - row[1].durations / 2) * FRAME_S
    for span, part, first, last in zip(spans, found, cuts[:-1], cuts[1:], strict=True):
        if not span.is_audio:
            assert part.split() == [word.text for word in row[0].words[span.first : span.last]]  # type: ignore[union-attr]
            continue
        assert part == row[1].units[first:last].tolist()  # in order, nothing twice
        begin, end = row[0].words[span.first], row[0].words[span.last - 1]
        inside = (middles >= begin.start) & (middles < end.start + end.duration)
        assert set(np.flatnonzero(inside)) <= set(range(first, last))  # all that is said in these words


def test_a_run_of_units_belongs_to_the_span_that_holds_its_middle() -> None:
    """Two words, 1 s each; a run of 30 frames crosses from the first into the second."""
    units = UnitSequence(np.array([1, 2, 3], np.uint16), np.array([10, 30, 10], np.uint32), FRAME_S)
    said = utterance("x", 2.0, words=words_of((0.0, 1.0), (1.0, 1.0)))
    options = TaskOptions(text_words=(1, 1), audio_words=(1, 1))
    cuts = unit_cuts(said.words, cut_spans(2, (1, 1), (1, 1), options, "x"), units)
    assert cuts == [0, 1, 3]  # its middle is at 25 frames = 1.0 s, the border: the later span's
    earlier = UnitSequence(units.units, np.array([9, 30, 11], np.uint32), FRAME_S)
    assert unit_cuts(said.words, cut_spans(2, (1, 1), (1, 1), options, "x"), earlier) == [0, 2, 3]


def test_a_document_reads_on_from_speech_to_text() -> None:
    options = TaskOptions(text_words=(2, 2), audio_words=(2, 2))
    row = spoken(6, "b")
    found = [heard(interleave_words(spoken(6, id), TOKENS, options)) for id in ("a", "b", "c", "d", "e")]
    by_text = next(parts for parts in found if isinstance(parts[0], str))
    by_audio = next(parts for parts in found if not isinstance(parts[0], str))
    assert by_text[0] == "w0 w1" and by_text[2] == " w4 w5"  # a space after speech, none at the start
    assert by_audio[1] == " w2 w3"
    assert [unit for part in by_audio if not isinstance(part, str) for unit in part] == [
        *row[1].units[: len(by_audio[0])].tolist(),
        *row[1].units[-len(by_audio[2]) :].tolist(),
    ]


def test_words_are_spelt_as_in_the_transcript_where_it_has_the_same_words() -> None:
    options = TaskOptions(text_words=(3, 3), audio_words=(3, 3))

    def texts(transcript: str | None) -> list[str]:
        for id in "abcdef":
            found = heard(interleave_words(spoken(6, id, text=transcript), TOKENS, options))
            if isinstance(found[0], str):
                return [part for part in found if isinstance(part, str)]
        raise AssertionError("no order begins with text")

    assert texts("W0, w1 w2! W3 w4 w5.") == ["W0, w1 w2!"]
    assert texts("W0, w1 W2 other w4 w5") == texts("w0 w1") == texts(None) == ["w0 w1 w2"]


GOOD = ((0.0, 1.0), (1.0, 1.0), (2.2, 1.0))


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        (GOOD, None),
        (((0.0, 1.04), (1.0, 1.0), (3.0, 1.04)), None),  # an aligner's rounding
        (((-0.2, 1.0), *GOOD[1:]), "bad word times"),
        ((*GOOD[:2], (3.2, 1.0)), "bad word times"),  # beyond the end
        ((*GOOD[:2], (9.0, 0.1)), "bad word times"),
        (((0.0, 1.0), (0.5, 1.0), (2.0, 1.0)), "bad word times"),  # overlap
        (((1.0, 1.0), (0.0, 1.0), (2.0, 1.0)), "bad word times"),  # backwards
        (((0.0, 1.0), (1.0, -0.5), (2.0, 1.0)), "bad word times"),
        ((), "no word times"),
    ],
)
def test_word_times_that_cannot_be_are_rejected(times: tuple[tuple[float, float], ...], reason: str | None) -> None:
    units = merge_repeats(np.arange(100) % 7, FRAME_S)
    row = (utterance(words=words_of(*times)), units)
    if reason is None:
        assert len(checked_words(*row)) == 3
        return
    with pytest.raises(RowError) as caught:
        interleave_words(row, TOKENS, TaskOptions())
    assert caught.value.reason == reason


def test_silences_are_no_words_and_other_units_are_found_out() -> None:
    words = (*words_of((0.0, 1.0)), Word(text=" ", start=0.2, duration=9.0), *words_of((1.0, 1.0)))
    units = merge_repeats(np.arange(100) % 7, FRAME_S)
    assert [word.start for word in checked_words(utterance(words=words), units)] == [0.0, 1.0]
    with pytest.raises(RowError, match="units of another length: 4.00 s, the cut is 5.00 s"):
        checked_words(utterance(duration=5.0, words=words), units)


def test_a_speech_span_without_a_unit_is_rejected() -> None:
    units = UnitSequence(np.array([5], np.uint16), np.array([100], np.uint32), FRAME_S)  # its middle is at 2 s
    said = utterance(id="x", words=words_of((0.0, 1.0), (1.0, 3.0)))
    options = TaskOptions(text_words=(1, 1), audio_words=(1, 1))
    reasons = []
    for id in "abcdefgh":
        try:
            found = heard(interleave_words((utterance(id=id, words=said.words), units), TOKENS, options))
            assert found == ["w0", [5]]
        except RowError as error:
            reasons.append(error.reason)
    assert set(reasons) == {"no units"} and len(reasons) < 8


def chained(rows: Sequence[SpeechRow], **options: Any) -> list[list[str]]:
    return [[row[0].id for row in chain] for chain in chains(rows, TaskOptions(by="segments", **options))]


def test_a_chain_ends_with_its_recording_at_a_pause_and_at_its_limit() -> None:
    here = [segment("a", 0), segment("b", 2), segment("c", 4.5)]
    assert chained(here) == [["a", "b", "c"]]
    assert chained(here, max_gap_s=0.4) == [["a", "b"], ["c"]]
    assert chained(here, max_seconds=4) == [["a", "b"], ["c"]]
    assert chained(here, max_seconds=1) == [["a"], ["b"], ["c"]]
    for change in ({"recording": "s"}, {"channel": 1}, {"audio": "b.wav"}):
        assert chained([here[0], segment("b", 2, **change)]) == [["a"], ["b"]]
    assert chained([segment("b", 2), segment("a", 0)]) == [["b"], ["a"]]  # backwards
    assert chained([segment("a", 0), segment("b", 1)]) == [["a"], ["b"]]  # overlapping: said twice otherwise
    assert chained([]) == []


@settings(max_examples=100, deadline=None)
@given(starts=st.lists(st.integers(0, 9), max_size=30), gap=st.integers(0, 4), limit=st.integers(0, 12))
def test_chains_hold_every_row_once_and_in_order(starts: list[int], gap: int, limit: int) -> None:
    given_rows = [segment(f"{i}", start) for i, start in enumerate(starts)]
    found = chained(given_rows, max_gap_s=gap, max_seconds=limit)
    assert [id for chain in found for id in chain] == [row[0].id for row in given_rows]


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 20), most=st.integers(1, 3), name=st.text("abc", min_size=1, max_size=3))
def test_segments_take_turns_and_each_comes_once(count: int, most: int, name: str) -> None:
    chain = [segment(name + "x" * i, 2.0 * i) for i in range(count)]
    options = TaskOptions(by="segments", text_segments=(1, most), audio_segments=(1, most))
    draft = interleave_segments(chain, TOKENS, options)
    assert draft.id == f"interleaved/{name}"
    at = 0
    for number, part in enumerate(heard(draft)):
        if isinstance(part, str):
            assert part.startswith(" ") == (number > 0)
            texts = part.strip().split("said ")[1:]
            assert [text.strip() for text in texts] == [row[0].id for row in chain[at : at + len(texts)]]
            at += len(texts)
        else:
            size = len(part) // 2
            assert part == [unit for row in chain[at : at + size] for unit in row[1].units.tolist()]
            at += size
    assert at == count


def context(**options: Any) -> TaskContext:
    return TaskContext(
        token_map=TOKENS, tokenizer=Letters(), templates=load_templates("chat"), options=TaskOptions(**options)
    )


def test_the_task_makes_documents_by_words() -> None:
    documents, rejections = make_documents("interleaved", [spoken(12, "a"), spoken(3, "b")], context())
    assert [document.id for document in documents] == ["interleaved/a"] and documents[0].is_trained().all()
    assert [(rejection.id, rejection.reason) for rejection in rejections] == [("b", "one modality only")]
    kept, rejections = make_documents("interleaved", [spoken(12, "a"), spoken(3, "b")], context(leftovers="keep"))
    assert [document.id for document in kept] == ["interleaved/a", "interleaved/b"] and not rejections
    assert kept[0] == documents[0]


def test_the_task_makes_documents_by_segments_and_names_each_row_it_leaves_out() -> None:
    given_rows = [segment("a", 0), segment("b", 2), segment("c", 4, text=None), segment("d", 20)]
    given_rows.append((utterance("e", start=22.0, text="x"), UnitSequence(*(np.zeros(0, t) for t in "HI"), FRAME_S)))
    documents, rejections = make_documents("interleaved", given_rows, context(by="segments"))
    assert [document.id for document in documents] == ["interleaved/a"]
    found = {rejection.id: rejection.reason for rejection in rejections}
    assert found == {"c": "missing text", "e": "no units", "d": "one modality only"}
    again = make_documents("interleaved", given_rows, context(by="segments"))
    assert again[0] == documents


def test_every_row_of_a_chain_that_is_left_out_is_named() -> None:
    rows = [segment("a", 0), segment("b", 2)]
    documents, rejections = make_documents("interleaved", rows, context(by="segments", text_segments=(2, 2)))
    assert not documents and [rejection.id for rejection in rejections] == ["a", "b"]
    assert {rejection.reason for rejection in rejections} == {"one modality only"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_words", (0, 3)), ("audio_words", (4, 3)), ("text_segments", (1,)), ("max_gap_s", -1.0),
        ("max_seconds", float("nan")), ("by", "phones"), ("leftovers", "drop"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        TaskOptions(**{field: value})


def test_a_draft_of_segments_lasts_as_long_as_those_heard_in_it() -> None:
    chain = [segment("a", 0.0, 2.0), segment("bb", 2.0, 1.7), segment("ccc", 4.0, 1.5)]
    lasting = set()
    for seed in range(8):
        draft = interleave_segments(chain, TOKENS, TaskOptions(seed=seed))
        parts = [part for part in heard(draft) if isinstance(part, list)]
        in_it = [row for row, units in chain if units.units.tolist() in parts]
        assert draft.speech.microseconds == sum(round(1e6 * row.duration) for row in in_it)
        lasting.add(draft.speech.microseconds)
    assert lasting == {1_700_000, 3_500_000}  # the one in the middle, or the other two

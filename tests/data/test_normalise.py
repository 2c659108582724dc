"""Text normalisations by name, and what counts as no text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_most.data.normalise import NORMALISATIONS, find_normaliser, transcript, written_text
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(DataError, match="'whitespaces': unknown; choose one of none, unicode, whitespace, lower"):
        find_normaliser("whitespaces")


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_each_normalisation_leaves_its_own_output_alone(name: str) -> None:
    normalise = find_normaliser(name)
    once = normalise('  He said: ""Cafe\u0301 No. 21""\t\x07won\u2019t\u00a0close.\n')
    assert once and normalise(once) == once


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("none", " A\tb\n", " A\tb\n"),
        ("unicode", "Cafe\u0301\x00 \ufeffa\nb  c", "Café a\nb  c"),
        ("unicode", "می\u200cخواهم", "می\u200cخواهم"),  # a joiner is spelling, not noise
        ("whitespace", " a\u00a0 b\r\n\tc\x1fd ", "a b c d"),
        ("lower", " THE  QUICK İX", "the quick i\u0307x"),
        ("commonvoice", '"""Hello,"" he said."', '"Hello," he said.'),
        ("commonvoice", '"Hello there."', "Hello there."),
        ("commonvoice", '""Hello"" there', '"Hello" there'),
        ("commonvoice", '"', ""),
        ("commonvoice", '"Hello there.', "Hello there."),
        ("commonvoice", 'Hello there."', "Hello there."),
        ("commonvoice", 'Hello "there.', "Hello there."),
        ("commonvoice", '"One" and "two"', '"One" and "two"'),
        ("whisper-english", "Mr. Brown's colour, twenty one!", "mister brown is color 21"),
        ("whisper-basic", "Straße, 21!", "straße 21"),
    ],
)
def test_a_normalisation_does_what_its_name_says(name: str, text: str, wanted: str) -> None:
    assert find_normaliser(name)(text) == wanted


@pytest.mark.parametrize("text", [None, "", "  ", "\t\n", "\x00"])
def test_no_text_is_missing(text: str | None) -> None:
    for check in (transcript, written_text):
        with pytest.raises(RowError, match="missing text"):
            check(text, find_normaliser("whitespace"))


@pytest.mark.parametrize(
    "text",
    [
        "<unk>", "[noise]", "[Hu7][Hu8]", "<｜end▁of▁sentence｜>", "{breath} [laughter].", "<s> </s>",
        "(laughter)", "***", "___", "...", "♪♪", "?!", "SIL", "SPN NSN", "<eps>", "[[x]]", "((a) b) SIL", '"[noise]"',
    ],
)  # fmt: skip
def test_a_transcript_of_tags_only_is_refused(text: str) -> None:
    for name in ("whitespace", "lower"):
        with pytest.raises(RowError, match="tags only"):
            transcript(text, find_normaliser(name))


@pytest.mark.parametrize(
    "text", ["[noise] yes", "<i>yes</i>", "a [b]", "(so) 5", "SIL yes", "silk", "[x", "हिन्दी", "是", "♪ la ♪"]
)
def test_a_transcript_with_words_is_kept(text: str) -> None:
    assert transcript(text, find_normaliser("none")) == text


def test_brackets_may_be_an_answer_but_special_strings_may_not() -> None:
    for text in ("[1, 2, 3]", '{"a": 1}', "<html></html>"):
        assert written_text(text, find_normaliser("none")) == text
    for text in ("<|endoftext|>", "<｜end▁of▁sentence｜>", "[Hu7][Hu90]", "</s>"):
        with pytest.raises(RowError, match="tags only"):
            written_text(text, find_normaliser("none"))


def test_a_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(RowError, match="the text is a list"):
        transcript(["a"], find_normaliser("none"))


@given(st.text(alphabet='" ab', max_size=12))
def test_quotes_are_balanced_and_settled_after_one_pass(text: str) -> None:
    once = find_normaliser("commonvoice")(text)
    assert once.count('"') % 2 == 0
    assert [c for c in once if c in "ab"] == [c for c in text if c in "ab"]
    assert find_normaliser("commonvoice")(once) == once


def test_a_long_row_of_brackets_takes_no_time() -> None:
    begun = time.process_time()
    assert transcript("(a" * 50_000 + ")" * 50_000, find_normaliser("none"))  # deeper than anyone writes: kept
    assert time.process_time() - begun < 2

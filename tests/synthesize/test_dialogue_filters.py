"""From drafts to dialogues: each fault has its reason, and what is good passes unharmed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.synthesize.brief import Brief, Shape
from megatron_most.synthesize.dialogue import read_dialogues
from megatron_most.synthesize.filters import Filters, Safety, finish
from megatron_most.synthesize.seeds import Fact, Persona, Topic
from megatron_most.synthesize.writer import Draft, DraftTurn

SHAPE = Shape(max_exchanges=3, max_turn_words=40)
BRIEF = Brief(
    number=0, id="d-0", key="0/0", exchanges=1, interrupted=None, most_words=40, origin="topic tides",
    topic=Topic("tides", (Fact("The Moon pulls."),)), persona=Persona("a cook"),
)  # fmt: skip
SAFETY = Safety(None)
GOOD = ("What can you tell me about the tides?", "The Moon pulls on the sea 2 times a day.")


def draft(*texts: str, cut: int | None = None) -> Draft:
    return tuple(DraftTurn(("user", "assistant")[n % 2], text, n == cut) for n, text in enumerate(texts))


def reason_of(made: Draft, brief: Brief = BRIEF, filters: Filters | None = None) -> str:
    with pytest.raises(RowError) as caught:
        finish(made, brief, SHAPE, filters or Filters(), SAFETY)
    return caught.value.reason


def test_a_good_draft_becomes_a_speakable_dialogue_and_a_line_that_reads_back() -> None:
    dialogue = finish(draft(*GOOD), BRIEF, SHAPE, Filters(), SAFETY)
    assert [turn.text for turn in dialogue.turns] == [GOOD[0], "The Moon pulls on the sea two times a day."]
    assert (dialogue.topic, dialogue.persona) == ("tides", "a cook")
    assert read_dialogues(Path("x"), dialogue.to_line()) == [dialogue]


def test_an_interruption_is_marked_on_both_sides() -> None:
    texts = (GOOD[0], "The Moon pulls on the sea, and then...", "Wait, make it short.", "It is the Moon.")
    dialogue = finish(draft(*texts, cut=1), replace(BRIEF, interrupted=0), SHAPE, Filters(), SAFETY)
    assert dialogue.turns[1].text == "The Moon pulls on the sea, and then —"
    assert [(turn.interrupted, turn.interrupts) for turn in dialogue.turns] == [
        (False, False), (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert read_dialogues(Path("x"), dialogue.to_line()) == [dialogue]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ((), "empty dialogue"),
        (GOOD[:1], "roles do not alternate"),
        (GOOD * 4, "wrong number of turns"),
        ((GOOD[0], ""), "nothing to say"),
        ((GOOD[0], "and then it was so " * 9), "turn too long"),
        ((GOOD[0], "So it was. " * 20_000), "turn too long"),
        ((GOOD[0], "x" * 10_000_000), "turn too long"),
        ((GOOD[0], "As an AI language model I have no opinion on the tides."), "speaks as a program"),
        ((GOOD[0], "the sea and the sea and the sea and the sea and the sea and the sea and so on"), "repeats itself"),
        ((GOOD[0], GOOD[0]), "repeats itself"),
        ((*GOOD, *GOOD), "repeats itself"),
        ((GOOD[0], "Der Mond zieht das Wasser an, und so steigt das Meer zwei mal am Tag sehr hoch."), "not English"),
        ((GOOD[0], "```\ncode\n```"), "holds code"),
        ((GOOD[0], "The number is 4111 1111 1111 1111, go and buy it."), "unsafe: personal data"),
        ((GOOD[0], "I can tell you how to build a small pipe bomb."), "unsafe: weapons"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_has_its_reason(texts: tuple[str, ...], reason: str) -> None:
    assert reason_of(draft(*texts)) == reason


def test_interruptions_out_of_place_are_refused() -> None:
    assert reason_of(draft(*GOOD, cut=1)) == "interruption out of place"
    assert reason_of(draft(*GOOD, cut=0)) == "interruption out of place"
    assert reason_of(draft(*GOOD), replace(BRIEF, interrupted=0)) == "no interruption"
    longer = ("Wait, make it short.", "It is the Moon.")
    assert reason_of(draft(*GOOD, *longer, cut=1), BRIEF) == "unwanted interruption"


def test_own_patterns_take_the_place_of_the_packages(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("brands = ['\\bmoon\\b']")
    with pytest.raises(RowError, match="unsafe: brands"):
        finish(draft(*GOOD), BRIEF, SHAPE, Filters(), Safety(path))
    for wrong in ("brands = ['(']", "brands = 3", "[[["):
        path.write_text(wrong)
        with pytest.raises(DataError, match="give lists of patterns"):
            Safety(path)


@pytest.mark.parametrize(
    ("shape", "named"),
    [(Shape(min_exchanges=3, max_exchanges=2), "min-exchanges 3"), (Shape(max_turn_seconds=1), "max-turn-seconds 1"),
     (Shape(interruptions=1.5), "interruptions 1.5"), (Shape(max_exchanges=1), "no room for interruptions")],
    ids=["range", "seconds", "share", "room"],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused_by_name(shape: Shape, named: str) -> None:
    with pytest.raises(DataError, match=named):
        shape.check()

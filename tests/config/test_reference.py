"""docs/config.md is what the dataclasses say, and they say something of every field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from megatron_most.config import RunConfig, reference

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A table."""

    size: int | None = None
    """How large,
    or a | b.
    """
    names: tuple[str, ...] = ("a",)
    limits: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    is_on: bool = True
    """Whether."""
    inner: Inner = field(default_factory=Inner)


def names(kind: type, at: str = "") -> set[str]:
    hints, found = get_type_hints(kind), set[str]()
    for one in fields(kind):
        inner = hints[one.name]
        found |= names(inner, f"{at}{one.name}.") if is_dataclass(inner) else {f"{at}{one.name}"}  # type: ignore[arg-type]
    return found


def test_the_page_that_is_committed_is_what_the_dataclasses_say() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference(), "make it again: make docs"


def test_every_field_is_on_the_page_with_a_meaning() -> None:
    at, told = "", set[str]()
    for line in reference().splitlines():
        if line.startswith("## "):
            at = "" if line == "## The run itself" else line[3:] + "."
        elif row := re.match(r"\| `(\w+)` \| .+ \| .+ \| (.*) \|$", line):
            told.add(at + row[1])
            assert row[2], f"{at}{row[1]} has no docstring below it"
    tasks = ("asr", "tts", "text_lm", "audio_lm", "interleaved", "speech_instruct", "text_instruct")
    pattern = re.compile(rf"^data\.({'|'.join(tasks)})\.")
    assert told == {pattern.sub("data.TASK.", name) for name in names(RunConfig)}


def test_a_row_has_type_default_and_docstring() -> None:
    page = reference(Outer)
    assert '| `name` | text | `"x"` |  |' in page and "| `is_on` | true, false | `true` | Whether. |" in page
    assert "| `size` | integer | not set | How large, or a \\| b. |" in page and "## inner\n\nA table.\n" in page
    assert '| `names` | list of text | `["a"]` |  |' in page and "| `limits` | 2 numbers | `[0.5, 2.0]` |  |" in page

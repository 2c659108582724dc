"""Samples of the MoST release: a JSON list of {id, instruction, input, output, metadata}, units spelled [Hu7][Hu90]….

A record becomes a dialogue of two turns. The user's is the instruction, a blank line and the input, the assistant's the
output; runs of units are parts of their own, as numbers. Begin- and end-of-audio marks around units are taken off,
written right or as the ASCII look-alikes of the release's data code, and so are sentence marks at either end: tokens of
their kind are set when documents are built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cuts import label
from megatron_most.data.corpora.json_list import read_json_list
from megatron_most.data.corpora.lines import list_files
from megatron_most.data.manifest import Kind
from megatron_most.data.normalise import Normaliser, find_normaliser, written_text
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, Part, Turn

_BAR, _GAP = "[|｜]", "[_▁]"
_BEGIN, _END = (f"<{_BAR}{side}{_GAP}of{_GAP}audio{_BAR}>" for side in ("begin", "end"))
_UNIT = r"\[Hu(?:0|[1-9][0-9]{0,8})\]"
_RUN = rf"{_UNIT}(?:\s*{_UNIT})*"
_UNITS = re.compile(rf"{_BEGIN}\s*({_RUN})\s*{_END}|({_RUN})")
_MARK = re.compile(f"{_BEGIN}|{_END}")
_SENTENCE = re.compile(
    rf"^(?:\s*<{_BAR}begin{_GAP}of{_GAP}sentence{_BAR}>)+|(?:<{_BAR}end{_GAP}of{_GAP}sentence{_BAR}>\s*)+$"
)
_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Release(Corpus):
    """JSON files as the MoST release's data code writes them."""

    kind: ClassVar[Kind] = "chat"

    name: str = "most"
    """Name of the corpus: the first part of every id."""
    files: tuple[Path, ...]
    """The .json files, plain or .gz, or folders of them."""
    num_units: int = 500
    """How many units there are; a record with others is rejected."""
    licence: str = "unknown"
    source: str = "JSON samples of the MoST release"
    normalisation: str = "none"
    """What is done to the text between units."""

    @property
    def corpus(self) -> str:
        return self.name

    def rows(self) -> Iterator[Item]:
        normalise = find_normaliser(self.normalisation)
        for name, path in list_files(self.files, (".json", ".json.gz")).items():
            for number, record in enumerate(read_json_list(path), 1):
                id = f"{self.name}-{name}-{number}"  # for records without one
                try:
                    if not isinstance(record, dict):
                        raise RowError("malformed row", f"a {type(record).__name__}, not an object")
                    if given := label(record, "id"):
                        id = f"{self.name}-{given}"
                    yield self._row(id, record, normalise)
                except RowError as error:
                    yield Reject.of(id, error)

    def _row(self, id: str, record: dict[str, Any], normalise: Normaliser) -> ChatRow:
        asked = [text for name in ("instruction", "input") if (text := _text(record, name)).strip()]
        if not asked:
            raise RowError("missing text", "neither instruction nor input")
        user = self._parts("\n\n".join(_SENTENCE.sub("", text) for text in asked), normalise)
        answer = self._parts(_SENTENCE.sub("", _text(record, "output")), normalise)
        return ChatRow(id=id, turns=(Turn(role="user", parts=user), Turn(role="assistant", parts=answer)))

    def _parts(self, text: str, normalise: Normaliser) -> tuple[Part, ...]:
        """Text and runs of units by turns."""
        parts: list[Part] = []
        at = 0
        for match in _UNITS.finditer(text):
            parts += _written(text[at : match.start()], normalise)
            units = tuple(int(digits) for digits in _NUMBER.findall(match[1] or match[2]))
            if max(units) >= self.num_units:
                raise RowError("unit outside the vocabulary", f"[Hu{max(units)}] of {self.num_units} units")
            parts.append(units)
            at = match.end()
        parts += _written(text[at:], normalise)
        if not parts:
            raise RowError("missing text", "nothing but white space")
        if len(parts) == 1 and isinstance(parts[0], str):
            written_text(parts[0], str)  # refuses special strings on their own
        return tuple(parts)


def _written(text: str, normalise: Normaliser) -> Iterator[str]:
    """The text between units, if any."""
    if "[Hu" in text:
        raise RowError("malformed units", text[text.index("[Hu") :][:40])
    if _MARK.search(text):
        raise RowError("malformed units", "a mark of audio that is not one of a pair around units")
    if not text.isspace() and (text := normalise(text)):
        yield text


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("malformed row", f"{name} is a {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("invalid UTF-8", f"{name}, character {error.start}") from error
    return value

"""Instructions as dialogues: rows with `messages`, each a role and a content, as SmolTalk is published.

A content is a text, or a list of parts: texts, speech named by the id of an utterance, units. Text parts may be spelled
as chat services do ({"type": "text", "text": ...}). An answer marked `"interrupted": true` is context: it is not
learnt, for it ends where the user cut in. A row with a turn that cannot be used is rejected whole: an answer
without its question teaches the wrong thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_most.data.corpora.common import Corpus, Item, Reject, terms_of
from megatron_most.data.corpora.records import read_records
from megatron_most.data.manifest import Kind
from megatron_most.data.normalise import Normaliser, find_normaliser, written_text
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, Part, SpeechPart, Turn

_KINDS = ("text", "speech", "units")
_FORMS = 'a part is text, {"text": text}, {"speech": id of an utterance} or {"units": list of numbers}'


@dataclass(frozen=True, kw_only=True)
class Chat(Corpus):
    """Dialogues, written or with speech in them; licence and source are SmolTalk's, another --name gives its own."""

    kind: ClassVar[Kind] = "chat"

    name: str = "smoltalk"
    """Name of the corpus: the first part of every id."""
    files: tuple[Path, ...]
    """Parquet or JSON-lines files (plain, .gz or .zst), or folders of them."""
    column: str = "messages"
    """The column of the dialogue."""
    num_units: int = 500
    """How many units there are; a dialogue with others is rejected."""
    licence: str = ""
    """Licence of the data, for the header and the data card; SmolTalk's if it has that --name."""
    source: str = ""
    """Where the data comes from, likewise."""
    normalisation: str = "none"
    """What is done to the text: none or unicode; the others lose line breaks."""
    language: str | None = "en"

    @property
    def corpus(self) -> str:
        return self.name

    @property
    def terms(self) -> tuple[str, str]:
        return terms_of(
            self.name, "smoltalk", ("Apache-2.0", "SmolTalk (HuggingFaceTB/smoltalk)"), (self.licence, self.source)
        )

    def rows(self) -> Iterator[Item]:
        normalise = find_normaliser(self.normalisation)
        for name, row in read_records(self.files, [(self.column,)]):
            id = f"{self.name}-{name}"
            try:
                if isinstance(row, RowError):
                    raise row
                yield ChatRow(id=id, turns=tuple(_turns(row[self.column], normalise, self.num_units)))
            except RowError as error:
                yield Reject.of(id, error)


def _turns(messages: Any, normalise: Normaliser, num_units: int) -> Iterator[Turn]:
    if not isinstance(messages, list) or not messages:
        raise RowError("missing text", "no messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError("malformed row", f"message {number}: a message is {{role, content}}")
        role, content = message["role"], message.get("content")
        if role == "system" and content in (None, "", []):
            continue  # an empty system message is none
        try:
            is_cut = message.get("interrupted")
            if not isinstance(is_cut, bool | None):
                raise RowError("malformed row", f"interrupted = {_shown(is_cut)}; it is true or false")
            yield Turn(role=role, parts=_parts(content, normalise, num_units), is_trained=not is_cut)
        except RowError as error:
            raise RowError(error.reason, f"message {number}: {error.detail}".removesuffix(": ")) from error


def _parts(content: Any, normalise: Normaliser, num_units: int) -> tuple[Part, ...]:
    if not isinstance(content, list):
        return (written_text(content, normalise),)
    parts: list[Part] = []
    for number, given in enumerate(content, 1):
        try:
            part = _part(given, normalise, num_units)
        except RowError as error:
            raise RowError(error.reason, f"part {number}: {error.detail}") from error
        if part != "":
            parts.append(part)
    if all(isinstance(part, str) for part in parts):
        written_text("".join(map(str, parts)), str)  # as one text: not empty, and no special string alone
    return tuple(parts)


def _part(given: Any, normalise: Normaliser, num_units: int) -> Part:
    if isinstance(given, str):
        return normalise(given)
    if not isinstance(given, dict):
        raise RowError("malformed row", f"{_shown(given)}; {_FORMS}")
    fields = {name: value for name, value in given.items() if value is not None}  # parquet fills up with nulls
    kind = fields.pop("type", None)
    if len(fields) != 1 or (name := next(iter(fields))) not in _KINDS or kind not in (None, name):
        raise RowError("malformed row", f"{_shown(given)}; {_FORMS}")
    value = fields[name]
    if name == "units":
        if not isinstance(value, list) or not value or not all(type(unit) is int and unit >= 0 for unit in value):
            raise RowError("malformed row", f"units = {_shown(value)}; {_FORMS}")
        if max(value) >= num_units:
            raise RowError("unit outside the vocabulary", f"unit {max(value)} of {num_units} (--num-units)")
        return tuple(value)
    if not isinstance(value, str) or name == "speech" and not value:
        raise RowError("malformed row", f"{name} = {_shown(value)}; {_FORMS}")
    return SpeechPart(value) if name == "speech" else normalise(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

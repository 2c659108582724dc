"""Instructions as dialogues: rows with `messages`, each a role and a content, as SmolTalk is published.

A row with a turn that cannot be used is rejected whole: an answer without its question teaches the wrong thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.records import read_records
from megatron_most.data.manifest import Kind
from megatron_most.data.normalise import Normaliser, find_normaliser, written_text
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, Turn


@dataclass(frozen=True, kw_only=True)
class Chat(Corpus):
    """Written dialogues; the defaults are SmolTalk's."""

    kind: ClassVar[Kind] = "chat"

    name: str = "smoltalk"
    """Name of the corpus: the first part of every id."""
    files: tuple[Path, ...]
    """Parquet or JSON-lines files (plain, .gz or .zst), or folders of them."""
    column: str = "messages"
    """The column of the dialogue."""
    licence: str = "Apache-2.0"
    source: str = "SmolTalk (HuggingFaceTB/smoltalk)"
    normalisation: str = "none"
    """What is done to the text: none or unicode; the others lose line breaks."""
    language: str | None = "en"

    @property
    def corpus(self) -> str:
        return self.name

    def rows(self) -> Iterator[Item]:
        normalise = find_normaliser(self.normalisation)
        for name, row in read_records(self.files, [(self.column,)]):
            id = f"{self.name}-{name}"
            try:
                if isinstance(row, RowError):
                    raise row
                yield ChatRow(id=id, turns=tuple(_turns(row[self.column], normalise)))
            except RowError as error:
                yield Reject.of(id, error)


def _turns(messages: Any, normalise: Normaliser) -> Iterator[Turn]:
    if not isinstance(messages, list) or not messages:
        raise RowError("missing text", "no messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError("malformed row", "a message is {role, content}")
        role, content = message["role"], message.get("content")
        if role == "system" and content in (None, ""):
            continue  # an empty system message is none
        yield Turn(role=role, parts=(written_text(content, normalise),))

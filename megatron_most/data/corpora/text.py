"""Plain text corpora, one document a row: parquet as RefinedWeb is published, or JSON lines.

Line breaks are part of a document, so nothing is done to the text unless asked for. Ids are made of file and row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megatron_most.data.corpora.common import Corpus, Item, Reject, terms_of
from megatron_most.data.corpora.records import read_records
from megatron_most.data.manifest import Kind
from megatron_most.data.normalise import find_normaliser, written_text
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import TextRow


@dataclass(frozen=True, kw_only=True)
class Text(Corpus):
    """Documents of text; licence and source are RefinedWeb's, another --name gives its own."""

    kind: ClassVar[Kind] = "text"

    name: str = "refinedweb"
    """Name of the corpus: the first part of every id."""
    files: tuple[Path, ...]
    """Parquet or JSON-lines files (plain, .gz or .zst), or folders of them."""
    column: str | None = None
    """The column of the text; content or text, whichever is there, if None."""
    licence: str = ""
    """Licence of the data, for the header and the data card; RefinedWeb's if it has that --name."""
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
            self.name,
            "refinedweb",
            ("ODC-By 1.0", "RefinedWeb (tiiuae/falcon-refinedweb)"),
            (self.licence, self.source),
        )

    def rows(self) -> Iterator[Item]:
        normalise = find_normaliser(self.normalisation)
        spellings = ("content", "text") if self.column is None else (self.column,)
        for name, row in read_records(self.files, [spellings]):
            id = f"{self.name}-{name}"
            try:
                if isinstance(row, RowError):
                    raise row
                yield TextRow(id=id, text=written_text(row[spellings[0]], normalise))
            except RowError as error:
                yield Reject.of(id, error)

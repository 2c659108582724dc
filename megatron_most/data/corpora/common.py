"""What all corpora share: the options every reader has, the stream it gives, and the loop that writes a manifest.

A reader is a frozen dataclass whose fields are the options of its subcommand; `rows()` streams cuts (Lhotse MonoCut
dictionaries), text rows or chat rows, and a `Reject` in place of each item that cannot be used. Nothing is held in
memory but the row at hand.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_most.data.manifest import Kind, ManifestHeader
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, TextRow
from megatron_most.errors import DataError
from megatron_most.runtime import progress


@dataclass(frozen=True, slots=True)
class Reject:
    """An item of the corpus that cannot be used."""

    id: str
    reason: str
    detail: str = ""

    @classmethod
    def of(cls, id: str, error: RowError) -> Reject:
        return cls(id, error.reason, error.detail)


_TERMS = ("--licence", "--source")
Item = dict[str, Any] | TextRow | ChatRow | Reject


class UnreadableFile(DataError):
    """A list that breaks off: what lies behind the damage is lost, so there is no manifest."""

    def __init__(self, name: str, where: str, wrong: str) -> None:
        super().__init__(f"{name}: unreadable {where}: {wrong}; fetch the file again")
        self.name, self.where, self.wrong = name, where, wrong

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.name, self.where, self.wrong)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Options of every corpus."""

    kind: ClassVar[Kind] = "speech"

    out: Path
    """Folder of the manifest to write; it must not be there yet."""
    split: str = "train"
    """Name of the part, for the header."""
    licence: str
    """Licence of the data, for the header and the data card."""
    source: str
    """Where the data comes from, for the header and the data card."""
    normalisation: str = "whitespace"
    """What is done to the text: none, unicode, whitespace, lower, commonvoice, whisper-english or whisper-basic."""
    language: str | None = None
    """Language code of the data."""
    max_reject_rate: float = 0.05
    """Share of items that may be rejected before the run stops."""

    @property
    def corpus(self) -> str:
        """Name of the corpus: the first part of every id."""
        raise NotImplementedError

    @property
    def split_name(self) -> str:
        return self.split

    @property
    def terms(self) -> tuple[str, str]:
        """Licence and source."""
        return self.licence, self.source

    @property
    def audio_folder(self) -> Path | None:
        """The folder that audio paths count from."""
        return None

    def rows(self) -> Iterator[Item]:
        raise NotImplementedError


def terms_of(name: str, known: str, terms: tuple[str, str], given: tuple[str, str]) -> tuple[str, str]:
    """Licence and source of a corpus whose reader knows those of one name only; others have to give their own."""
    if name != known and (missing := [flag for flag, value in zip(_TERMS, given, strict=True) if not value]):
        raise DataError(
            f"--name {name}: {' and '.join(missing)} not given, and the defaults are those of {known}; "
            f"give {name}'s own, for the data card says them"
        )
    licence, source = (value or default for value, default in zip(given, terms, strict=True))
    return licence, source


def write_manifest(corpus: Corpus) -> ManifestHeader:
    """Read the whole corpus into the manifest `corpus.out`. Raises, and leaves none, past the rate of rejects."""
    audio = corpus.audio_folder
    licence, source = corpus.terms
    with ManifestWriter(
        corpus.out,
        kind=corpus.kind,
        corpus=corpus.corpus,
        split=corpus.split_name,
        licence=licence,
        source=source,
        normalisation=corpus.normalisation,
        language=corpus.language,
        audio_root="" if audio is None else _as_given(audio, corpus.out),
        max_reject_rate=corpus.max_reject_rate,
    ) as out:
        try:
            for item in progress(corpus.rows(), f"manifest {corpus.corpus}", "item"):
                if type(item) is dict:
                    out.add_cut(item)
                elif isinstance(item, Reject):
                    out.reject(item.id, item.reason, item.detail)
                elif isinstance(item, TextRow):
                    out.add_text(item.id, item.text)
                elif isinstance(item, ChatRow):
                    out.add_chat(item)
        except UnreadableFile as error:
            with contextlib.suppress(DataError):  # the rate of rejects does not matter any more
                out.reject(error.name, "unreadable manifest", f"{error.where}: {error.wrong}")
            raise
    return out.header


def _as_given(audio: Path, out: Path) -> str:
    """The audio's folder for the header. A path given relative counts from the manifest there, so that both can be
    moved together; an absolute one stays, for then it is the manifest alone that may move.
    """
    return str(audio) if audio.is_absolute() else os.path.relpath(audio.resolve(), out.resolve())

"""Manifest: a corpus as checked rows, one JSON object a line, behind a header that says what and whose it is.

Speech rows are Lhotse's MonoCut dictionaries, so Lhotse opens the file; text and chat rows are plain objects. A folder
holds `manifest.json`, `rows.jsonl.gz` and `rejects.jsonl`. Audio paths are relative to `audio_root`, which may be given
anew where the corpus has moved. Nothing here opens audio or lets Lhotse open it: a Lhotse source of type "command" is a
shell command.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, Row, TextRow, Utterance, parse_chat, parse_text, parse_utterance
from megatron_most.data.seal import SEAL, check_seal, sealed
from megatron_most.errors import DataError
from megatron_most.runtime import cannot_read, reading, sha256_file

Kind = Literal["speech", "text", "chat"]
FORMAT = "most-manifest-2"
HEADER, ROWS, REJECTS = "manifest.json", "rows.jsonl.gz", "rejects.jsonl"


@dataclass(frozen=True, kw_only=True)
class ManifestHeader:
    """What a manifest holds, where it came from, and on what terms it may be used."""

    kind: Kind
    corpus: str
    split: str
    licence: str
    source: str
    normalisation: str
    """The named choice of text normalisation that was applied."""
    language: str | None = None
    audio_root: str = ""
    rows: int = 0
    seconds: float = 0.0
    files: dict[str, tuple[int, str]]
    """name -> (bytes, sha256)"""
    rejects: dict[str, int] = field(default_factory=dict)
    augmentation: dict[str, Any] | None = None
    """How the sound of all rows is changed after it is read (speech's Augmentation); None: it is not."""
    format: str = FORMAT

    @property
    def sha256(self) -> str:
        """Of rows.jsonl.gz; names the manifest's content in everything made from it."""
        return self.files[ROWS][1]

    def to_json(self) -> str:
        return sealed({k: v for k, v in asdict(self).items() if v is not None})


@dataclass(frozen=True)
class Manifest:
    """An opened manifest; rows stream from the file."""

    folder: Path
    header: ManifestHeader

    def verify(self) -> None:
        """Raise where a file is not the one that the header was written for."""
        for name, (_, wanted) in self.header.files.items():
            path = self.folder / name
            with reading(path, "make the manifest again"):
                found = sha256_file(path)
            if found != wanted:
                raise DataError(
                    f"{path}: changed since the manifest was made (sha256 {found[:12]}…, header says {wanted[:12]}…); "
                    "make the manifest again"
                )

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(row number, line) of rows start..stop-1, unparsed: skipping is cheap."""
        try:
            with gzip.open(self.folder / ROWS, "rb") as file:
                for number, line in enumerate(file):
                    if stop is not None and number >= stop:
                        return
                    if number >= start:
                        yield number, line
        except (OSError, EOFError, zlib.error) as error:
            raise cannot_read(self.folder / ROWS, error, "make the manifest again") from error

    def rows(self) -> Iterator[Row]:
        for number, line in self.lines():
            try:
                yield parse_row(self.header.kind, line)
            except RowError as error:
                raise DataError(f"{self.folder / ROWS}, row {number + 1}: {error}") from error

    def require_plain(self, what: str) -> None:
        """DataError where the sound is augmented, which only `units` hears so."""
        if self.header.augmentation is not None:
            raise DataError(f"{self.folder}: its speech is augmented, and {what} hears recordings as they are; give "
                            "the manifest that it was made from")  # fmt: skip

    @property
    def audio_root(self) -> Path:
        """Where audio lies: a relative root counts from the manifest's folder."""
        return (self.folder / self.header.audio_root).resolve()


def parse_row(kind: Kind, line: bytes) -> Row:
    """One checked row. RowError says what is wrong with it."""
    row = load_json_line(line)
    if kind == "speech":
        return parse_utterance(row)
    return parse_text(row) if kind == "text" else parse_chat(row)


def load_json_line(line: bytes) -> dict[str, Any]:
    """A JSON object from one line, as a RowError where it is none."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise RowError("invalid UTF-8", f"byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise RowError("malformed JSON", str(error)[:200]) from error
    if not isinstance(row, dict):
        raise RowError("malformed JSON", f"a {type(row).__name__}, not an object")
    return row


def open_manifest(folder: Path | str) -> Manifest:
    """Read the header, strictly; rows are read when asked for."""
    folder = Path(folder)
    path = folder / HEADER
    try:
        data = path.read_bytes()
        found = json.loads(data)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no manifest here ({HEADER} is missing); make one with `manifest`") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder}: a file, not the folder of a manifest; give the folder") from error
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, "make the manifest again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of format {FORMAT}; make it again with this version")
    check_seal(data, path, "make the manifest again")
    del found[SEAL]
    unknown = sorted(set(found) - {f.name for f in fields(ManifestHeader)})
    if unknown:
        raise DataError(f"{path}: unknown field {unknown[0]!r}; make the manifest again")
    try:
        found["files"] = {name: (int(size), str(digest)) for name, (size, digest) in found["files"].items()}
        header = ManifestHeader(**found)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {error}; make the manifest again") from error
    texts = (header.corpus, header.split, header.licence, header.source, header.normalisation, header.audio_root)
    if header.kind not in ("speech", "text", "chat") or not all(isinstance(t, str) for t in texts):
        raise DataError(f"{path}: a field has a wrong type or value; make the manifest again")
    if header.augmentation is not None and not isinstance(header.augmentation, dict):
        raise DataError(f"{path}: augmentation is no table; augment again")
    if type(header.rows) is not int or header.rows < 0 or not isinstance(header.seconds, int | float):
        raise DataError(f"{path}: rows = {header.rows!r}, seconds = {header.seconds!r}: not counts; make it again")
    if set(header.files) != {ROWS, REJECTS}:
        raise DataError(f"{path}: files = {', '.join(header.files)}: not {ROWS}, {REJECTS}; make the manifest again")
    return Manifest(folder=folder, header=header)


__all__ = [
    "HEADER", "REJECTS", "ROWS", "ChatRow", "Kind", "Manifest", "ManifestHeader", "Row", "TextRow", "Utterance",
    "load_json_line", "open_manifest", "parse_row",
]  # fmt: skip

"""Writing a manifest: rows stream in, are checked, and must have ids of their own; bad ones are set aside by reason.

Memory stays bounded however many rows come: ids are remembered by hash in a temporary database, not in a set. The
folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_most.data.manifest import HEADER, REJECTS, ROWS, Kind, ManifestHeader
from megatron_most.data.rejects import Rejects, RowError
from megatron_most.data.rows import ChatRow, chat_dict, parse_chat, parse_text, parse_utterance
from megatron_most.data.temporary import cannot_spill, open_temporary
from megatron_most.errors import DataError
from megatron_most.runtime import cannot_write, claim, sha256_file, sync_folder, write_atomically, writing

_CHECK_EVERY = 1000  # rows between two looks at the reject rate
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_CACHE_KIB = 64 << 10  # ids beyond it go to the temporary disk
_FAST = 4  # gzip level: half the time of the default, 7 % larger on cuts


class ManifestWriter:
    """`with ManifestWriter(...) as out: out.add_cut(cut)`; the folder is there when the block ends without an error."""

    def __init__(
        self,
        folder: Path | str,
        *,
        kind: Kind,
        corpus: str,
        split: str,
        licence: str,
        source: str,
        normalisation: str,
        language: str | None = None,
        audio_root: str = "",
        augmentation: dict[str, Any] | None = None,
        max_reject_rate: float = 0.05,
    ) -> None:
        self.folder = Path(folder)
        self._about = dict(kind=kind, corpus=corpus, split=split, licence=licence, source=source)
        self._about |= dict(normalisation=normalisation, audio_root=audio_root)
        self._kind, self._language, self._max_reject_rate = kind, language, max_reject_rate
        self._augmentation = augmentation
        self.rows, self._seconds = 0, 0.0
        self._recording: object = None
        self._recording_json = ""

    @property
    def header(self) -> ManifestHeader:
        return self._header

    @property
    def _kept_rejects(self) -> Path:
        """Where the list of bad rows stays when there is no manifest."""
        return self.folder.with_name(f"{self.folder.name}.{REJECTS}")

    def __enter__(self) -> Self:
        self._part = self.folder.with_name(f"{self.folder.name}.part")
        self.rejects = Rejects(
            lambda line: self._rejects_file.write(line), self._max_reject_rate, where=self._kept_rejects
        )
        with writing(self._part):
            if self.folder.exists():
                raise DataError(f"{self.folder}: exists already; choose another folder or remove it")
            self._part.mkdir(parents=True, exist_ok=True)
            self._holding = contextlib.ExitStack()
            self._claim = self._holding.enter_context(claim(self._part))
            for name in (ROWS, REJECTS, HEADER):  # of a run that was killed: manifests are made anew
                (self._part / name).unlink(missing_ok=True)
            self._hash = hashlib.sha256()
            self._file = open(self._part / ROWS, "wb")
            raw = _Hashed(self._file, self._hash)
            self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=_FAST, fileobj=raw, mtime=0)
            self._rows_file = io.BufferedWriter(self._gzip, 1 << 20)  # type: ignore[type-var]
            self._rejects_file = open(self._part / REJECTS, "wb")
        self._ids = open_temporary(_CACHE_KIB)
        self._ids.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        return self

    def add_cut(self, cut: dict[str, Any]) -> None:
        """A Lhotse MonoCut as a dictionary, its audio path relative to the audio root."""
        try:
            utterance = parse_utterance(cut)
        except RowError as error:
            self.reject(str(cut.get("id", "?")), error.reason, error.detail)
            return
        self._add(utterance.id, self._line(cut), utterance.duration)

    def _line(self, cut: dict[str, Any]) -> str:
        """The cut as JSON. Cuts of one recording come together, so its half of the line is made once."""
        rest = dict(cut)
        recording = rest.pop("recording")
        if recording != self._recording:
            self._recording_json = _encode(recording)
            self._recording = json.loads(self._recording_json)  # a copy: the caller may change his
        return f'{_encode(rest)[:-1]},"recording":{self._recording_json}}}'

    def add_text(self, id: str, text: str) -> None:
        row = {"id": id, "text": text}
        try:
            parse_text(row)
        except RowError as error:
            self.reject(id, error.reason, error.detail)
            return
        self._add(id, _encode(row))

    def add_chat(self, row: ChatRow) -> None:
        as_dict = chat_dict(row)
        try:
            parse_chat(as_dict)
        except RowError as error:
            self.reject(row.id, error.reason, error.detail)
            return
        self._add(row.id, _encode(as_dict))

    def reject(self, id: str, reason: str, detail: str = "") -> None:
        with writing(self._part):
            self.rejects.add(id, reason, detail)
        self._judge()

    def _add(self, id: str, line: str, seconds: float = 0.0) -> None:
        key = hashlib.blake2b(id.encode(), digest_size=16).digest()
        try:
            is_new = self._ids.execute("INSERT OR IGNORE INTO ids VALUES (?)", (key,)).rowcount
        except sqlite3.Error as error:
            raise cannot_spill(error) from error
        if not is_new:
            self.reject(id, "duplicate id")
            return
        try:
            self._rows_file.write(line.encode() + b"\n")
        except OSError as error:  # not by `writing`: this is the hot path
            raise cannot_write(self._part, error) from error
        self.rows += 1
        self._seconds += seconds
        self._judge()

    def _judge(self) -> None:
        done = self.rows + self.rejects.total
        if done % _CHECK_EVERY == 0:
            self.rejects.check(done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ids.close()
        try:
            if error is None:
                self._seal()
        finally:
            for file in (self._rows_file, self._file, self._rejects_file):
                with contextlib.suppress(OSError, ValueError):
                    file.close()
            if error is not None or not self.folder.exists():
                self._keep_rejects()
            self._holding.close()

    def _seal(self) -> None:
        self.rejects.check(self.rows + self.rejects.total, at_end=True)
        if not self.rows:
            listed = f"; look at {self._kept_rejects}" if self.rejects.total else ""
            raise DataError(
                f"{self.folder}: no usable row (rejected: {self.rejects}); check the path and the options{listed}"
            )
        with writing(self._part):
            self._rows_file.close()
            self._file.close()
            self._rejects_file.close()
            hashes = {ROWS: self._hash.hexdigest(), REJECTS: sha256_file(self._part / REJECTS)}
            self._header = ManifestHeader(
                **self._about,  # type: ignore[arg-type]
                language=self._language,
                augmentation=self._augmentation,
                rows=self.rows,
                seconds=round(self._seconds, 3),
                files={name: ((self._part / name).stat().st_size, digest) for name, digest in hashes.items()},
                rejects=dict(self.rejects.counts),
            )
            write_atomically(self._part / HEADER, self._header.to_json())
            self._claim.check()
            self._part.rename(self.folder)
            for mark in self.folder.glob(".claim-*"):
                mark.unlink(missing_ok=True)
            self._kept_rejects.unlink(missing_ok=True)  # of a try that failed
            sync_folder(self.folder.parent)

    def _keep_rejects(self) -> None:
        """Nothing half-written stays but the list of bad rows, which says why there is nothing."""
        rejects = self._part / REJECTS
        if self.rejects.total and rejects.exists():
            with contextlib.suppress(OSError):
                rejects.replace(self._kept_rejects)
        shutil.rmtree(self._part, ignore_errors=True)


class _Hashed(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, file: Any, hash: Any) -> None:
        self._to, self._sum = file, hash

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sum.update(data)
        self._to.write(data)
        return len(data)

"""Lists of corpora as bytes, lines and tables: plain, gzip or zstd, recognised by content as well as by name.

Damage to one line is that line's matter; damage to the stream (a gzip cut short) raises UnreadableFile with the line
reached. A line without end does not fill the memory. A row of a table is one line, whatever quotes are in it: one that
is never closed spoils its own row only.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from megatron_most.data.corpora.common import Reject, UnreadableFile
from megatron_most.errors import DataError
from megatron_most.runtime import cannot_read, open_file, reading

LONGEST = 1 << 26  # bytes of a line; what is longer is cut there, which no parser takes for a whole row
_BUFFER = 1 << 20


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content, decompressed as it is read."""
    with open_file(path) as file, reading(path, "check the path"):
        start = file.read(4)
    if start[:2] == b"\x1f\x8b" or path.suffix == ".gz":
        stream: Any = gzip.open(path, "rb")
        return io.BufferedReader(stream, _BUFFER)
    if start == b"\x28\xb5\x2f\xfd" or path.suffix == ".zst":
        stream = need_pyarrow(path).input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream, _BUFFER)
    return open_file(path, _BUFFER)


def need_pyarrow(path: Path) -> Any:
    """pyarrow, which reads parquet and zstd."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow, which cannot be imported ({error}); install pyarrow") from error
    return pyarrow


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of each line that is not blank."""
    number = 0
    with open_bytes(path) as file:
        while True:
            try:
                line = file.readline(LONGEST)
                if len(line) == LONGEST:
                    while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
                        pass
            except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: pyarrow's
                raise UnreadableFile(path.name, f"after line {number}", str(error)) from error
            if not line:
                return
            number += 1
            if not line.isspace():
                yield number, line


def read_table(
    path: Path, needed: Sequence[str], *, delimiter: str = "\t", quoted: bool = False
) -> Iterator[tuple[int, dict[str, str]] | Reject]:
    """(line number, columns by name) of each row under a header line; DataError where a needed column is missing.

    `quoted`: the list was written with quotes around columns that hold a quote or the delimiter, so they are taken off.
    """
    names: list[str] | None = None
    for number, line in read_lines(path):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            if names is None:
                raise DataError(f"{path}: its first line is no UTF-8; is this the list?") from error
            yield Reject(f"{path.name}:{number}", "invalid UTF-8", f"byte {error.start} of the line")
            continue
        columns = _unquoted(text, delimiter) if quoted else text.split(delimiter)
        if names is None:
            names = columns
            _require(path, needed, names)
        elif len(columns) != len(names):
            wrong = f"{len(columns)} columns under a header of {len(names)}"
            yield Reject(f"{path.name}:{number}", "malformed row", wrong)
        else:
            yield number, dict(zip(names, columns, strict=True))
    if names is None:
        _require(path, needed, [])


def _require(path: Path, needed: Sequence[str], names: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        listed = ", ".join(names)[:400] or "none"
        raise DataError(f"{path}: no column {', '.join(missing)}; the columns found are {listed}")


def _unquoted(line: str, delimiter: str) -> list[str]:
    """The columns of one line as csv writes them; where its quotes do not pair, they are signs like any other."""
    if '"' in line:
        with contextlib.suppress(csv.Error):
            [columns] = csv.reader([line], delimiter=delimiter, strict=True)
            return columns
    return line.split(delimiter)


def list_files(given: Sequence[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by the name their rows are known under: files as given, folders searched, each in order of name."""
    found: dict[str, Path] = {}
    for path in given:
        if path.is_dir():
            names = {}
            for file in walk(path):
                if isinstance(file, Reject):
                    raise DataError(f"{path}/{file.detail}")
                if file.name.endswith(suffixes):
                    names[file.relative_to(path).as_posix()] = file
        else:
            names = {path.name: path}
        for name, file in names.items():
            for suffix in suffixes:
                name = name.removesuffix(suffix)
            if name in found:
                raise DataError(f"{found[name]} and {file}: ids would be alike ({name}); read them into two manifests")
            found[name] = file
    if not found:
        raise DataError(f"{', '.join(map(str, given))}: no file ending in {', '.join(suffixes)}; check the path")
    return found


def walk(folder: Path, top: Path | None = None) -> Iterator[Path | Reject]:
    """Files below a folder, in order of name, and a Reject for each folder inside that cannot be read, with its path
    from `top` (that folder). Links to folders are not followed.
    """
    top = top or folder
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise cannot_read(folder, error, "check the path") from error
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            try:
                yield from walk(path, top)
            except DataError as error:
                yield Reject(entry.name, "unreadable folder", str(error).replace(f"{top}/", ""))
        else:
            yield path

"""Records of text corpora, from parquet or JSON lines: chosen columns of each row, in bounded memory.

Parquet is read in small batches of one row group at a time. A column that is not there is an error that names those
that are; in JSON lines, whose rows may differ, the first row speaks for the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.common import UnreadableFile
from megatron_most.data.corpora.lines import list_files, need_pyarrow, read_lines
from megatron_most.data.manifest import load_json_line
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import require_file

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".json")
_BATCH = 256

Record = tuple[str, dict[str, Any] | RowError]


def read_records(files: Sequence[Path], columns: Sequence[Sequence[str]]) -> Iterator[Record]:
    """(name of the row, its columns) over all files; each column is the first of its spellings that a file has.

    The columns are known by their first spelling. Files may be folders. A row is named after its file and place.
    """
    for name, path in list_files(files, SUFFIXES).items():
        rows = _parquet(path, columns) if path.suffix == ".parquet" else _json_lines(path, columns)
        for number, row in rows:
            yield f"{name}-{number}", row


def _choose(path: Path, columns: Sequence[Sequence[str]], found: Sequence[str]) -> dict[str, str]:
    """The spelling of each column in this file."""
    chosen = {}
    for spellings in columns:
        spelling = next((name for name in spellings if name in found), None)
        if spelling is None:
            listed = ", ".join(map(str, found))[:400] or "none"
            raise DataError(f"{path}: no column {' or '.join(spellings)}; the columns found are {listed}")
        chosen[spellings[0]] = spelling
    return chosen


def _json_lines(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    chosen: dict[str, str] | None = None
    for number, line in read_lines(path):
        try:
            row = load_json_line(line)
        except RowError as error:
            yield number, error
            continue
        if chosen is None:
            chosen = _choose(path, columns, list(row))
        yield number, {name: row.get(spelling) for name, spelling in chosen.items()}


def _parquet(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    pyarrow, number = need_pyarrow(require_file(path)), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            chosen = _choose(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(_BATCH, columns=list(chosen.values()), use_threads=False):
                for i in range(batch.num_rows):
                    number += 1
                    try:
                        row: dict[str, Any] = {name: batch.column(at)[i].as_py() for name, at in chosen.items()}
                    except UnicodeDecodeError as error:  # parquet does not check what it calls a string
                        yield number, RowError("invalid UTF-8", f"byte {error.start}")
                        continue
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableFile(path.name, f"after row {number}", str(error).splitlines()[0][:200]) from error

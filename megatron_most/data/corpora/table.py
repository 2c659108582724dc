"""A look-up table on disk: the side files of a corpus (transcripts, speakers, durations) may not fit the memory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator

from megatron_most.data.rejects import RowError
from megatron_most.data.temporary import cannot_spill, open_temporary

_CACHE_KIB = 32 << 10


class DiskTable:
    """Text by key; a key given twice has no value."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._table = open_temporary(_CACHE_KIB)
        self._table.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value TEXT, used INT DEFAULT 0) WITHOUT ROWID")

    def fill(self, pairs: Iterable[tuple[str, str]]) -> None:
        with _spilling():
            self._table.executemany(
                "INSERT INTO t (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = NULL", pairs
            )

    def get(self, key: str) -> str | None:
        """The value of `key`, None if there is none; RowError where the key was given twice."""
        with _spilling():
            row = self._table.execute("SELECT value FROM t WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[0] is None:
            raise RowError("duplicate id", f"{key} is twice in {self.name}")
        return str(row[0])

    def take(self, key: str) -> str | None:
        """`get`, and note that the key was asked for."""
        with _spilling():
            self._table.execute("UPDATE t SET used = 1 WHERE key = ?", (key,))
        return self.get(key)

    def left(self) -> Iterator[str]:
        """Keys that nobody took, in order."""
        with _spilling():
            found = self._table.execute("SELECT key FROM t WHERE NOT used ORDER BY key")
            for (key,) in found:
                yield key


@contextlib.contextmanager
def _spilling() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise cannot_spill(error) from error

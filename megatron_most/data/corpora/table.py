"""A look-up table on disk: the side files of a corpus (transcripts, speakers, durations) may not fit the memory.

SQLite keeps it in a file without a name, which goes with the object, a killed process included.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator

from megatron_most.data.rejects import RowError


class DiskTable:
    """Text by key; a key given twice has no value."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._table = sqlite3.connect("")
        self._table.execute("PRAGMA journal_mode=OFF")
        self._table.execute("PRAGMA cache_size=-32768")
        self._table.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value TEXT, used INT DEFAULT 0) WITHOUT ROWID")

    def fill(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._table.executemany(
            "INSERT INTO t (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = NULL", pairs
        )

    def get(self, key: str) -> str | None:
        """The value of `key`, None if there is none; RowError where the key was given twice."""
        row = self._table.execute("SELECT value FROM t WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[0] is None:
            raise RowError("duplicate id", f"{key} is twice in {self.name}")
        return str(row[0])

    def take(self, key: str) -> str | None:
        """`get`, and note that the key was asked for."""
        self._table.execute("UPDATE t SET used = 1 WHERE key = ?", (key,))
        return self.get(key)

    def left(self) -> Iterator[str]:
        """Keys that nobody took, in order."""
        for (key,) in self._table.execute("SELECT key FROM t WHERE NOT used ORDER BY key"):
            yield key

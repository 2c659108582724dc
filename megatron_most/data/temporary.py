"""SQLite tables on the temporary disk: look-ups that may not fit the memory.

SQLite keeps such a table in a file without a name, which goes with the connection, a killed process included. It is
made in the first of its own folders that can be written, and only once the table outgrows its cache.
"""

from __future__ import annotations

import os
import sqlite3

from megatron_most.errors import DataError

_SETTINGS = ("PRAGMA journal_mode=OFF",)


def open_temporary(cache_kib: int) -> sqlite3.Connection:
    """An empty database in memory, of which all but so much goes to the temporary disk."""
    database = sqlite3.connect("")
    for setting in (*_SETTINGS, f"PRAGMA cache_size=-{cache_kib}"):
        database.execute(setting)
    return database


def cannot_spill(error: sqlite3.Error) -> DataError:
    """What to raise where the temporary disk takes no more."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    what = "temporary disk full" if full else f"temporary disk cannot be used: {error}"
    return DataError(f"{_folder()}: {what}; set TMPDIR to a folder with room")


def _folder() -> str:
    """Where SQLite keeps temporary files: the folders that its manual lists, in that order."""
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")
    return next((path for path in named if path and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)), ".")

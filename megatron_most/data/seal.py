"""Records that prove themselves: JSON objects that end with the SHA-256 of all their bytes before it.

`manifest.json`, `units.json` and `dataset.json` are such records, and name size and hash of every file beside them. So
one changed byte anywhere in such a folder is found: in the record as soon as it is opened, elsewhere by `verify`. The
hash is of bytes, not of values: a blank that became a tab means that a disk or a copy is not to be trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError

SEAL = "seal"


def sealed(values: Mapping[str, Any]) -> str:
    """The text of a record. Its values must not have a field of that name."""
    head = json.dumps(values, indent=1, ensure_ascii=False).removesuffix("\n}") + ",\n"
    return head + _tail(head.encode())


def check_seal(data: bytes, path: Path, remedy: str) -> None:
    """Raise where a record is not byte for byte what was written."""
    head = data[: -len(_tail(b""))]
    if data != head + _tail(head).encode():
        raise DataError(f"{path}: changed since it was written: the hash of itself at its end does not fit; {remedy}")


def _tail(head: bytes) -> str:
    return f' "{SEAL}": "{hashlib.sha256(head).hexdigest()}"\n}}\n'

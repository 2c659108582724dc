"""What a user without rights meets: bodies run in a child that is not the superuser, whom no mode keeps out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from megatron_most.errors import DataError


def let_in(folder: Path) -> None:
    """Let a child that is nobody come as far as a test's folder."""
    for path in (folder, *list(folder.parents)[:2]):
        path.chmod(0o755)


def as_nobody(body: Callable[[], object]) -> str:
    """What `body()` returns in such a child, or the message of the DataError it raises. Import before what it needs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                found = str(body())
            except DataError as error:
                found = str(error)
            except BaseException as error:
                found = f"not a DataError: {error!r}"
            os.write(writer, found.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        result = file.read().decode()
    os.waitpid(child, 0)
    return result

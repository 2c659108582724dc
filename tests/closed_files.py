"""What a user without rights meets: bodies run in a child that is not the superuser, whom no mode keeps out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_most.errors import DataError


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that such a child can come to. Pytest's own are private, and made so again whenever another starts."""
    with tempfile.TemporaryDirectory(prefix="open-") as folder:
        path = Path(folder).resolve()
        path.chmod(0o755)
        yield path
        for inside in path.rglob("*"):  # what a test has closed could not be removed by one who is not the superuser
            if inside.is_dir() and not inside.is_symlink():
                inside.chmod(0o755)


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

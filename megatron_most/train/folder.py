"""A run's folder: what checkpoint.folder and name make of it, and the right to write there; or one line of why not."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_most.checkpoint import Shelf
from megatron_most.config import RunConfig
from megatron_most.errors import ConfigError, MostError
from megatron_most.runtime import Claim, agree, claim, writing


def run_folder(config: RunConfig) -> Path:
    """The path, which need not be there yet. ConfigError, on all ranks alike, for what cannot name one."""
    name, pattern = config.name, config.checkpoint.folder
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable():
        raise ConfigError("name", name, "not a name that a folder can have", "give letters, digits and dashes")
    try:
        is_plain = all(
            found[1] is None or found[1:] == ("name", "", None) for found in string.Formatter().parse(pattern)
        )
    except ValueError:  # a brace without its other
        is_plain = False
    if not is_plain:
        raise ConfigError("checkpoint.folder", pattern, "{name} is all that can stand in braces", "leave others out")
    folder = pattern.format(name=name)
    if not folder.strip() or "\0" in folder:
        raise ConfigError("checkpoint.folder", pattern, "not a path", "name a folder")
    return Path(folder)


@contextmanager
def claimed(shelf: Shelf, rank: int) -> Iterator[Claim | None]:
    """Rank 0 makes and holds the run's folder; the others wait to hear that it does, or all raise why it cannot."""
    with ExitStack() as stack:
        own, wrong = None, None
        if rank == 0:
            try:
                with writing(shelf.folder):
                    shelf.folder.mkdir(parents=True, exist_ok=True)
                    own = stack.enter_context(claim(shelf.folder))
                    shelf.clear_drafts()
            except MostError as error:
                wrong = error
        agree(wrong)
        yield own

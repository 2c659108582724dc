"""Names of a room that are loaded when they are first asked for: for rooms that some use without their heavy half."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(room: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A room's `__getattr__`. `homes`: file -> the public names in it.

    None of these is a file's name: a file that was imported is an attribute of its room, which is found first.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    assert not home_of.keys() & homes.keys()

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{home_of[name]}"), name)

    return find

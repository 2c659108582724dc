"""docs/config.md: every field of a recipe with its type, its default and what its author wrote below it.

All of it is read from the dataclasses and their source, so the page says what the code says. Python keeps no docstrings
of fields: they are the strings that stand by themselves after a field, read with `ast`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from megatron_most.config.schema import RunConfig

_HEAD = """\
# Every field of a recipe

Made from the dataclasses in `megatron_most/config` by `tools/train.py --reference` (`make docs`); a test
compares it with them.

In a recipe (TOML) a heading below is a table, `[moe]`, and its fields the keys in it. On the command line a field is
`--moe.top-k 4`, `--data.asr.train FOLDER FOLDER`. A field that is "not set" is left out of files: TOML has no null.
Unknown fields, wrong types and wrong combinations are refused by name before any process group starts. A recipe may
begin with `extends`, a shipped name or a path, or several; what comes later wins ([training.md](training.md)).
"""
_WORDS = {bool: "true, false", int: "integer", float: "number", str: "text"}


def reference(kind: type = RunConfig) -> str:
    """The page, for the dataclass of a whole run."""
    own, tables, seen = [], [], set[type]()
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            tables += [*_sections(hints[field.name], field.name, seen)]  # type: ignore[arg-type]
        else:
            own.append(field.name)
    return "\n".join([_HEAD, "## The run itself", "", *_rows(kind, own), "", *tables]).rstrip() + "\n"


def _sections(kind: type, at: str, seen: set[type]) -> Iterator[str]:
    """A table of the recipe and those inside it. One that is there several times, as a task, is told once."""
    hints, fields = get_type_hints(kind), [field.name for field in dataclasses.fields(kind)]
    inner: dict[type, list[str]] = {}
    for name in fields:
        if dataclasses.is_dataclass(hints[name]):
            inner.setdefault(hints[name], []).append(name)  # type: ignore[arg-type]
    yield from (f"## {at}", "", _line(inspect.getdoc(kind) or ""), "")
    yield from (*_rows(kind, [name for name in fields if not any(name in names for names in inner.values())]), "")
    notes = _notes(kind)
    for table, names in inner.items():
        if table in seen:
            continue
        seen.add(table)
        told = [section for section in _sections(table, f"{at}.{names[0]}", seen)]
        if len(names) > 1:
            told[0] = f"## {at}.TASK"
            told[2] += " TASK is one of " + ", ".join(f"`{name}`" for name in names) + "."
        elif said := notes.get(names[0]):
            told[2] = f"{said} {told[2]}"
        yield from told


def _rows(kind: type, names: list[str]) -> list[str]:
    hints, notes = get_type_hints(kind), _notes(kind)
    defaults = {field.name: _default(field) for field in dataclasses.fields(kind)}
    rows = [f"| `{name}` | {_type(hints[name])} | {defaults[name]} | {notes.get(name, '')} |" for name in names]
    return ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _notes(kind: type) -> dict[str, str]:
    """What stands below each field."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef), kind
    found: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if is_field and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = _line(str(below.value.value))  # type: ignore[attr-defined]
    return found


def _line(text: str) -> str:
    """As a cell of a table holds it."""
    return " ".join(text.split()).replace("|", "\\|")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[operator]
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return "`[" + ", ".join(_toml(item) for item in value) + "]`"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _type(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inner if one is not type(None))
    if origin is tuple:
        return f"list of {_type(inner[0])}" if inner[-1] is ... else f"{len(inner)} {_type(inner[0])}s"
    if origin is dict:
        return "table"
    return _WORDS[hint]

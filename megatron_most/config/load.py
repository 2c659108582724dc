"""Recipe -> command line -> RunConfig, and back to a file that repeats the run.

A recipe is a TOML file, or the name of one shipped in `megatron_most/recipes`; it may extend another with
`extends = "name"` (a shipped name, or a path relative to the recipe), or several: ["a model", "a phase"]. Later wins:
base recipes in their order, recipe, command line. An unknown table or key is an error, a wrong type too: a typo must
not train for a week.
Names in [core] and [deepspeed] are upstream's; nested tables and dotted names mean the same there.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_most.config.schema import RunConfig
from megatron_most.errors import ConfigError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
UPSTREAM = ("core", "deepspeed")
PARTS = ("parts/phase1", "parts/phase2", "parts/augment", "parts/augment-frames")
"""What a recipe can extend beside a model: no run by itself."""


_OTHER_NAMES = {"--runtime.device": "--device"}
"""Flags that people write for what has another name here."""


def recipe_names() -> tuple[str, ...]:
    """The recipes that ship with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def load_recipe(recipe: str | Path) -> RunConfig:
    """A recipe by name or path, with all that it extends, as a RunConfig."""
    return _from_table(RunConfig, _read(_find(recipe, Path.cwd()), ()), "")


def from_command_line(
    args: Sequence[str] | None = None, default: str = "most-16b", prog: str | None = None
) -> RunConfig:
    """`--config NAME|FILE` first, then any field as `--table.field value`; `--help` lists them with their defaults.

    Upstream settings, which are not listed, are `--core.NAME VALUE` and `--deepspeed.DOTTED.NAME VALUE`, as in TOML.
    """
    import argparse  # with tyro only here: a library user who reads recipes needs neither

    import tyro

    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config", default=default)
    known, words = first.parse_known_args(sys.argv[1:] if args is None else args)
    words = [_OTHER_NAMES.get(flag, flag) + equals + value for flag, equals, value in (w.partition("=") for w in words)]
    recipe = load_recipe(known.config)
    upstream, words = _upstream_flags(words)
    # tyro would replace a recipe's whole upstream table by what one flag says, so it sees the other fields only.
    hints = {name: hint for name, hint in _hints(RunConfig).items() if name not in UPSTREAM}
    kind = dataclasses.make_dataclass("Fields", hints.items(), frozen=True, kw_only=True)
    teach = (
        f"--config NAME|FILE: a TOML recipe, or one of {', '.join(recipe_names())}; the defaults below are those of "
        f"{known.config}. Settings of upstream libraries: --core.NAME VALUE, --deepspeed.NAME VALUE."
    )
    shown = kind(**{name: getattr(recipe, name) for name in hints})
    said = tyro.cli(kind, args=words, default=shown, prog=prog, description=teach, config=(tyro.conf.AvoidSubcommands,))
    fields = {name: getattr(said, name) for name in hints}
    return replace(dataclasses.replace(recipe, **fields), upstream)


def _upstream_flags(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """({"core.name": value} of the flags for upstream tables, the other words)."""
    changes: dict[str, Any] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        flag, equals, text = word.partition("=")
        if not flag.startswith(tuple(f"--{table}." for table in UPSTREAM)):
            rest.append(word)
            continue
        name = flag.removeprefix("--").replace("-", "_")
        value = text if equals else next(left, "--")
        if value.startswith("--"):
            raise ConfigError(name, None, "no value follows", f"write --{name} VALUE")
        changes[name] = _scalar(value)
    return changes, rest


def _scalar(text: str) -> Any:
    """A word as TOML would read it, else as it stands: true, 3, 1e-3, none."""
    try:
        return tomllib.loads(f"value = {text.lower() if text.lower() in ('true', 'false') else text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def dump(config: RunConfig) -> str:
    """The whole config as TOML; `load_recipe` of it gives the same config back."""
    import tomli_w

    return tomli_w.dumps(_without_none(dataclasses.asdict(config)))


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A copy with fields changed by dotted name: replace(config, {"moe.top_k": 2}). Checked like a recipe."""
    table = _without_none(dataclasses.asdict(config))
    for name, value in changes.items():
        *path, last = name.split(".", 1 if name.startswith(tuple(f"{table}." for table in UPSTREAM)) else -1)
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(name, value, "no such setting", f"{part} has no settings inside it")
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return _from_table(RunConfig, table, "")


def _find(recipe: str | Path, folder: Path) -> Path:
    if isinstance(recipe, str) and recipe in (*recipe_names(), *PARTS):
        return RECIPES / f"{recipe}.toml"
    path = (folder / recipe).resolve()
    if not path.is_file():
        near = difflib.get_close_matches(str(recipe), recipe_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"give a TOML file or one of {', '.join(recipe_names())}"
        raise ConfigError("config", str(recipe), "no such recipe", hint)
    return path


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError("extends", str(path), f"{path.name} extends itself", "break the circle")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ConfigError("config", str(path), f"not readable as TOML ({error})", "mend the file") from error
    for name in UPSTREAM:  # before merging, so that a later file wins in whichever way either is written
        if name in table:
            table[name] = _flat(table[name], name)
    base = table.pop("extends", None)
    if base is None:
        return table
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list) or not bases or not all(isinstance(name, str) for name in bases):
        raise ConfigError("extends", base, "not a recipe's name or path, nor a list of them", "give a string")
    tables = [_read(_find(name, path.parent), (*seen, path)) for name in bases]
    return functools.reduce(_merge, [*tables, table])


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _from_table(kind: type, table: Mapping[str, Any], at: str) -> Any:
    hints = _hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {at}{near[0]}?" if near else f"known here: {', '.join(hints)}"
            raise ConfigError(f"{at}{key}", table[key], "no such setting", hint)
    return kind(**{key: _value(hints[key], value, f"{at}{key}") for key, value in table.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, value: Any, at: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names the field."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(at, value, "a table of settings is wanted", f"write [{at}] and its fields below")
        return _from_table(hint, value, f"{at}.")  # type: ignore[arg-type]
    if origin is dict:
        return {name: _value(inner[1], item, f"{at}.{name}") for name, item in _flat(value, at).items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(at, value, "a list is wanted", "write it in [ ]")
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) != len(value):
            raise ConfigError(at, value, f"{len(kinds)} values are wanted", "give that many")
        return tuple(_value(kind, item, at) for kind, item in zip(kinds, value, strict=True))
    if origin is Literal:
        if value not in inner:
            near = difflib.get_close_matches(str(value), inner, n=1)
            hint = f"use one of {', '.join(inner)}" + (f"; did you mean {near[0]}?" if near else "")
            raise ConfigError(at, value, "not a choice", hint)
        return value
    kinds = tuple(kind for kind in (inner if origin is not None else (hint,)) if kind is not type(None))
    if isinstance(value, bool):
        fits = bool in kinds
    else:
        fits = isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
    if not fits:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(at, value, f"of type {type(value).__name__}", f"give {wanted}")
    if isinstance(value, int) and not isinstance(value, (bool, *kinds)):
        if abs(value) > sys.float_info.max:
            raise ConfigError(at, value, "too large for a float", "give a smaller number")
        return float(value)
    return value


def _flat(value: Any, at: str) -> dict[str, Any]:
    """Upstream settings may be written as nested tables or with dots: {"a": {"b": 1}} means {"a.b": 1}."""
    if not isinstance(value, dict):
        raise ConfigError(at, value, "a table of settings is wanted", f"write [{at}] and its fields below")
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            leaves = {f"{key}.{name}": leaf for name, leaf in _flat(item, f"{at}.{key}").items()}
        else:
            leaves = {key: item}
        if both := flat.keys() & leaves.keys():
            name = min(both)
            raise ConfigError(f"{at}.{name}", leaves[name], f"given twice (also as {flat[name]!r})", "keep one")
        flat |= leaves
    return flat


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    items = ((key, _without_none(value) if isinstance(value, dict) else value) for key, value in table.items())
    return {key: value for key, value in items if value is not None}

"""Seeds: what dialogues are about (topics with facts) and who asks (personas), from a TOML or JSON-lines file.

    [[personas]]                        {"persona": "a hurried cook", "says": ["Quick one."]}
    name = "a hurried cook"
    says = ["Quick one."]

    [[topics]]                          {"topic": "tides", "facts": ["...", {"ask": "...", "say": "..."}]}
    name = "tides"
    facts = ["The Moon's pull raises the tides.", { ask = "How many a day?", say = "There are two." }]

A seed that cannot be used is set aside by reason and the others are taken. A file without a usable topic is an error.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.data.manifest import load_json_line
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import read_file
from megatron_most.synthesize.speakable import spoken_english

_TOPIC, _PERSONA, _FACT = {"name", "facts"}, {"name", "says"}, {"ask", "say"}
_MOST_WORDS = 60
_FORMS = "a fact is a sentence, or {ask, say}: a question and the sentence that answers it"


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence to be told, and the question it answers, if one was given."""

    say: str
    ask: str | None = None


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Persona:
    """Who asks, and words this person begins with."""

    name: str
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadSeed:
    id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """One seeds file."""

    topics: tuple[Topic, ...]
    personas: tuple[Persona, ...]
    bad: tuple[BadSeed, ...]
    hash: str
    """SHA-256 of what can be used; comments do not change it."""


def load_seeds(path: Path) -> Seeds:
    """Read and check a seeds file; texts come back speakable."""
    topics: dict[str, Topic] = {}
    personas: dict[str, Persona] = {}
    bad: list[BadSeed] = []
    for id, entry in _entries(path):
        try:
            if isinstance(entry, RowError):
                raise entry
            kind, fields = entry
            one = _topic(fields) if kind == "topic" else _persona(fields)
            known: dict[str, Any] = topics if kind == "topic" else personas
            if one.name in known:
                raise RowError("seed given twice", one.name)
            known[one.name] = one
        except RowError as error:
            bad.append(BadSeed(id, error.reason, error.detail))
    if not topics:
        why = f"; the first is {bad[0].id}: {bad[0].reason}: {bad[0].detail}" if bad else ""
        raise DataError(
            f"{path}: no topic that can be used ({len(bad)} seeds set aside{why}); "
            'give at least one: [[topics]] name = "..." facts = ["..."]'
        )
    used = [list(map(repr, topics.values())), list(map(repr, personas.values()))]
    digest = hashlib.sha256(json.dumps(used).encode()).hexdigest()
    return Seeds(
        topics=tuple(topics.values()), personas=tuple(personas.values()) or (Persona(""),), bad=tuple(bad), hash=digest
    )


Entry = tuple[str, "tuple[str, dict[str, Any]] | RowError"]


def _entries(path: Path) -> Iterator[Entry]:
    """(id, (topic or persona, its fields)) of each seed."""
    data = read_file(path, remedy="give a seeds file with --seeds")
    if path.suffix == ".toml":
        try:
            found = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not TOML: {error}; correct it there") from error
        if unknown := sorted(set(found) - {"topics", "personas"}):
            raise DataError(f"{path}: {unknown[0]}: not known; a seeds file has [[topics]] and [[personas]]")
        for plural, kind in (("topics", "topic"), ("personas", "persona")):
            listed = found.get(plural, [])
            if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
                raise DataError(f"{path}: {plural}: not a list of tables; write [[{plural}]] above each")
            for number, fields in enumerate(listed, 1):
                yield f"{kind} {number}", (kind, fields)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise DataError(f"{path}: not a name for seeds; give a .toml or .jsonl file")
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", _json_entry(load_json_line(line))
            except RowError as error:
                yield f"line {number}", error


def _json_entry(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    kind = "topic" if "topic" in row else "persona" if "persona" in row else None
    if kind is None:
        raise RowError("malformed seed", "neither topic nor persona")
    return kind, {"name" if key == kind else key: value for key, value in row.items()}


def _topic(fields: dict[str, Any]) -> Topic:
    _known(fields, _TOPIC)
    listed = fields.get("facts")
    if not isinstance(listed, list) or not listed:
        raise RowError("topic without facts", str(fields.get("name"))[:80])
    return Topic(_text(fields.get("name"), "name"), tuple(map(_fact, listed)))


def _fact(given: Any) -> Fact:
    if isinstance(given, dict):
        _known(given, _FACT)
        return Fact(_text(given.get("say"), "say"), None if given.get("ask") is None else _text(given["ask"], "ask"))
    return Fact(_text(given, "facts"))


def _persona(fields: dict[str, Any]) -> Persona:
    _known(fields, _PERSONA)
    says = fields.get("says", [])
    if not isinstance(says, list):
        raise RowError("malformed seed", "says is a list of sentences")
    return Persona(_text(fields.get("name"), "name"), tuple(_text(one, "says") for one in says))


def _known(fields: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted(set(fields) - names):
        raise RowError("malformed seed", f"{unknown[0]}: not known; {', '.join(sorted(names))} are; {_FORMS}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError("malformed seed", f"{name} = {str(value)[:40]!r}: no text; {_FORMS}")
    text = spoken_english(value)
    if len(text.split()) > _MOST_WORDS:
        raise RowError("seed too long", f"{name} has {len(text.split())} words; at most {_MOST_WORDS}")
    return text

"""How a task is put into words: templates are data, read from TOML, with several phrasings of each instruction.

`[format]` says how a prompt and a response are laid out, `[instructions]` what is asked for; a phrasing is chosen by a
hash of the document's id, the same in every process and version of Python. Placeholders: {bos} {eos} are the real
tokens, {input} {output} {text} the content of a turn; an instruction has none. What a file says too much, too little or
misspelt is an error.
Surprising: blanks right before an audio output are dropped ("Assistant:" then the speech), for they only part words.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.document import Frames, Ids, Piece
from megatron_most.errors import DataError
from megatron_most.runtime import read_file
from megatron_most.vocab import AUDIO, TEXT, TokenMap

PROMPTS = Path(__file__).resolve().parent / "prompts"
INSTRUCTED = ("asr", "tts")  # the tasks that need an instruction; in a chat the user gives it
_SLOTS = {"begin": (), "system": ("text",), "prompt": ("input",), "response": ("output",)}  # besides bos and eos
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Slot:
    """A place in a format: bos, eos, input, output or text."""

    name: str


Form = tuple[str | Slot, ...]
Content = Sequence[str | Ids | Frames]
"""What goes into a slot: texts, audio as finished ids, and audio as frames."""


@dataclass(frozen=True, kw_only=True)
class Templates:
    """One template file."""

    name: str
    begin: Form
    system: Form | None
    """None: chats with a system turn cannot be written."""
    prompt: Form
    response: Form
    instructions: Mapping[str, tuple[str, ...]]
    wording: str
    """The content as JSON, for a dataset and its models to keep."""
    hash: str
    """SHA-256 of the wording; the file's comments and order do not change it."""
    seed: int = 0
    """Of the choice of phrasings; another seed gives the same documents other ones."""

    def instruction(self, task: str, document: str) -> str:
        """The phrasing for a document, by its id."""
        choices = self.instructions[task]
        seed = (self.seed,) if self.seed else ()
        return choices[draw(len(choices), self.name, task, document, *seed)]


def draw(choices: int, *key: str | int) -> int:
    """A number in 0..choices-1 that depends on the key alone: no state, the same everywhere and always."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % choices


@functools.cache
def template_names() -> tuple[str, ...]:
    """The templates that ship with the package."""
    return tuple(sorted(path.stem for path in PROMPTS.glob("*.toml")))


def load_templates(name_or_path: str | Path) -> Templates:
    """Templates by name, or from a TOML file."""
    shipped = isinstance(name_or_path, str) and name_or_path in template_names()
    path = PROMPTS / f"{name_or_path}.toml" if shipped else Path(name_or_path)
    known = ", ".join(template_names())
    try:
        table = tomllib.loads(read_file(path, remedy=f"use one of {known}, or a TOML file of templates").decode())
    except ValueError as error:
        raise DataError(f"{path}: not readable as TOML: {error}; compare it with the chat templates") from error
    return _Reader(path).read(table)


def recorded_templates(name: str, wording: str) -> Templates:
    """The inverse of `Templates.wording`."""
    return _Reader(Path(f"{name}.toml")).read(json.loads(wording))


class _Reader:
    """A table to Templates; every complaint names the file and the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, table: dict[str, Any]) -> Templates:
        self._keys(table, "", needed=("format", "instructions"))
        form, instructions = table["format"], table["instructions"]
        for name, inner in (("format", form), ("instructions", instructions)):
            if not isinstance(inner, dict):
                raise self._wrong(name, "not a table", f"write [{name}]")
        self._keys(form, "format.", needed=("begin", "prompt", "response"), optional=("system",))
        self._keys(instructions, "instructions.", needed=INSTRUCTED)
        forms = {name: self._form(name, text) for name, text in form.items()}
        after_output = forms["response"][forms["response"].index(Slot("output")) + 1 :]
        if Slot("eos") not in after_output:
            raise self._wrong("format.response", "no {eos} after {output}", "a model could not learn to stop; add it")
        canonical = json.dumps(table, sort_keys=True, ensure_ascii=False)
        return Templates(
            name=self._path.stem,
            begin=forms["begin"],
            system=forms.get("system"),
            prompt=forms["prompt"],
            response=forms["response"],
            instructions={task: self._phrasings(task, listed) for task, listed in instructions.items()},
            wording=canonical,
            hash=hashlib.sha256(canonical.encode()).hexdigest(),
        )

    def _keys(
        self, table: dict[str, Any], prefix: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> None:
        for name in needed:
            if name not in table:
                raise self._wrong(prefix + name, "missing", "add it")
        for name in table:
            if name not in needed + optional:
                raise self._wrong(prefix + name, "unknown", f"known are {', '.join(needed + optional)}")

    def _form(self, name: str, text: Any) -> Form:
        key = f"format.{name}"
        if not isinstance(text, str):
            raise self._wrong(key, "not a string", "give one string")
        form: list[str | Slot] = []
        for i, part in enumerate(_SLOT.split(text)):
            if i % 2:
                if part not in ("bos", "eos", *_SLOTS[name]):
                    known = ", ".join(f"{{{slot}}}" for slot in ("bos", "eos", *_SLOTS[name]))
                    raise self._wrong(key, f"unknown placeholder {{{part}}}", f"known here are {known}")
                form.append(Slot(part))
            elif "{" in part or "}" in part:
                raise self._wrong(key, f"a brace without its partner in {part!r}", "braces stand around names only")
            elif part:
                form.append(part)
        for slot in _SLOTS[name]:
            if form.count(Slot(slot)) != 1:
                raise self._wrong(key, f"{{{slot}}} stands {form.count(Slot(slot))} times", "write it once")
        return tuple(form)

    def _phrasings(self, task: str, listed: Any) -> tuple[str, ...]:
        key = f"instructions.{task}"
        if not isinstance(listed, list) or not listed:
            raise self._wrong(key, "not a list of sentences, or empty", "give at least one")
        for sentence in listed:
            if not isinstance(sentence, str) or not sentence.strip():
                raise self._wrong(key, f"{sentence!r} is no sentence", "give text")
            if "{" in sentence or "}" in sentence:
                raise self._wrong(key, f"a placeholder in {sentence!r}", "an instruction is plain text; take it out")
        if len(set(listed)) < len(listed):
            raise self._wrong(key, "holds a sentence twice", "list each once")
        return tuple(listed)

    def _wrong(self, key: str, wrong: str, remedy: str) -> DataError:
        return DataError(f"{self._path}: {key}: {wrong}; {remedy}")


def fill(form: Form, content: Content, tokens: TokenMap, is_trained: bool) -> list[str | Piece]:
    """A format with its slot filled; texts are still bare."""
    found: list[str | Piece] = []
    for part in form:
        if isinstance(part, str):
            found.append(part)
        elif part.name in ("bos", "eos"):
            id = tokens.bos_id if part.name == "bos" else tokens.eos_id
            found.append(Piece(np.array([id], np.int32), TEXT, is_trained))
        else:
            starts_with_audio = bool(content) and not isinstance(content[0], str)
            if part.name == "output" and starts_with_audio and found and isinstance(found[-1], str):
                if found[-1].isspace():
                    found.pop()
            found += [part if isinstance(part, str) else _audio(part, is_trained) for part in content]
    return found


def _audio(part: Ids | Frames, is_trained: bool) -> Piece:
    if isinstance(part, Frames):
        return Piece(part.ids, part.tag, False, part.span)
    return Piece(part, AUDIO, is_trained)


def join(parts: Sequence[str | Piece], is_trained: bool) -> list[Piece]:
    """Neighbouring texts become one piece, to be tokenised as one; other pieces stay as they are."""
    pieces: list[Piece] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        if is_text:
            text = "".join(part for part in group if isinstance(part, str))
            pieces += [Piece(text, TEXT, is_trained)] if text else []
        else:
            pieces += [part for part in group if isinstance(part, Piece)]
    return pieces

"""What a dataset says of itself: `dataset.json`, read strictly.

Nothing in the file is taken on trust: a key too few or too many, a wrong type or a negative count is refused by file
and key, since a count that is only nearly right would weight a blend wrongly for weeks. The file ends with a hash of
itself (seal.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from megatron_most.data.indexed import BIN, IDS, IDX
from megatron_most.data.seal import SEAL, check_seal, sealed
from megatron_most.data.spans import FRAME_FILES
from megatron_most.data.tokenizer import TokenizerIdentity
from megatron_most.errors import DataError
from megatron_most.runtime import JOB, write_atomically
from megatron_most.speech import CodecIdentity, FrameIdentity
from megatron_most.vocab import TAG_NAMES, TokenMap

FORMAT = "most-dataset-3"
INFO, REJECTS, OVERLAPS, CARD = "dataset.json", "rejects.jsonl", "overlaps.jsonl", "README.md"
DATA = (BIN, IDX, IDS, REJECTS, OVERLAPS)
ABOUT = (CARD, JOB)
"""Of these only `verify` cares: a card that was edited is no reason not to train."""
Scalar = str | int | float | bool | None
Option = Scalar | Sequence[Scalar]
T = TypeVar("T")
REMEDY = "copy the data set here again, or build it again"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A manifest the documents were made from. Shards name it whole, each the same."""

    corpus: str
    split: str
    licence: str
    source: str
    language: str | None
    normalisation: str
    manifest_sha256: str
    rows: int
    """Of the manifest, whatever part of them this dataset used."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """All that is known of a dataset besides its tokens."""

    task: str
    tokens: TokenMap
    codec: CodecIdentity | None
    tokenizer: TokenizerIdentity | None
    templates: tuple[str, str]
    """Name and hash."""
    documents: int
    sequences: int
    tokens_by_tag: dict[str, int]
    """Of each tag by name."""
    trained_tokens: int
    longest: int
    """Tokens of the longest document."""
    seconds: float
    """Of the speech whose units are in the documents."""
    untimed_units: int
    """Units that are not in `seconds`: chats gave them without saying how long they last."""
    files: dict[str, tuple[int, str]]
    """name -> (bytes, sha256)"""
    provenance: tuple[Source, ...]
    rejects: dict[str, int] = field(default_factory=dict)
    """reason -> rows; the rows are in rejects.jsonl."""
    overlaps: dict[str, int] = field(default_factory=dict)
    """evaluation set -> rows that overlap with it."""
    options: dict[str, Option] = field(default_factory=dict)
    """What the builder was told; "shard": [i, n] says that this is the i-th of n, from 0."""
    frames: FrameIdentity | None = None
    """What makes the continuous frames that stand in the documents; None: there are none. Then the file has no such
    key, as in datasets that are older than frames.
    """
    wording: str | None = None
    """Of its templates, whose hash is its hash; datasets that are older than this have no such key."""
    format: str = FORMAT

    @property
    def data_files(self) -> tuple[str, ...]:
        """What training reads."""
        return (*DATA, *FRAME_FILES) if self.frames else DATA

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_by_tag.values())

    @property
    def fingerprint(self) -> str:
        """Changes when a token, a tag, a bound of a document or the meaning of an id does: all that is trained on."""
        said = [f"{name} {self.files[name][1]}" for name in (BIN, IDX)] + [f"token map {self.tokens.hash}"]
        if self.frames:
            said += [f"{name} {self.files[name][1]}" for name in FRAME_FILES] + [f"frames {self.frames.key}"]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    def to_json(self) -> str:
        values = {
            **{item.name: getattr(self, item.name) for item in fields(self)},
            "tokens": self.tokens.to_dict(),
            "codec": self.codec.to_dict() if self.codec else None,
            "tokenizer": self.tokenizer.to_dict() if self.tokenizer else None,
            "provenance": [asdict(source) for source in self.provenance],
        }
        if self.frames is None:
            del values["frames"]
        else:
            values["frames"] = self.frames.to_dict()
        if self.wording is None:
            del values["wording"]
        return sealed(values)

    def save(self, folder: Path | str) -> None:
        """Write `dataset.json`; what `load_info` would refuse is refused here."""
        path = Path(folder) / INFO
        data = self.to_json().encode()
        parse_info(data, path)
        write_atomically(path, data)


def parse_info(data: bytes, path: Path) -> DatasetInfo:
    """What a `dataset.json` holds. DataError, by file and key."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} stands twice in one object")
        return dict(pairs)

    try:
        values = json.loads(data.decode(), object_pairs_hook=once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON: {error}; {REMEDY}") from error
    if isinstance(values, dict):  # anything else is refused below
        if values.get("format") != FORMAT:
            raise DataError(
                f"{path}: format = {values.get('format')!r}: not {FORMAT}; build it again with this version"
            )
        check_seal(data, path, REMEDY)
        del values[SEAL]
        values.setdefault("frames", None)
        values.setdefault("wording", None)
    info = _object(DatasetInfo, values, f"{path}")
    wanted = {"tokens_by_tag": (set(info.tokens_by_tag), set(TAG_NAMES))}
    wanted["files"] = ({*info.data_files, *ABOUT}, set(info.files))
    for key, (found, needed) in wanted.items():
        if found != needed:
            raise DataError(f"{path}: {key}: {', '.join(sorted(found ^ needed))}: too many or missing; {REMEDY}")
    for low, high in (("trained_tokens", info.num_tokens), ("longest", info.num_tokens), ("documents", info.sequences)):
        if getattr(info, low) > high:
            raise DataError(f"{path}: {low} = {getattr(info, low)}: there are {high} only; {REMEDY}")
    if info.wording is not None and hashlib.sha256(info.wording.encode()).hexdigest() != info.templates[1]:
        raise DataError(f"{path}: wording: is not that of templates {info.templates[0]}, by their hash; {REMEDY}")
    if info.codec is not None and info.codec.num_units > info.tokens.num_units:
        raise DataError(
            f"{path}: codec.num_units = {info.codec.num_units}: the token map has {info.tokens.num_units} units only; "
            "build it again with a token map of as many"
        )
    return info


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _object(cls: type[T], values: Any, where: str) -> T:
    """A dataclass from a JSON object with exactly its keys, each value of its type."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: holds a {type(values).__name__}, not an object; {REMEDY}")
    kinds = {item.name: str(item.type) for item in fields(cls)}  # type: ignore[arg-type]
    for names, what in ((set(kinds) - set(values), "missing"), (set(values) - set(kinds), "unknown")):
        if names:
            raise DataError(f"{where}: {what}: {', '.join(sorted(names))}; {REMEDY}")
    parsed = {}
    for name, kind in kinds.items():
        try:
            parsed[name] = _PARSERS[kind](values[name])
        except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
            shown = json.dumps(values[name], ensure_ascii=False, default=str)
            shown = shown if len(shown) < 80 else shown[:77] + "..."
            raise DataError(f"{where}: {name} = {shown}: {error}; {REMEDY}") from error
    return cls(**parsed)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__}, not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError("not a number from 0 on")
    return float(value)


def _option(value: Any) -> Option:
    for item in value if isinstance(value, list) else [value]:
        if not (item is None or isinstance(item, str | bool | int | float)):
            raise TypeError("neither a plain value nor a list of them")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("not a finite number")
    return value


def _file(value: Any) -> tuple[int, str]:
    size, sha256 = value
    if not re.fullmatch("[0-9a-f]{64}", _text(sha256)):
        raise ValueError(f"{sha256!r} is no sha256")
    return _count(size), sha256


def _table(parse: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    def parse_table(value: Any) -> dict[str, T]:
        if not isinstance(value, Mapping):
            raise TypeError(f"a {type(value).__name__}, not an object")
        return {name: parse(item) for name, item in value.items()}

    return parse_table


def _files(value: Any) -> dict[str, tuple[int, str]]:
    found = _table(_file)(value)
    for name in found:  # they are opened, and perhaps copied: a name must not lead out of the folder
        if not re.fullmatch(r"[\w-][\w.-]*", name) or name == INFO:
            raise ValueError(f"{name!r} is no name of a data file")
    return found


def _pair(value: Any) -> tuple[str, str]:
    name, sha256 = value
    return _text(name), _text(sha256)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "int": _count,
    "float": _amount,
    "str": _text,
    "str | None": lambda value: None if value is None else _text(value),
    "tuple[str, str]": _pair,
    "dict[str, int]": _table(_count),
    "dict[str, tuple[int, str]]": _files,
    "dict[str, Option]": _table(_option),
    "tuple[Source, ...]": lambda value: tuple(
        _object(Source, entry, f"entry {at}") for at, entry in enumerate([*value])
    ),
    "TokenMap": TokenMap.from_dict,
    "CodecIdentity | None": lambda value: None if value is None else CodecIdentity.from_dict(value),
    "FrameIdentity | None": lambda value: None if value is None else FrameIdentity.from_dict(value),
    "TokenizerIdentity | None": lambda value: None if value is None else TokenizerIdentity.from_dict(value),
}

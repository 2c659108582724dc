"""result.json: what an evaluation came to, with everything that a reader needs in order to trust or repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError
from megatron_most.runtime import read_file
from megatron_most.score import Score

FORMAT = "most-evaluation-1"
RESULT, RECORDS = "result.json", "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation of one model on one data set."""

    task: str
    is_whole: bool
    """Whether no more items were left out than was allowed."""
    scores: dict[str, Score]
    parts: dict[str, dict[str, Score]] = field(default_factory=dict)
    items: int
    left_out: dict[str, int] = field(default_factory=dict)
    """reason -> items that could not be evaluated; they are in records.jsonl."""
    model: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    seeds: dict[str, int]
    bootstrap: dict[str, Any]
    speed: dict[str, Any]
    ranks: int
    versions: dict[str, str]
    notes: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    @property
    def main(self) -> Score:
        return next(iter(self.scores.values()))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse; TypeError or KeyError where something is missing or unknown."""
        scores = {name: Score.from_dict(score) for name, score in values["scores"].items()}
        parts = {
            by: {which: Score.from_dict(score) for which, score in part.items()} for by, part in values["parts"].items()
        }
        return cls(**{**values, "scores": scores, "parts": parts})


def read_result(path: Path) -> Result:
    """A result from its file, or the folder that holds it."""
    path = path / RESULT if path.is_dir() else path
    remedy = "give the folder of an evaluation that has ended"
    try:
        values = json.loads(read_file(path, remedy=remedy))
        if values.get("format") != FORMAT:
            raise DataError(f"{path}: not a result of format {FORMAT}; {remedy}")
        if set(values) != {one.name for one in fields(Result)}:
            raise ValueError(f"fields {', '.join(sorted(set(values) ^ {one.name for one in fields(Result)}))}")
        said = {**{name: values["model"][name] for name in ("hash", "folder")}, "task": values["task"]}
        counts = {"items": values["items"], **values["left_out"]}
        for kind, found in ((str, said), (int, counts)):
            if wrong := [name for name, value in found.items() if type(value) is not kind]:
                raise TypeError(f"{wrong[0]} is no {kind.__name__}")
        return Result.from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a result ({error}); {remedy}") from error


def find_results(paths: list[Path]) -> list[Path]:
    """The result files below folders, in order of their paths; a file stands for itself."""
    found: list[Path] = []
    for path in paths:
        here = [path] if path.is_file() else sorted(path.rglob(RESULT))
        if not here:
            raise DataError(f"{path}: holds no {RESULT}; give the folder of an evaluation (its --out)")
        found += here
    return found

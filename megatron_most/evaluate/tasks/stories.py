"""Spoken StoryCloze and Topic-StoryCloze: of two stories, is the one with the right end likelier, a unit?

In: a folder with `pairs.csv` (id, right, wrong: paths below it), or with two sounds a number whose names say which is
right: `17_correct.wav` and `17_wrong.wav`. The mean over units is compared, as TWIST and SlamKit have it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_most.errors import DataError
from megatron_most.evaluate.likelihood import reduced, unit_logprobs
from megatron_most.evaluate.options import MAX_SECONDS, Kind
from megatron_most.evaluate.speech import Span, encode
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import About, Fault, Record, Scored
from megatron_most.runtime import confine, read_file, reading
from megatron_most.score import preference, score_of
from megatron_most.speech import SpeechCodec, UnitSequence

Name = Literal["tsc", "ssc"]
PAIRS = "pairs.csv"
_NAMED = re.compile(r"(\d+)[_-](.+)\.(wav|flac)")
_SIDES = {
    True: {"right", "correct", "pos", "positive", "true", "t", "1"},
    False: {"wrong", "incorrect", "neg", "negative", "false", "f", "0"},
}


@dataclass(frozen=True)
class Story:
    id: str
    right: Path
    wrong: Path


def find_stories(folder: Path) -> list[Story]:
    """In order of the table, or of their numbers."""
    with reading(folder, "give the folder of spoken stories"):
        names = sorted(path.name for path in folder.iterdir())
    stories = _listed(folder) if PAIRS in names else _named(folder, names)
    if not stories:
        raise DataError(f"{folder}: no stories; it needs {PAIRS}, or pairs such as 17_correct.wav and 17_wrong.wav")
    return stories


def _listed(folder: Path) -> list[Story]:
    rows = csv.DictReader(io.StringIO(read_file(folder / PAIRS).decode("utf-8-sig", errors="replace")))
    if missing := [name for name in ("id", "right", "wrong") if name not in (rows.fieldnames or ())]:
        raise DataError(f"{folder / PAIRS}: no column {missing[0]}; it needs id, right, wrong")
    stories = []
    for number, row in enumerate(rows, 2):
        if not all(row[name] for name in ("id", "right", "wrong")):
            raise DataError(f"{folder / PAIRS}, line {number}: a field is empty; give id, right and wrong")
        stories.append(Story(row["id"], confine(folder, row["right"]), confine(folder, row["wrong"])))
    return stories


def _named(folder: Path, names: Sequence[str]) -> list[Story]:
    found: dict[int, dict[bool, Path]] = defaultdict(dict)
    for name in names:
        if not (match := _NAMED.fullmatch(name)):
            continue
        words = set(re.split(r"[_-]", match[2].lower()))
        sides = [side for side, known in _SIDES.items() if words & known]
        if len(sides) != 1 or sides[0] in found[int(match[1])]:
            raise DataError(f"{folder / name}: its name does not say whether it is right or wrong; list all in {PAIRS}")
        found[int(match[1])][sides[0]] = folder / name
    if alone := [number for number, sides in found.items() if len(sides) < 2]:
        raise DataError(f"{folder}: story {min(alone)} has one side only; fetch the benchmark again")
    return [Story(str(number), found[number][True], found[number][False]) for number in sorted(found)]


class Stories:
    """See task.Task."""

    def __init__(
        self, name: Name, subject: Subject, folder: Path, codec: SpeechCodec, kind: Kind = "mean",
        max_seconds: float = MAX_SECONDS, limit: int | None = None,
    ) -> None:  # fmt: skip
        self._name, self._subject, self._codec, self._kind = name, subject, codec, kind
        self._max_seconds = max_seconds
        self._stories = find_stories(folder)[:limit]
        subject.require_codec(codec.identity, "--codec")
        listed = "".join(f"{one.id} {one.right.name} {one.wrong.name}\n" for one in self._stories)
        self._about = About(
            data={
                "hash": hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest(),
                "folder": str(folder),
                "stories": len(self._stories),
            },
            config={"likelihood": kind, "codec": codec.identity.key, "max_seconds": max_seconds},
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def about(self) -> About:
        return self._about

    def __len__(self) -> int:
        return len(self._stories)

    def id(self, number: int) -> str:
        return self._stories[number].id

    def sounds(self, number: int) -> Sequence[Path]:
        return [self._stories[number].right, self._stories[number].wrong]

    def run(self, numbers: Sequence[int]) -> list[Record]:
        spans = [
            Span(path) for number in numbers for path in (self._stories[number].right, self._stories[number].wrong)
        ]
        units = encode(spans, self._codec, self._max_seconds)
        found = unit_logprobs(self._subject, units)
        records: list[Record] = []
        for at, number in enumerate(numbers):
            right, wrong = found[2 * at : 2 * at + 2]
            if isinstance(right, Fault) or isinstance(wrong, Fault):
                fault = right if isinstance(right, Fault) else wrong
                assert isinstance(fault, Fault), "one of both is"
                records.append(fault.record(self.id(number)))
                continue
            both = [one for one in units[2 * at : 2 * at + 2] if isinstance(one, UnitSequence)]
            records.append({
                "id": self.id(number),
                "right": reduced(right, self._kind),
                "wrong": reduced(wrong, self._kind),
                "tokens": len(right) + len(wrong),
                "audio_seconds": round(sum(one.num_frames * one.frame_s for one in both), 3),
            })  # fmt: skip
        return records

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        points = [preference(record["right"], record["wrong"]) for record in records]
        counted = [{**record, "points": point} for record, point in zip(records, points, strict=True)]
        accuracy = score_of(points, [1.0] * len(points), "points / stories", seed=seed)
        return Scored(scores={"accuracy": accuracy}, records=counted)

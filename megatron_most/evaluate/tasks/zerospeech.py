"""sWUGGY and sBLIMP of ZeroSpeech 2021: is the word likelier than the non-word, the sentence than the broken one?

In: the benchmark's folder as published, `lexical/dev/gold.csv` beside its sounds. Out: the score by pair, by frequency
and length or by type, and the submission file that ZeroSpeech's own tools take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from megatron_most.evaluate.likelihood import reduced, unit_logprobs
from megatron_most.evaluate.options import MAX_SECONDS, Kind
from megatron_most.evaluate.speech import Span, encode
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import About, Fault, Record, Scored
from megatron_most.runtime import sha256_file
from megatron_most.score import Pair, Score, frequency_band, join_pairs, read_gold, score_of
from megatron_most.speech import SpeechCodec

Name = Literal["swuggy", "sblimp"]
_PARTS = {"swuggy": "lexical", "sblimp": "syntactic"}


class ZeroSpeech:
    """See task.Task."""

    def __init__(
        self, name: Name, subject: Subject, folder: Path, split: str, codec: SpeechCodec, kind: Kind,
        max_seconds: float = MAX_SECONDS, limit: int | None = None,
    ) -> None:  # fmt: skip
        part = _PARTS[name]
        self._task, self._subject, self._codec, self._kind, self._split = name, subject, codec, kind, split
        self._part, self._folder, self._max_seconds = part, folder / part / split, max_seconds
        table = self._folder / "gold.csv"
        self._gold = read_gold(table, "lexical" if name == "swuggy" else "syntactic")
        if limit is not None:
            kept = list(dict.fromkeys(one.pair for one in self._gold))[:limit]
            self._gold = [one for one in self._gold if one.pair in set(kept)]
        subject.require_codec(codec.identity, "--codec")
        self._about = About(
            data={
                "hash": sha256_file(table),
                "folder": str(folder),
                "split": split,
                "recordings": len(self._gold),
            },
            config={"likelihood": kind, "codec": codec.identity.key, "max_seconds": max_seconds},
        )

    @property
    def name(self) -> str:
        return f"{self._task}/{self._split}"

    @property
    def about(self) -> About:
        return self._about

    def __len__(self) -> int:
        return len(self._gold)

    def id(self, number: int) -> str:
        return self._gold[number].filename

    def sounds(self, number: int) -> Sequence[Path]:
        return [self._folder / f"{self.id(number)}.wav"]

    def run(self, numbers: Sequence[int]) -> list[Record]:
        spans = [Span(self._folder / f"{self.id(number)}.wav") for number in numbers]
        units = encode(spans, self._codec, self._max_seconds)
        records: list[Record] = []
        for number, of, found in zip(numbers, units, unit_logprobs(self._subject, units), strict=True):
            if isinstance(found, Fault) or isinstance(of, Fault):
                assert isinstance(found, Fault), "a fault of the sound is one of its likelihood"
                records.append(found.record(self.id(number)))
            else:
                seconds = of.num_frames * of.frame_s
                value = reduced(found, self._kind)
                records.append(
                    {"id": self.id(number), "score": value, "tokens": len(found), "audio_seconds": round(seconds, 3)}
                )
        return records

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        scores = {record["id"]: record["score"] for record in records}
        # A pair whose other side could not be read says nothing.
        whole = {one.pair for one in self._gold} - {one.pair for one in self._gold if one.filename not in scores}
        pairs = join_pairs([one for one in self._gold if one.pair in whole], scores)
        bys: dict[str, Callable[[Pair], str]] = {"type": lambda pair: str(pair.kind)}
        if self._task == "swuggy":
            bys = {
                "vocabulary": lambda pair: "out" if frequency_band(pair.frequency) == "oov" else "in",
                "frequency": lambda pair: frequency_band(pair.frequency),
                "length": lambda pair: str(pair.length),
            }
        submission = "".join(f"{name} {value!r}\n" for name, value in scores.items())
        return Scored(
            scores={"accuracy": _accuracy(pairs, seed)},
            parts={by: _by(pairs, key, seed) for by, key in bys.items()},
            files={f"submission/{self._part}/{self._split}.txt": submission.encode()},
        )


def _accuracy(pairs: Sequence[Pair], seed: int) -> Score:
    points = [pair.points for pair in pairs]
    return score_of(points, [1.0] * len(points), "points / pairs, over their voices", seed=seed)


def _by(pairs: Sequence[Pair], key: Callable[[Pair], str], seed: int) -> dict[str, Score]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair)].append(pair)
    return {name: _accuracy(groups[name], seed) for name in sorted(groups)}

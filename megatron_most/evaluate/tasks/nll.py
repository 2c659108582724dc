"""NLL and perplexity of a dataset of ours: nats a token, of what is trained on, by the task and by the tokens' tags."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_most.data.dataset import open_dataset
from megatron_most.errors import DataError
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import About, Fault, Record, Scored
from megatron_most.generate import Prompt, sequence_logprobs
from megatron_most.score import Score, score_of
from megatron_most.vocab import TAG_NAMES


class Nll:
    """See task.Task."""

    def __init__(self, subject: Subject, folder: Path, limit: int | None = None) -> None:
        self._subject = subject
        self._info, self._documents = open_dataset(folder)
        if self._info.frames is not None:
            raise DataError(
                f"{folder}: has continuous frames, whose likelihood is not measured here; validation during training "
                "gives it (train.validate_every)"
            )
        subject.tokens.require_same(self._info.tokens, str(folder))
        if self._info.codec is not None:
            subject.require_codec(self._info.codec, str(folder))
        self._count = len(self._documents) if limit is None else min(limit, len(self._documents))
        if not self._count:
            raise DataError(f"{folder}: holds no document; give another dataset")
        self._name = folder.resolve().name
        self._about = About(
            data={
                "hash": self._info.fingerprint,
                "folder": str(folder),
                "task": self._info.task,
                "corpora": [f"{source.corpus}/{source.split}" for source in self._info.provenance],
                "documents": self._count,
            },
            config={"counted": "tokens that are trained on"},
        )

    @property
    def name(self) -> str:
        return f"nll/{self._info.task}/{self._name}"

    @property
    def about(self) -> About:
        return self._about

    def __len__(self) -> int:
        return self._count

    def id(self, number: int) -> str:
        return self._documents.document_id(number)

    def sounds(self, number: int) -> Sequence[Path]:
        return ()

    def run(self, numbers: Sequence[int]) -> list[Record]:
        records: list[Record | Prompt] = []
        trained, most = [], self._subject.model.max_positions
        for number in numbers:
            document = self._documents.document(number)
            if not 2 <= len(document.ids) <= most:
                wrong = Fault("too long for the model", f"{len(document.ids)} tokens; it has {most} positions")
                records.append(wrong.record(self.id(number)))
                continue
            ids, tags = (np.asarray(of, np.int64).tolist() for of in (document.ids, document.tags))
            trained.append(np.asarray(document.is_trained, bool)[1:])
            records.append(Prompt(ids, tags))
        asked = [one for one in records if isinstance(one, Prompt)]
        logprobs = iter(sequence_logprobs(self._subject.model, asked) if asked else ())
        counts = iter(trained)
        found: list[Record] = []
        for number, one in zip(numbers, records, strict=True):
            if isinstance(one, Prompt):
                found.append(_record(self.id(number), next(logprobs), np.asarray(one.tags)[1:], next(counts)))
            else:
                found.append(one)
        return found

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        tags = [tag for tag in TAG_NAMES if any(record["counts"][tag] for record in records)]
        if not tags:
            raise DataError(f"{self.name}: none of its tokens is trained on; give another dataset")
        return Scored(
            scores={"nll": _nll(records, tags, seed), "perplexity": _nll(records, tags, seed, math.exp)},
            parts={
                "nll by tag": {tag: _nll(records, [tag], seed) for tag in tags},
                "perplexity by tag": {tag: _nll(records, [tag], seed, math.exp) for tag in tags},
            },
        )


def _record(id: str, logprobs: np.ndarray, tags: np.ndarray, is_trained: np.ndarray) -> Record:
    """Nats and tokens of each tag; a token counts by its own tag, not by that of what it is predicted from."""
    nats, counts = {}, {}
    for tag, name in enumerate(TAG_NAMES):
        here = is_trained & (tags == tag)
        nats[name] = -float(logprobs[here].sum(dtype=np.float64))
        counts[name] = int(here.sum())
    return {"id": id, "nats": nats, "counts": counts, "tokens": len(logprobs)}


def _nll(records: Sequence[Record], tags: Sequence[str], seed: int, form: Callable[[float], float] = float) -> Score:
    nats = [sum(record["nats"][tag] for tag in tags) for record in records]
    counts = [float(sum(record["counts"][tag] for tag in tags)) for record in records]
    measures = "nats / token" if form is float else "exp(nats / token)"
    return score_of(nats, counts, measures, seed=seed, form=form)

"""Text benchmarks through lm-evaluation-harness: MMLU (57 subjects), GSM8K, TriviaQA, HumanEval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError
from megatron_most.evaluate.harness import Harness, answer
from megatron_most.evaluate.task import About, Record, Scored
from megatron_most.runtime import sha256_file
from megatron_most.score import Score, score_of
from megatron_most.upstream import versions_of

_MEASURES = {"acc": "right answers", "exact_match": "right answers", "pass@1": "programs that pass their tests"}


class Text:
    """See task.Task. An item is a question, whose choices are one request each."""

    def __init__(self, harness: Harness, lm: Any, data: Path, sandbox: str | None = None) -> None:
        self._harness, self._lm = harness, lm
        self._asked = harness.ask()
        hashes = "\n".join(f"{name} {sha256_file(path)}" for name, path in sorted(harness.files.items()))
        self._about = About(
            data={
                "hash": hashlib.sha256(hashes.encode()).hexdigest(),
                "folder": str(data),
                "questions": len(self._asked),
            },
            config={
                **versions_of("lm-eval", "datasets"),
                "requests": self._hash_requests(),
                **({"sandbox": sandbox} if sandbox else {}),
            },
        )

    @property
    def name(self) -> str:
        return self._harness.name

    @property
    def about(self) -> About:
        return self._about

    def __len__(self) -> int:
        return len(self._asked)

    def id(self, number: int) -> str:
        return self._asked[number].id

    def sounds(self, number: int) -> Sequence[Path]:
        return ()

    def run(self, numbers: Sequence[int]) -> list[Record]:
        asked = [self._asked[number] for number in numbers]
        return [
            {"id": one.id, "said": [list(said) if isinstance(said, tuple) else said for said in answers]}
            for one, answers in zip(asked, answer(self._lm, asked), strict=True)
        ]

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        found = self._harness.score({record["id"]: record["said"] for record in records})
        points: dict[str, dict[str, float]] = {}
        by_task: dict[str, dict[str, list[float]]] = {}
        for task, samples in found["samples"].items():
            for sample in samples:
                for metric in sample["metrics"]:
                    name = metric if sample["filter"] in ("none", "create_test") else f"{metric} ({sample['filter']})"
                    value = float(sample[metric])
                    points.setdefault(f"{task}/{sample['doc_id']}", {})[name] = value
                    by_task.setdefault(name, {}).setdefault(task, []).append(value)
        counted = [{**record, "points": points[record["id"]]} for record in records]
        return Scored(
            scores={
                name: _mean([v for of in tasks.values() for v in of], name, seed) for name, tasks in by_task.items()
            },
            parts={
                f"{name} by task": {task: _mean(values, name, seed) for task, values in tasks.items()}
                for name, tasks in by_task.items()
                if len(tasks) > 1
            },
            records=counted,
            notes={"lm_eval": {task: _plain(values) for task, values in found["results"].items()}},
        )

    def _hash_requests(self) -> str:
        """Of every prompt, few-shot examples included: what a change of lm-eval or of its seeds would change."""
        digest = hashlib.sha256()
        for one in self._asked:
            for request in one.requests:
                digest.update(repr(request.args).encode(errors="backslashreplace"))
        return digest.hexdigest()


def _mean(values: Sequence[float], name: str, seed: int) -> Score:
    measures = _MEASURES.get(name.split(" ")[0], name)
    return score_of(values, [1.0] * len(values), f"{measures} / questions", seed=seed)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def require_hf(folder: Path, is_hf: bool, name: str) -> None:
    """DataError where lm-eval cannot take the model."""
    if not is_hf:
        raise DataError(
            f"{folder}: {name} is lm-eval's, which takes Hugging Face folders; export this checkpoint first: "
            "tools/convert_ckpt.py export --source … --out … --options.tokenizer …"
        )

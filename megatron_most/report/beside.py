"""What lies beside a run's metrics: its sample answers, evaluations of its model, and sounds to be heard on the page.

Files alone are read, as the tools write them: samples.jsonl, result.json, WAV files. A sound goes into the page whole,
so only small ones are taken.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.report.table import Series
from megatron_most.runtime import json_lines, open_file, read_file

SAMPLES, RESULT = "samples.jsonl", "result.json"
MOST_BYTES = 2 << 20
_TEXT_TASKS = ("asr", "speech-instruct", "text-instruct")  # whose answers are words
_SHARES = {"wer", "cer", "accuracy", "acc", "exist_match", "exact_match", "pass@1"}
_PALETTE = tuple(f"s{n}" for n in range(1, 11))
_MARK = "[Hu"
_PLAIN = str.maketrans("｜▁", "|_")  # of special tokens' names: few fonts have these


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation, in words."""

    task: str
    what: str
    value: str
    interval: str
    items: str


@dataclass(frozen=True)
class Routed:
    """One token, and its experts in each layer."""

    says: str
    tag: str
    experts: list[str]
    colour: str
    """The page's variable of the group that owns them."""


@dataclass(frozen=True)
class Routing:
    layers: list[str]
    tokens: list[Routed]


@dataclass(frozen=True)
class Sound:
    """A player of the page."""

    label: str
    source: str
    """A data: address."""


@dataclass(frozen=True)
class Bars:
    """What variants of a model came to on one task."""

    task: str
    losses: dict[str, list[float]]
    """By variant: one a seed."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """All of it that a page shows."""

    figures: Sequence[Figure] = ()
    bars: Sequence[Bars] = ()
    sounds: Sequence[Sound] = ()
    routing: Routing | None = None


def sample_errors(folder: Path) -> list[tuple[str, Series]]:
    """Task -> share of words that were wrong in a run's sample answers, over the numbers of steps before them."""
    path = folder / SAMPLES
    if not path.is_file():
        return []
    from megatron_most.score import word_errors

    sums: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def take(line: dict[str, Any]) -> bool:
        task, step, said, meant = (line.get(name) for name in ("task", "step", "answer", "reference"))
        if not (isinstance(task, str) and type(step) is int and isinstance(said, str) and isinstance(meant, str)):
            return False
        if task in _TEXT_TASKS and meant.strip() and _MARK not in meant:
            errors = word_errors(meant.strip(), said.strip())
            sums[task][step][0] += errors.wrong
            sums[task][step][1] += errors.reference
        return True

    with open_file(path) as file:
        for _ in json_lines(file, path, take):
            pass
    made = []
    for task, at in sums.items():
        steps = sorted(at)
        rates = np.array([at[step][0] / at[step][1] for step in steps])
        made.append((task, Series(np.array(steps, float), rates)))
    return made


def read_figures(folders: Sequence[Path]) -> list[Figure]:
    """Every score of the evaluations below these folders, parts after the whole."""
    figures: list[Figure] = []
    for folder in folders:
        paths = [folder] if folder.is_file() else sorted(folder.rglob(RESULT))
        if not paths:
            raise DataError(f"{folder}: holds no {RESULT}; give the folder of an evaluation (its --out)")
        for path in paths:
            try:
                result = json.loads(read_file(path, remedy="give the folder of an evaluation that has ended"))
                figures += [_figure(result["task"], name, score) for name, score in result["scores"].items()]
                for name, sides in result["parts"].items():
                    figures += [_figure(result["task"], name, score, f", {side}") for side, score in sides.items()]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{path}: cannot be read as a result ({error}); evaluate again") from error
    return figures


def _figure(task: str, name: str, score: dict[str, Any], of: str = "") -> Figure:
    def form(value: float) -> str:
        return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.3f}"

    interval = f"{form(score['low'])} to {form(score['high'])}"
    return Figure(task, f"{name}{of}", form(score["value"]), interval, f"{score['items']:,}")


def read_bars(path: Path) -> list[Bars]:
    """As bench/ablation.py writes it: variants in their order, the one that others are compared with first."""
    losses: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        for result in json.loads(read_file(path, remedy="give the results.json of bench/ablation.py")):
            for task, loss in result["losses"].items():
                losses[str(task)][str(result["name"])].append(float(loss))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as an ablation ({error}); run bench/ablation.py again") from error
    return [Bars(task, dict(by_name)) for task, by_name in losses.items()]


def read_routing(path: Path) -> Routing:
    """As generate.py --routing writes it."""
    try:
        found = json.loads(read_file(path, remedy="write it with tools/generate.py --routing"))
        if found["format"] != "most-routing-1":
            raise ValueError(f"format {found['format']!r}")
        owner = {expert: name for name, group in found["groups"].items() for expert in group}
        names = list(found["groups"])
        rows = []
        for at, token in enumerate(found["tokens"]):
            cells = [sorted(experts[at]) for experts in found["experts"]]
            variables = {_PALETTE[names.index(owner[expert])] for cell in cells for expert in cell}
            words = [" ".join(map(str, cell)) for cell in cells]
            says, colour = str(token["says"]).translate(_PLAIN), min(variables, default="muted")
            rows.append(Routed(says, str(token["tag"]), words, colour))
        return Routing([str(layer) for layer in found["layers"]], rows)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as routing ({error}); write it again") from error


def read_sound(words: str) -> Sound:
    """LABEL=FILE, a WAV file, as a player."""
    label, equals, name = words.partition("=")
    path = Path(name)
    if not (label and equals and name):
        raise DataError(f"--sound {words!r}: write LABEL=FILE")
    content = read_file(path, remedy="give a WAV file")
    if not (content[:4] == b"RIFF" and content[8:12] == b"WAVE"):
        raise DataError(f"{path}: not a WAV file, which is what a page can play everywhere")
    if len(content) > MOST_BYTES:
        raise DataError(f"{path}: {len(content):,} bytes; a page takes sounds of at most {MOST_BYTES:,}; cut it")
    return Sound(label, f"data:audio/wav;base64,{base64.b64encode(content).decode()}")

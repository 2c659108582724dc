"""Where an import begins, by partition and by gate: losses of the base model and of what is made of it, before any step.

    .venv/bin/python bench/partition.py [--scale ci] [--out docs/partition]

A small vanilla MoE, every expert for everybody, learns a made-up language, written and spoken (see made_up.py). It is
exported as a Hugging Face folder, as which it is imported again with each strategy's partition, and its losses on
held-out text, speech and documents of both are compared with the base's. `text alone` is a base that has never met
speech, as published ones have not: its units are new rows, and affinity has only transcripts to go by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from made_up import KINDS, Language

from megatron_most.checkpoint import LocalTensors, Saver, Shelf, TensorReader, find_pieces, read_record
from megatron_most.config import RunConfig, dump, load_recipe, replace
from megatron_most.convert import ExportOptions, open_ours, prepare_export, run_convert_ckpt, run_export
from megatron_most.data import PackedBatch, pack_rows
from megatron_most.engine import PlainEngine, Session, make_plan, open_session
from megatron_most.model import build_model
from megatron_most.moe import routers
from megatron_most.runtime import get_logger, progress, run_command, set_threads
from megatron_most.upstream import find_versions

STRATEGIES = ("index", "alternate", "load", "affinity")
GATES = ("masked_softmax", "masked_softmax, constant 1", "reference")
BASES: dict[str, tuple[str, ...]] = {"text and speech": KINDS, "text alone": ("text",)}
RATE, LENGTH, ROWS = 6e-3, 96, 12
say = get_logger(__name__).info


@dataclass(frozen=True)
class Scale:
    steps: int
    seeds: int
    held_out: int
    """Rows of each kind."""
    changes: Mapping[str, int]


SCALES = {
    "full": Scale(600, 1, 32, {}),
    "ci": Scale(6, 1, 2, {"model.num_layers": 2, "moe.num_experts": 8}),
}
SMALL = {
    "model.hidden_size": 64, "model.num_layers": 4, "model.num_heads": 4, "model.dense_hidden_size": 128,
    "moe.num_experts": 16, "moe.top_k": 2, "moe.expert_hidden_size": 48, "moe.shared_hidden_size": 48,
    "train.sequence_length": LENGTH, "train.global_batch_size": ROWS, "train.micro_batch_size": ROWS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where one import begins, in nats a token; `base` of no strategy is the model that is imported."""

    base: str
    seed: int
    strategy: str
    gate: str
    text: float
    audio: float
    mixed: float
    mass: Mapping[str, float]
    """Of each group, the mean over layers."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scale", choices=[*SCALES], default="full")
    parser.add_argument("--bases", nargs="+", choices=[*BASES], default=[*BASES])
    parser.add_argument("--out", type=Path, help="without a suffix: a .json and an .svg are written")
    chosen = parser.parse_args()
    rows = []
    print("| base | seed | partition | gate | text | speech | both |\n|---|---|---|---|---|---|---|")
    for base in chosen.bases:
        for seed in range(SCALES[chosen.scale].seeds):
            with tempfile.TemporaryDirectory(prefix="bench-partition-") as folder:
                for row in compare(Path(folder), base, seed, SCALES[chosen.scale]):
                    rows.append(row)
                    print(markdown(row, rows), flush=True)
    if chosen.out is not None:
        text = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        chosen.out.with_suffix(".json").write_text(text, encoding="utf-8")
        draw(rows, chosen.out.with_suffix(".svg"))


def markdown(row: Row, rows: Sequence[Row]) -> str:
    """Losses, and what they are above the base's."""
    [base] = [one for one in rows if (one.base, one.seed, one.strategy) == (row.base, row.seed, "none")]
    cells = [f"{getattr(row, kind):.3f}" for kind in KINDS]
    if row is not base:
        cells = [f"{cell} ({getattr(row, k) - getattr(base, k):+.3f})" for cell, k in zip(cells, KINDS, strict=True)]
    return "| " + " | ".join((row.base, str(row.seed), row.strategy, row.gate, *cells)) + " |"


def compare(folder: Path, base: str, seed: int, scale: Scale) -> Iterator[Row]:
    language = Language(seed)
    language.tokens.save(folder / "token_map.json")
    experts = {**SMALL, **scale.changes}["moe.num_experts"]
    everyone: dict[str, Any] = {"moe.groups": [f"text+audio+wave: 0-{experts - 1}"], "train.seed": seed}
    tokens = {"tokens.backbone": "file", "tokens.file": str(folder / "token_map.json")}
    config = replace(load_recipe("vanilla-moe-mini"), {**SMALL, **scale.changes, **everyone, **tokens})
    with open_session(config) as session:
        set_threads(1)  # a model this small gains nothing from more
        learn(session, language, BASES[base], folder / "run", scale.steps, base)
    export(language, folder / "run", folder / "hf")
    speech = "audio" if "audio" in BASES[base] else "text"
    for name, kind in (("text", "text"), ("audio", speech)):
        lines = language.lines(kind, 4 * scale.held_out, LENGTH)
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for strategy in STRATEGIES:
        files = [f"--{name}={folder / name}.txt" for name in ("text", "audio")]
        where = ["--source", str(folder / "hf"), "--out", str(folder / strategy)]
        run_convert_ckpt(["import", *where, "--partition.strategy", strategy, *files])
    with open_session(config) as session:
        set_threads(1)
        held_out = {kind: held_out_batch(language, kind, scale.held_out) for kind in KINDS}
        yield Row(base=base, seed=seed, strategy="none", gate="", mass={}, **losses(session, folder / "hf-ours", held_out, ""))
        for strategy in STRATEGIES:
            for gate in GATES:
                found = losses(session, folder / strategy, held_out, gate)
                yield Row(base=base, seed=seed, strategy=strategy, gate=gate, mass={}, **found)

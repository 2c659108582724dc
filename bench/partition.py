"""Where an import begins, by partition and by gate: losses of a base model, and of what is made of it before any step.

    .venv/bin/python bench/partition.py [--scale ci] [--out docs/partition]

A small vanilla MoE, every expert for everybody, learns a made-up language, written and spoken (see made_up.py). It is
exported as a Hugging Face folder, as which it is imported again by each strategy, and its losses on held-out text,
speech and documents of both are compared with those of an import without modalities. `random`: groups drawn at random,
the mean of several; an expert's number means nothing, so index and alternate are one such draw each. `text alone` is a
base that has never met speech, as published ones have not: its units are new rows, and affinity has transcripts only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from made_up import KINDS, Language
from safetensors.torch import load_file, save_file

from megatron_most.checkpoint import LocalTensors, Saver, Shelf, TensorReader, find_pieces, read_record
from megatron_most.config import dump, load_recipe, replace
from megatron_most.convert import ExportOptions, open_ours, prepare_export, run_convert_ckpt, run_export
from megatron_most.data import PackedBatch, pack_rows
from megatron_most.engine import PlainEngine, Session, make_plan, open_session
from megatron_most.model import build_model
from megatron_most.moe import routers
from megatron_most.runtime import get_logger, progress, run_command, set_threads
from megatron_most.upstream import find_versions

STRATEGIES = ("index", "alternate", "load", "affinity")
NONE, RANDOM = "none", "random"
GATES = ("masked_softmax", "masked_softmax, constant 1", "reference")
BASES: dict[str, tuple[str, ...]] = {"text and speech": KINDS, "text alone": ("text",)}
RATE, LENGTH, ROWS = 6e-3, 96, 12
CALIBRATION = 96  # documents of a kind
say = get_logger(__name__).info


@dataclass(frozen=True)
class Scale:
    steps: int
    held_out: int
    """Rows of each kind."""
    draws: int
    """Of groups at random."""
    changes: Mapping[str, int]


SCALES = {
    "full": Scale(600, 32, 5, {}),
    "ci": Scale(3, 2, 2, {"model.num_layers": 2, "moe.num_experts": 8}),
}
SMALL = {
    "model.hidden_size": 64, "model.num_layers": 4, "model.num_heads": 4, "model.dense_hidden_size": 128,
    "moe.num_experts": 16, "moe.top_k": 2, "moe.expert_hidden_size": 48, "moe.shared_hidden_size": 48,
    "train.sequence_length": LENGTH, "train.global_batch_size": ROWS, "train.micro_batch_size": ROWS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where one import begins, in nats a token; that of no strategy is the base model."""

    base: str
    seed: int
    strategy: str
    gate: str
    text: float
    audio: float
    mixed: float
    mass: float
    """Of router probability, that falls inside the token's group: the mean over layers and groups."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scale", choices=[*SCALES], default="full")
    parser.add_argument("--bases", nargs="+", choices=[*BASES], default=[*BASES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of language and first weights: a base each")
    parser.add_argument("--out", type=Path, help="without a suffix: a .json and an .svg are written")
    chosen = parser.parse_args()
    rows: list[Row] = []
    print("| base | partition | gate | mass inside | text | speech | both |\n|---|---|---|---|---|---|---|")
    for base in chosen.bases:
        for seed in chosen.seeds:
            with tempfile.TemporaryDirectory(prefix="bench-partition-") as folder:
                rows += compare(Path(folder), base, seed, SCALES[chosen.scale])
        print("\n".join(table(base, rows)), flush=True)
    if chosen.out is not None:
        text = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        chosen.out.with_suffix(".json").write_text(text, encoding="utf-8")
        draw(rows, chosen.out.with_suffix(".svg"))


def table(base: str, rows: Sequence[Row]) -> Iterator[str]:
    """Losses of the base, and what each import loses above it: means, with the range where there are several."""
    first = [row for row in rows if (row.base, row.strategy) == (base, NONE)]
    cells = [f"{statistics.fmean(getattr(row, kind) for row in first):.3f}" for kind in KINDS]
    yield f"| {base} | {NONE} | | 1 | " + " | ".join(cells) + " |"
    for strategy in (RANDOM, *STRATEGIES):
        for gate in GATES:
            mine = [row for row in rows if (row.base, row.strategy, row.gate) == (base, strategy, gate)]
            cells = [spread([above(row, kind, rows) for row in mine]) for kind in KINDS]
            mass = statistics.fmean(row.mass for row in mine)
            yield f"| {base} | {strategy} | {gate} | {mass:.2f} | " + " | ".join(cells) + " |"


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):+.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):+.3f} to {max(values):+.3f})"


def above(row: Row, kind: str, rows: Sequence[Row]) -> float:
    """What an import loses above the base that it was made of."""
    [base] = [one for one in rows if (one.base, one.seed, one.strategy) == (row.base, row.seed, NONE)]
    return getattr(row, kind) - getattr(base, kind)


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
    knows_speech = "audio" in BASES[base]
    export(language, folder / "run", folder / "hf", knows_speech)
    for name, kind in (("text", "text"), ("audio", "audio" if knows_speech else "transcript")):
        lines = language.lines(kind, CALIBRATION, LENGTH)
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    chosen = {NONE: [], **{name: ["--partition.strategy", name, "--partition.no-page"] for name in STRATEGIES}}
    draw_experts = random.Random(seed)
    for number in range(scale.draws):
        text = sorted(draw_experts.sample(range(experts), experts // 2))
        lists = [text, sorted({*range(experts)} - {*text})]
        lines = [f"{name}: {','.join(map(str, ids))}" for name, ids in zip(("text", "audio"), lists, strict=True)]
        chosen[f"{RANDOM} {number}"] = ["--groups", *lines]
    for name, options in chosen.items():
        where = ["--source", str(folder / "hf"), "--out", str(folder / name), "--no-gate"]
        files = [f"--{kind}={folder / kind}.txt" for kind in ("text", "audio")] if options else []
        run_convert_ckpt(["import", *where, *options, *files])
    with open_session(config) as session:
        set_threads(1)
        held_out = {kind: batch(language, [(kind, -1 - n) for n in range(scale.held_out)]) for kind in KINDS}
        for name in chosen:
            about = json.loads((folder / name / "source.json").read_text()).get("constants", {"layers": {"": [1.0]}})
            mass = statistics.fmean(value for values in about["layers"].values() for value in values)
            for gate in GATES if name != NONE else ("",):
                found = losses(session, folder / name, gate, held_out)
                yield Row(base=base, seed=seed, strategy=name.split()[0], gate=gate, mass=mass, **found)


def batch(language: Language, rows: Sequence[tuple[str, int]]) -> PackedBatch:
    """(kind, number) of each row."""
    return pack_rows([[language.document(kind, LENGTH + 1, n)] for kind, n in rows], LENGTH, language.tokens)


def learn(session: Session, language: Language, kinds: Sequence[str], folder: Path, steps: int, words: str) -> None:
    plan = session.plan
    engine = PlainEngine(build_model(plan, session.groups), plan, session.groups)
    for step in progress(range(steps), words, "step"):
        rows = [(kinds[row % len(kinds)], step * ROWS + row) for row in range(ROWS)]
        report = engine.step([batch(language, rows)], RATE * (1 - step / steps))
        if step % 100 == 0 or step == steps - 1:
            say("%s: step %d, loss %.3f", words, step, report.loss)
    pieces = find_pieces(engine.model, plan.moe)
    saver = Saver(Shelf(folder / "checkpoints"), pieces, None, keep=1, versions=find_versions())
    weights = [found for found in engine.state() if found[0] == "weight"]
    texts = {"resolved.toml": dump(plan.config), "token_map.json": language.tokens.to_json()}
    saver.write(saver.snapshot(steps, weights, {"updates": steps}, texts))
    saver.wait()


def export(language: Language, run: Path, out: Path, knows_speech: bool) -> None:
    """As a Hugging Face folder; without the rows of units where they mean nothing yet."""
    run_export(prepare_export(open_ours(run), ExportOptions(family="deepseek_v2", gate=False)), out)
    (out / "tokenizer.json").write_text(language.tokenizer())
    if knows_speech:
        return
    path, rows = out / "model.safetensors", language.tokens.backbone_vocab_size
    tensors = {name: t[:rows].clone() if t.size(0) == language.tokens.vocab_size else t
               for name, t in load_file(path).items()}  # fmt: skip
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def losses(session: Session, folder: Path, gate: str, held_out: Mapping[str, PackedBatch]) -> dict[str, float]:
    """Nats a token on each kind of documents: of a checkpoint as it is, or under a gate."""
    changes: dict[str, Any] = {name: value for name, value in SMALL.items() if name.startswith("train.")}
    changes |= {"engine.kind": "plain", "engine.precision": "fp32"}
    changes |= {"moe.gate": gate.partition(",")[0]} if gate else {}
    plan = make_plan(replace(load_recipe(folder / "resolved.toml"), changes), 1, session.device)
    model = build_model(plan, session.groups)
    pieces = find_pieces(model, plan.moe)
    LocalTensors(TensorReader(folder, read_record(folder)), pieces).fill(model)
    if gate == GATES[1]:
        for router in routers(model):
            assert router.group_constant is not None, "masked_softmax has one"
            router.group_constant.fill_(1.0)
    engine = PlainEngine(model, plan, session.groups)
    return {kind: float(engine.evaluate([rows]).mean) for kind, rows in held_out.items()}


def draw(rows: Sequence[Row], path: Path) -> None:
    """A row of panels a base, a panel a kind: what each import loses above the base, by strategy and gate."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "partition", "svg.fonttype": "none", "font.size": 9})
    bases = list(dict.fromkeys(row.base for row in rows))
    figure = Figure(figsize=(9, 0.4 + 2.6 * len(bases)), layout="constrained")
    panels = figure.subplots(len(bases), len(KINDS), squeeze=False)
    grey = "#808080"  # legible on a light page and on a dark one
    for line, base in zip(panels, bases, strict=True):
        for panel, kind, words in zip(line, KINDS, ("text", "speech", "both"), strict=True):
            for place, (gate, colour) in enumerate(zip(GATES, ("#3b82c4", "#d8741f", "#8a63d2"), strict=True)):
                x = [n + 0.26 * (place - 1) for n in range(1 + len(STRATEGIES))]
                for at, strategy in zip(x, (RANDOM, *STRATEGIES), strict=True):
                    mine = [row for row in rows if (row.base, row.strategy, row.gate) == (base, strategy, gate)]
                    found = [above(row, kind, rows) for row in mine]
                    panel.bar(at, statistics.fmean(found), 0.24, color=colour, label=gate if at == x[0] else None)
                    if len(found) > 1:
                        panel.plot([at, at], [min(found), max(found)], color=grey, linewidth=1)
            panel.axhline(0, color=grey, linewidth=0.8)
            panel.set_xticks(range(1 + len(STRATEGIES)), (RANDOM, *STRATEGIES), color=grey, fontsize=8)
            panel.set_title(f"{base}: loss on {words}", fontsize=9, color=grey)
            panel.tick_params(colors=grey)
            panel.spines[["top", "right"]].set_visible(False)
            panel.spines[["left", "bottom"]].set_color(grey)
    for line in panels:
        line[0].set_ylabel("nats above the base", color=grey)
    marks, names = panels[0][0].get_legend_handles_labels()
    figure.legend(marks, names, loc="outside upper center", ncols=len(GATES), frameon=False, labelcolor=grey)
    figure.savefig(path, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    run_command(main)

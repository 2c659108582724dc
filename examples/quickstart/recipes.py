"""Recipes of both phases: the imported base's own, a phase of the product, and what a CPU can do in minutes."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_most.runtime import write_atomically

_PHASES = {  # task -> share of the documents
    "phase1": {"asr": 0.7, "tts": 0.25, "audio-lm": 0.02, "text-lm": 0.03},
    "phase2": {"speech-instruct": 0.4, "text-instruct": 0.2, "asr": 0.2, "tts": 0.1, "text-lm": 0.1},
}
_BATCH = 4
"""Rows: many small steps teach a model of 1.8 M weights more than few large ones."""
_RATE = {"phase1": "2e-3", "phase2": "7e-4"}
_LOOKS = {"phase1": 6, "phase2": 3}
"""How often each is validated and saved: on a model so small that costs as much as a dozen steps."""
_VALID = {"asr", "tts", "text-lm", "speech-instruct"}
_HEAD = """extends = ["base/{recipe}", "parts/{phase}"]
name = "{phase}"

[engine]
kind = "plain"
precision = "fp32"

[layout]
expert = 1

[train]
steps = {steps}
sequence_length = 256
batch_counts = "rows"
global_batch_size = {batch}
micro_batch_size = {micro}
learning_rate = {rate}
warmup_steps = {warmup}
schedule = "wsd"
decay_steps = {decay}
end_ratio = 0.02
validate_every = {every}

[checkpoint]
folder = "{folder}/runs/{{name}}"
start_from = "{start}"
every = {every}

[data]
validation_documents = 60

[forgetting]
valid = ["{folder}/sets/text-lm/valid"]
limit = 0.5

[samples]
count = 20
tokens = 16
tokenizer = "{folder}/tokenizer"
"""


def write_recipes(out: Path, steps: tuple[int, int], recipe: str, ranks: int) -> None:
    """OUT/phase1.toml and OUT/phase2.toml. `recipe`: the file's name in a checkpoint; `ranks` share a batch."""
    folder = json.dumps(str(out.resolve()), ensure_ascii=False)[1:-1]  # TOML has JSON's signs for quotes and the like
    starts = {"phase1": f"{folder}/base", "phase2": f"{folder}/runs/phase1"}
    for (phase, shares), number in zip(_PHASES.items(), steps, strict=True):
        tables = [
            _HEAD.format(
                phase=phase, folder=folder, start=starts[phase], steps=number, rate=_RATE[phase], recipe=recipe,
                warmup=min(40, number // 4), decay=max(1, number * 3 // 10), every=-(-number // _LOOKS[phase]),
                batch=_BATCH, micro=_BATCH // ranks,
            )
        ]  # fmt: skip
        for task in ("asr", "tts", "text-lm", "audio-lm", "speech-instruct", "text-instruct"):
            lines = [f"\n[data.{task.replace('-', '_')}]", f"weight = {shares.get(task, 0.0)}"]
            if task in shares:
                lines.append(f'train = ["{folder}/sets/{task}/train"]')
                lines += [f'valid = ["{folder}/sets/{task}/valid"]'] if task in _VALID else []
            tables.append("\n".join(lines) + "\n")
        write_atomically(out / f"{phase}.toml", "".join(tables))

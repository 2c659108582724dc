"""Memory and CPU time of conversions, as ratios to the model folder's size, beside transformers' from_pretrained.

    .venv/bin/python bench/convert.py [--scale ci] [--folder DIR] [--json]

The folder is made here, shard by shard, in DeepSeek-V2-Lite's shapes: each file has its real header, and one block of
random bf16 numbers in a sea of holes, so that 31 GB of model take up little disk (--dense writes numbers everywhere).
Each conversion runs in a process of its own, its logits gate included; counted are the most memory that it had in use
(mapped files included) and its CPU time, of all threads. transformers is only asked for the whole model at `ci`, where
that fits into memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from race import HEAD, Row, say

from megatron_most.config import RunConfig, replace
from megatron_most.convert.families import FAMILIES
from megatron_most.convert.shares import plan_for
from megatron_most.convert.tables import Shape, link
from megatron_most.runtime import run_command
from megatron_most.vocab import deepseek_token_map

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "convert_ckpt.py"
SMALL = {"model.num_layers": 5, "moe.num_experts": 16, "model.hidden_size": 512, "model.dense_hidden_size": 2048}
PEAK_BYTES, CPU_S_PER_BYTE = 3e9, 180 / 10e9
FROM_PRETRAINED = (
    "import sys, torch, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)"
)


@dataclass(frozen=True)
class Scale:
    """A model, and the layout that its files are cut for."""

    changes: dict[str, int]
    expert: int


SCALES = {"full": Scale({}, 8), "ci": Scale(SMALL, 4)}


def make_folder(folder: Path, scale: Scale, *, dense: bool, shard_bytes: float = 5e9) -> int:
    """A DeepSeek-V2-Lite of the scale's sizes; its bytes."""
    family, tokens = FAMILIES["deepseek_v2"], deepseek_token_map()
    base = replace(RunConfig(), {"moe.groups": ["text+audio+wave: 0-63"], "moe.shared_only_tags": []})
    groups = [f"text+audio+wave: 0-{scale.changes.get('moe.num_experts', 64) - 1}"]
    plan = plan_for(replace(base, {**scale.changes, "moe.groups": groups}), tokens)
    parts = [part for found in link(family.table, plan) for part in found.parts]
    shards: list[list[tuple[str, Shape]]] = [[]]
    for part in parts:
        if sum(num_bytes(shape) for _, shape in shards[-1]) + num_bytes(part[1]) > shard_bytes:
            shards.append([])
        shards[-1].append(part)
    block = torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    folder.mkdir(parents=True)
    where = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        where |= {key: name for key, _ in shard}
        write_shard(folder / name, shard, block.view(torch.uint8).numpy().tobytes(), dense)
    config = {**family.write(plan), "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"]}
    ids = {"bos_token_id": tokens.bos_id, "eos_token_id": tokens.eos_id, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**config, **ids}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sum(num_bytes(shape) for _, shape in parts)


def num_bytes(shape: Shape) -> int:
    return 2 * torch.Size(shape).numel()


def write_shard(path: Path, shard: list[tuple[str, Shape]], block: bytes, dense: bool) -> None:
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shard:
        head[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + num_bytes(shape)]}  # type: ignore[dict-item]
        at += num_bytes(shape)
    text = json.dumps(head).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = at if dense else min(at, len(block))
        while left:
            left -= file.write(block[:left])
        file.truncate(8 + len(text) + at)


def measure(command: list[str]) -> tuple[float, float]:
    """(most bytes in use, CPU seconds) of a process."""
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * 1024.0, usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scale", choices=[*SCALES], default="full")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    parser.add_argument("--dense", action="store_true", help="random numbers everywhere: takes the model's size twice")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    scale, python = SCALES[chosen.scale], sys.executable
    work = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=chosen.folder))
    rows = []
    try:
        size = make_folder(work / "hf", scale, dense=chosen.dense or chosen.scale == "ci")
        say("a folder of %.2f GB", size / 1e9)
        tool = [python, str(TOOL)]
        convert = [*tool, "import", "--source", str(work / "hf"), "--layout.expert", str(scale.expert), "--out"]
        start, start_s = measure([*convert, str(work / "ours"), "--plan"])
        rows.append(Row(part="imports and checks alone", ours=f"{start / 1e9:.2f} GB, {start_s:.0f} s CPU"))
        peak, seconds = measure([*convert, str(work / "ours")])
        theirs, _ = measure([python, "-c", FROM_PRETRAINED, str(work / "hf")]) if chosen.scale == "ci" else (0.0, 0)
        rows += judged("import", size, peak, seconds, start_s, theirs)
        shutil.rmtree(work / "hf")  # room for the next
        peak, seconds = measure([*tool, "export", "--source", str(work / "ours"), "--out", str(work / "again")])
        rows += judged("export", size, peak, seconds, start_s, 0.0)
    finally:
        shutil.rmtree(work)
    if not chosen.json:
        print(HEAD)
    for row in rows:
        print(json.dumps(vars(row)) if chosen.json else row.to_markdown())
    return int(any(row.ok is False for row in rows) and chosen.scale == "full")


def judged(part: str, size: float, peak: float, seconds: float, start_s: float, theirs: float) -> list[Row]:
    """CPU time of python's imports is not the conversion's, and is told by itself."""
    minutes = (seconds - start_s) / 60 / (size / 10e9)
    peer = f"from_pretrained: {theirs / 1e9:.2f} GB" if theirs else ""
    return [
        Row(
            part=f"{part}: peak memory", ours=f"{peak / 1e9:.2f} GB, {peak / size:.3f} of the folder", peer=peer,
            ratio=theirs / peak or None, wanted="≤ 3 GB", ok=peak <= PEAK_BYTES,
        ),
        Row(
            part=f"{part}: CPU time", ours=f"{minutes:.2f} min per 10 GB", wanted="≤ 3 min",
            ok=(seconds - start_s) / size <= CPU_S_PER_BYTE,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    run_command(main)

"""A small blend on disk, a recipe that learns it, and phases of training as processes of their own.

Every run is forked from the process of the tests, which never trains itself: threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_most.config import RunConfig, load_recipe, replace
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.manifest import open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.engine import PlainEngine, StepReport
from megatron_most.errors import MostError
from megatron_most.runtime import Launch
from megatron_most.speech import load_codec
from megatron_most.train import run_training
from tests.data_files import make_codec, make_corpus, make_tokenizer, text
from tests.harness import launch_ranks

STEPS = 12


def make_blend(root: Path) -> Path:
    """asr, tts and text-lm datasets of a made-up corpus, and their token map."""
    speech = make_corpus(root / "corpus", recordings=6, cuts=20)
    tokens = make_tokenizer(root / "tokenizer")
    codec = load_codec(make_codec(root / "codec"))
    extract_units(speech, codec, root / "units", (0, 1), ExtractOptions(), speech.audio_root)
    about: dict[str, Any] = dict(corpus="t", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(root / "texts", kind="text", **about) as out:
        for number in range(300):
            out.add_text(f"t-{number}", text(number))
    tools: dict[str, Any] = dict(tokens=tokens, templates=load_templates("chat"))
    tools["tokenizer"] = load_tokenizer(root / "tokenizer")
    spoken = BuildInputs(manifests=(speech,), units=(open_units(root / "units"),), **tools)
    for task in ("asr", "tts"):
        for part in ("train", "valid"):
            build(spoken, BuildOptions(task=task, part=part, hold_out=0.4), root / task / part)
    written = BuildInputs(manifests=(open_manifest(root / "texts"),), units=(), **tools)
    build(written, BuildOptions(task="text-lm"), root / "text-lm")
    return root


def recipe(data: Path, folder: Path, base: str = "most-tiny", **changes: Any) -> RunConfig:
    named = {
        "name": "test", "tokens.backbone": "file", "tokens.file": str(data / "tokenizer" / "token_map.json"),
        "data.asr.weight": 0.4, "data.asr.train": [str(data / "asr" / "train")],
        "data.asr.valid": [str(data / "asr" / "valid")],
        "data.tts.weight": 0.4, "data.tts.train": [str(data / "tts" / "train")],
        "data.text_lm.weight": 0.2, "data.text_lm.train": [str(data / "text-lm")], "data.window": 64,
        "train.steps": STEPS, "train.sequence_length": 128, "train.global_batch_size": 8, "train.micro_batch_size": 4,
        "train.epsilon": 1e-5, "train.learning_rate": 5e-3, "train.validate_every": 6,
        "checkpoint.folder": str(folder), "checkpoint.every": 4, "model.num_layers": 2,
    }  # fmt: skip
    return replace(load_recipe(base), {**named, **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    found = [entry for entry in lines(folder) if "gradient_norm" in entry]
    assert [entry["step"] for entry in found] == list(range(len(found)))  # each step once, in order
    return {entry["step"]: entry["loss"] for entry in found}


def run_until(config: RunConfig, step: int, act: Callable[[], object]) -> int:
    """Train in a process that calls `act` before it takes this step, at any speed; the code it ends with."""

    def body(launch: Launch) -> int:
        taken = PlainEngine.step

        def step_and_act(engine: PlainEngine, *given: Any, **named: Any) -> StepReport:
            if engine.updates == step:
                act()
            return taken(engine, *given, **named)

        PlainEngine.step = step_and_act  # type: ignore[method-assign]
        return run_training(config, launch)

    return launch_ranks(body, 1)[0]


def kill_when_saved(folder: Path) -> None:
    """End this process as `kill -9` does, as soon as the checkpoint that is being written is there."""
    until = time.monotonic() + 60
    while not folder.exists() and time.monotonic() < until:
        time.sleep(0.005)
    assert folder.exists()
    os.kill(os.getpid(), signal.SIGKILL)


def one_run(launch: Launch, config: RunConfig) -> int:
    return run_training(config, launch)


def run(config: RunConfig, world: int = 1) -> None:
    assert launch_ranks(one_run, world, config) == [0] * world


def refusal(config: RunConfig) -> str:
    """What a run says before it ends with an error of ours."""

    def body(launch: Launch, folder: Path) -> int:
        try:
            return run_training(config, launch)
        except MostError as error:
            (folder / "error").write_text(str(error))
            return 2

    with tempfile.TemporaryDirectory() as name:
        assert launch_ranks(body, 1, Path(name)) == [2]
        return (Path(name) / "error").read_text()

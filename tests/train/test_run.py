"""A phase of training by its public function: it learns, stops when asked, and goes on where it was in any layout.

Every run is a process of its own, forked from this one, which never trains itself: threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import RunConfig, load_recipe, replace
from megatron_most.data.build import BuildInputs, BuildOptions, build
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.manifest import open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.errors import MostError
from megatron_most.runtime import Launch
from megatron_most.speech import load_codec
from megatron_most.train import EXIT_STOPPED, run_training
from tests.data_files import make_codec, make_corpus, make_tokenizer, text
from tests.harness import launch_ranks, start_ranks

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """asr, tts and text-lm datasets of a made-up corpus, and their token map."""
    root = tmp_path_factory.mktemp("data")
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


def recipe(data: Path, folder: Path, **changes: Any) -> RunConfig:
    named = {
        "name": "test", "tokens.backbone": "file", "tokens.file": str(data / "tokenizer" / "token_map.json"),
        "data.asr.weight": 0.4, "data.asr.train": [str(data / "asr" / "train")],
        "data.asr.valid": [str(data / "asr" / "valid")],
        "data.tts.weight": 0.4, "data.tts.train": [str(data / "tts" / "train")],
        "data.text_lm.weight": 0.2, "data.text_lm.train": [str(data / "text-lm")], "data.window": 64,
        "train.steps": STEPS, "train.sequence_length": 128, "train.global_batch_size": 8, "train.micro_batch_size": 2,
        "train.epsilon": 1e-5, "train.learning_rate": 5e-3, "train.validate_every": 6,
        "checkpoint.folder": str(folder), "checkpoint.every": 4, "model.num_layers": 2,
    }  # fmt: skip
    return replace(load_recipe("most-tiny"), {**named, **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    found = [entry for entry in lines(folder) if "gradient_norm" in entry]
    assert [entry["step"] for entry in found] == list(range(len(found)))  # each step once, in order
    return {entry["step"]: entry["loss"] for entry in found}


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(recipe(data, folder))
    return folder


def test_a_phase_learns_validates_and_leaves_its_last_checkpoints(unbroken: Path) -> None:
    found = losses(unbroken)
    assert len(found) == STEPS and found[STEPS - 1] < 0.8 * found[0]
    validations = [entry for entry in lines(unbroken) if "validation" in entry]
    assert [(entry["step"], entry["validation"]) for entry in validations] == [(6, "asr"), (12, "asr")]
    assert validations[1]["loss"] < validations[0]["loss"]
    names = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000008", "step-00000012"]
    assert (unbroken / "resolved.toml").exists()


@pytest.mark.parametrize(
    ("world", "changes", "tolerance"),
    [
        (1, {}, 0.0),
        (2, {}, 5e-5),
        (2, {"layout.expert": 2}, 5e-5),
        (2, {"layout.tensor": 2, "engine.kind": "deepspeed"}, 5e-5),
    ],
    ids=["same", "DP2", "EP2", "TP2 ZeRO"],
)
def test_a_killed_run_goes_on_and_its_stitched_losses_are_the_unbroken_ones(
    data: Path, tmp_path: Path, unbroken: Path, world: int, changes: dict[str, Any], tolerance: float
) -> None:
    process = begin(recipe(data, tmp_path))
    while not (tmp_path / "checkpoints" / "step-00000004").exists():
        time.sleep(0.005)
        assert process.is_alive(), "the run ended before it could be killed"
    process.kill()
    process.join()
    run(recipe(data, tmp_path, **changes), world)
    stitched, whole = losses(tmp_path), losses(unbroken)
    assert set(stitched) == set(whole)
    for step in whole:
        assert stitched[step] == pytest.approx(whole[step], rel=tolerance, abs=0)


def begin(config: RunConfig) -> BaseProcess:
    """Train in a process that can be killed."""
    [process] = start_ranks(one_run, 1, config)
    return process


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


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "file"])
def test_asked_to_stop_it_saves_and_says_so_and_then_goes_on(
    data: Path, tmp_path: Path, unbroken: Path, how: str
) -> None:
    process = begin(recipe(data, tmp_path, **{"checkpoint.every": 0}))
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.005)
    if how == "file":
        (tmp_path / "stop").touch()
    else:
        os.kill(process.pid, getattr(signal, how))
    process.join(60)
    assert process.exitcode == EXIT_STOPPED
    [saved] = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("step-")]
    assert 0 < int(saved.name[5:]) < STEPS and len(losses(tmp_path)) == int(saved.name[5:])
    (tmp_path / "stop").unlink(missing_ok=True)
    run(recipe(data, tmp_path))
    assert losses(tmp_path) == losses(unbroken)


def test_what_would_make_it_another_run_is_refused_by_name(data: Path, tmp_path: Path, unbroken: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for changes, wrong in [
        ({"train.learning_rate": 1e-3}, "train.learning_rate = 0.001, but the run"),
        ({"moe.top_k": 1}, "moe.top_k = 1, but the run"),
        ({"data.asr.weight": 0.5}, "data.asr.weight = 0.5, but the run"),
        ({"train.steps": 20}, "train.steps = 20, but the run"),
        ({"data.asr.train": [str(data / "asr" / "valid")]}, "fingerprint of dataset 0 of task asr"),
    ]:
        assert re.search(wrong, refusal(recipe(data, folder, **changes)))


def test_phase_2_begins_with_the_weights_of_phase_1_and_a_fresh_optimizer(
    data: Path, tmp_path: Path, unbroken: Path
) -> None:
    changes = {"checkpoint.start_from": str(unbroken), "train.learning_rate": 1e-4, "train.steps": 3}
    run(recipe(data, tmp_path, **changes))
    first = losses(tmp_path)[0]
    assert first < 0.85 * losses(unbroken)[0]


def test_a_task_without_datasets_and_a_run_without_tasks_are_refused(data: Path, tmp_path: Path) -> None:
    for changes, wrong in [
        ({"data.asr.train": []}, "data.asr.train = .*name its datasets"),
        ({"data.asr.weight": 0.0}, "data.asr.weight = 0.0: its datasets would never be read"),
        ({"data.asr.train": [str(data / "gone")]}, "gone"),
        ({"tokens.backbone": "tiny", "tokens.file": None}, "token map"),
    ]:
        assert re.search(wrong, refusal(recipe(data, tmp_path / "run", **changes)))
        assert not list((tmp_path / "run").glob("checkpoints/step*"))

"""docs/evaluation.md is so: its commands run as written, and it names every task and no option that does not exist."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_most.config import LayoutConfig
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.evaluate import Data, Options, Tools, read_result, run_evaluate
from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.options import TASKS
from tests.doc_words import commands_by
from tests.evaluate.benchmarks import write_gsm8k, write_mmlu, write_sblimp, write_swuggy
from tests.spoken_models import Spoken, apart, make_model

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
TOOL = ".venv/bin/python tools/evaluate.py "
SHARED = ".venv/bin/torchrun "


def guide_commands() -> list[list[str]]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S) for line in block.splitlines()]
    lines = [line for line in lines if not line.startswith(SHARED)]
    assert all(line.startswith(TOOL) for line in lines)
    return [shlex.split(line.removeprefix(TOOL)) for line in lines]


@pytest.mark.slow
def test_the_command_on_several_processes_runs(tmp_path):
    """torch's own launcher imports everything in each of them."""
    [guide] = commands_by("evaluate/test_evaluation_guide.py::test_the_command_on_several_processes_runs", tmp_path)
    spoken = Spoken(tmp_path / "spoken", utterances=3)
    for place, what in {"manifests/test-clean": "manifest", "units/test-clean": "units"}.items():
        shutil.copytree(spoken.root / what, tmp_path / place)
    make_model(spoken, tmp_path / "models" / "most")
    words = [str(ROOT / word) if word == "tools/evaluate.py" else word for word in guide.smaller[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    result = read_result(tmp_path / "runs" / "shared" / "asr-test-test")
    assert (result.ranks, result.items) == (2, 3)


def test_the_commands_of_the_guide_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A forked child has one thread: those of this process, if it has computed before, did not survive the fork.
    monkeypatch.setattr("megatron_most.evaluate.run.set_threads", lambda count: None)
    spoken = Spoken(tmp_path / "spoken", utterances=3)
    for place, what in {
        "manifests/test-clean": "manifest",
        "units/test-clean": "units",
        "codecs/units": "codec",
    }.items():
        Path(place).parent.mkdir(exist_ok=True)
        shutil.copytree(spoken.root / what, place)
    shutil.copytree(spoken.root / "audio", "manifests/audio")
    make_model(spoken, Path("models/most"), max_position_embeddings=4096)
    inputs = BuildInputs(
        manifests=(spoken.manifest,), units=(open_units("units/test-clean"),), tokens=spoken.tokens,
        tokenizer=load_tokenizer(spoken.root / "tokenizer"), templates=load_templates("chat"),
    )  # fmt: skip
    build(inputs, BuildOptions(task="asr"), Path("datasets/valid"))
    write_swuggy(Path("sLM21-dataset"), 2)
    write_sblimp(Path("sLM21-dataset"), 2)
    write_mmlu(Path("benchmarks"), rows=1)
    write_gsm8k(Path("benchmarks"))
    Path("questions").mkdir()
    shutil.copy(spoken.root / "audio" / "u0.wav", "questions/q.wav")
    line = json.dumps({"WavPath": "q.wav", "Answer": "Paris"})
    Path("questions/llama-questions.jsonl").write_text(f"{line}\n")
    commands = guide_commands()

    def body() -> None:
        for words in commands:
            run_evaluate(words)

    apart(body)
    found = {read_result(path).task for path in Path("runs").rglob("result.json")}
    assert found == {
        "asr/test/test", "nll/asr/valid", "swuggy/dev", "sblimp/dev", "qa-s2t/llama-questions", "mmlu", "gsm8k",
    }  # fmt: skip
    assert "swuggy" in Path("table.md").read_text().lower() and Path("table.html").exists()


def test_every_task_and_every_option_that_the_guide_names_exists():
    kinds = (Options, Data, Tools, Decoding)
    known = {field.name.replace("_", "-") for kind in kinds for field in dataclasses.fields(kind)}
    known |= {f"layout.{field.name.replace('_', '-')}" for field in dataclasses.fields(LayoutConfig)} | {"help"}
    known.add("nproc-per-node")  # torchrun's
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z0-9])", GUIDE))
    assert named <= known and len(named) > 15
    table = {name for row in re.findall(r"^\| (`.*?) \|", GUIDE, re.M) for name in re.findall(r"`([\w-]+)`", row)}
    assert set(TASKS) <= table

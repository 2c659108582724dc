"""What ranks would compile is compiled once, where the launchers look for it; on a CPU nothing needs a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_most.config import load_recipe
from megatron_most.errors import ConfigError
from megatron_most.jobs import prebuild as module
from megatron_most.jobs.prebuild import FOLDERS, prebuild
from megatron_most.runtime import num_devices

ROOT = Path(__file__).resolve().parents[2]
OFFLOADED = ["--engine.kind", "deepspeed", "--engine.zero-stage", "2", "--engine.offload-optimizer"]


def run(folder: Path, device: str, path: str) -> str:
    env = {"PATH": path, "HOME": str(folder), "MOST_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    env |= {name: str(folder / "a cache" / name) for name in FOLDERS}
    words = ["--config", "most-tiny", "--device", device, *OFFLOADED]
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "prebuild.sh"), *words], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def without_compilers(folder: Path) -> str:
    """A PATH with what the launchers call, and no compiler."""
    folder.mkdir()
    for name in ("bash", "env", "date", "dirname", "ldconfig", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    assert not any(shutil.which(name, path=str(folder)) for name in ("cc", "gcc", "g++", "c++", "clang", "ninja"))
    return str(folder)


def test_on_a_cpu_an_offloaded_step_compiles_nothing_and_needs_no_compiler(tmp_path: Path) -> None:
    said = run(tmp_path, "cpu", without_compilers(tmp_path / "bin"))
    assert [f"{name}={tmp_path}/a cache/{name}: 0 files made" in said for name in FOLDERS] == [True] * len(FOLDERS)
    assert all((tmp_path / "a cache" / name).is_dir() for name in FOLDERS)


@pytest.mark.gpu
def test_on_a_gpu_a_second_time_needs_no_compiler_and_makes_nothing(tmp_path: Path) -> None:
    if not num_devices():
        pytest.skip("needs a gpu")
    first = run(tmp_path, "gpu", os.environ["PATH"])
    assert f"TRITON_CACHE_DIR={tmp_path}/a cache/TRITON_CACHE_DIR: 0 files made" not in first
    again = run(tmp_path, "gpu", without_compilers(tmp_path / "bin"))
    assert again.count(": 0 files made") == len(FOLDERS)


def test_what_was_made_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {name: str(tmp_path / name) for name in FOLDERS}
    kernel = tmp_path / "TRITON_CACHE_DIR" / "abc" / "kernel.so"

    def compile_one(config: object) -> None:
        kernel.parent.mkdir(exist_ok=True)
        kernel.write_text("")

    monkeypatch.setattr(module, "_train", compile_one)
    recipe = load_recipe("most-tiny")
    assert prebuild(recipe, env) == {**{name: [] for name in FOLDERS}, "TRITON_CACHE_DIR": [kernel]}
    assert prebuild(recipe, env) == {name: [] for name in FOLDERS}
    with pytest.raises(ConfigError, match="TRITON_CACHE_DIR = None: not set; run `make prebuild`"):
        prebuild(recipe, {**env, "TRITON_CACHE_DIR": ""})


def test_one_layer_of_each_kind_stands_for_all_at_full_width() -> None:
    recipe = load_recipe("stage1-asr-tts")
    small = module._small(recipe)
    assert small.model.num_layers == 2 and recipe.moe.dense_layers == (0,), "a dense one and one with experts"
    assert (small.model.hidden_size, small.moe) == (recipe.model.hidden_size, recipe.moe)
    assert small.engine == recipe.engine and small.layout.expert == 1 < recipe.layout.expert

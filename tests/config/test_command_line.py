"""Flags win over recipes, reach every field and upstream's settings; a wrong one ends with 2 and a message."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_most.config import from_command_line, load_recipe, replace
from megatron_most.config import load as loading
from megatron_most.errors import ConfigError
from tests.config.runs import leaves

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "run.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_its_base(write: Write) -> None:
    path = write('extends = "most-tiny"\n[train]\nsteps = 1\nseed = 2\nclip = 3.0')
    config = from_command_line(["--train.seed", "4", "--config", str(path), "--train.clip=5"])
    assert (config.train.steps, config.train.seed, config.train.clip) == (1, 4, 5.0)
    assert config.train.sequence_length == load_recipe("most-tiny").train.sequence_length
    assert replace(config, {"train.seed": 2, "train.clip": 3.0}) == load_recipe(path)


@pytest.mark.parametrize("name", ["most-mini", "most-3b-upcycled"])
def test_a_recipe_alone_on_the_command_line_is_that_recipe(name: str) -> None:
    assert from_command_line(["--config", name]) == load_recipe(name)
    assert from_command_line([f"--config={name}"]) == load_recipe(name)
    assert from_command_line([], default=name) == load_recipe(name)


def test_flags_set_fields_of_every_type() -> None:
    words = (
        "--config most-tiny --name mine --device cpu --moe.top-k 1 --moe.dense_layers 0 1 --moe.gate reference "
        "--model.tied-embeddings --model.q-lora-rank 8 --layout.expert-tensor None --train.betas 0.8 0.9 "
        "--train.learning-rate 3e-4 --moe.shared-only-tags"
    )
    config = from_command_line([*words.split(), "--moe.groups", "text+wave: 0-3", "audio: 4-7"])
    assert (config.name, config.device, config.moe.top_k, config.moe.gate) == ("mine", "cpu", 1, "reference")
    assert (config.moe.dense_layers, config.moe.shared_only_tags) == ((0, 1), ())
    assert config.moe.groups == ("text+wave: 0-3", "audio: 4-7")
    assert (
        config.model.tied_embeddings is True and config.model.q_lora_rank == 8 and config.layout.expert_tensor is None
    )
    assert config.train.betas == (0.8, 0.9) and config.train.learning_rate == 3e-4


def test_upstream_flags_join_the_recipes_settings_with_the_types_of_toml(write: Write) -> None:
    path = write("[core]\nkept = 1\nchanged = 2\n[deepspeed.zero_optimization]\noverlap_comm = true")
    words = "--core.changed 3 --core.flag false --deepspeed.zero_optimization.overlap-comm=False --core.rate 1e-3"
    config = from_command_line(["--config", str(path), *words.split(), "--core.kind", "te", "--core.low", "-1"])
    assert config.core == {"kept": 1, "changed": 3, "flag": False, "rate": 1e-3, "kind": "te", "low": -1}
    assert config.deepspeed == {"zero_optimization.overlap_comm": False}  # the string "false" would be true upstream


@pytest.mark.parametrize("words", [["--core.window"], ["--core.window", "--train.steps", "3"]])
def test_an_upstream_flag_without_a_value_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"core\.window = None: no value follows; write --core\.window VALUE"):
        from_command_line(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--moe.topk", "3"], "--moe.top-k"),
        (["--trian.steps", "3"], "--trian.steps"),
        (["--moe.top-k", "many"], "top-k"),
        (["--moe.gate", "softmax"], "masked_softmax"),
        (["--train.betas", "0.9"], "betas"),
        (["--config"], "--config"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_flag_ends_with_2_and_a_message(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        from_command_line(words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_an_unknown_recipe_on_the_command_line_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean most-tiny"):
        from_command_line(["--config", "most-tinny"])


def test_help_lists_every_field_and_the_recipes_default_and_takes_no_time() -> None:
    code = "from megatron_most.config import from_command_line as f; f(['--config', 'most-mini', '--help'])"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}
    )
    assert time.perf_counter() - start < 5
    assert done.returncode == 0
    fields = [name for name in leaves(load_recipe("most-mini")) if name not in loading.UPSTREAM]
    assert len(fields) > 70
    assert [name for name in fields if f"--{name.replace('_', '-')}" not in done.stdout] == []
    assert "--core.NAME VALUE" in done.stdout and "most-3b-upcycled" in done.stdout
    assert "(default: 896)" in done.stdout  # most-mini's dense_hidden_size

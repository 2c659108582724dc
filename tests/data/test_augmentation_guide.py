"""docs/augmentation.md is so: commands parse, recipes exist and load, its table is that of the settings."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_most.config import AugmentConfig, from_command_line, load_recipe, recipe_names
from megatron_most.config.augment import EFFECTS
from megatron_most.data import commands
from megatron_most.data.templates import load_templates

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_its_commands_are_those_of_the_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for step in commands._STEPS.values():
        monkeypatch.setattr(step, "run", lambda self: ran.append(type(self).__name__))
    for program, tool, *words in LINES:
        assert program == ".venv/bin/python" and (ROOT / tool).is_file()
        if tool == "tools/prepare_data.py":
            commands.run_prepare_data(words)
        elif tool == "tools/train.py":
            ran.append(from_command_line(words).name)
    assert ran == ["Augment", "Units", "Build", "stage2-vanilla-moe"]


def test_its_table_has_every_setting_and_the_default_sets_numbers() -> None:
    default = load_recipe("parts/augment").data.augment
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| ([^|]*) \|$", GUIDE, re.M)
    named = [name for cells, _ in rows for name in re.findall(r"`(\w+)`", cells) if hasattr(default, name)]
    assert sorted(named) == sorted({field.name for field in fields(AugmentConfig)} - {"seed"})
    for cells, said in rows:
        effects = [name for name in re.findall(r"`(\w+)`", cells) if name in EFFECTS]
        for effect, value in zip(effects, said.split(", "), strict=False):
            number = getattr(default, effect)
            assert value == (f"{number:g}" if number else "off"), effect


def test_its_recipes_load_and_its_ablations_ship(tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", GUIDE, re.S | re.M)):
        (tmp_path / f"{number}.toml").write_text(block, encoding="utf-8")
        load_recipe(tmp_path / f"{number}.toml")
    table = GUIDE.partition("## Ablations of phase 2")[2].partition("```")[0]
    named = set(re.findall(r"`(stage[\w-]+)`", table))
    assert named <= set(recipe_names()) and len(named) == 11
    assert len(load_templates("varied").instructions["asr"]) == len(load_templates("varied").instructions["tts"]) == 24

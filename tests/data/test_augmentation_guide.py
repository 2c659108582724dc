"""docs/augmentation.md is so: recipes exist and load, its table is that of the settings. test_doc_pages.py runs it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from megatron_most.config import AugmentConfig, load_recipe, recipe_names
from megatron_most.config.augment import EFFECTS
from megatron_most.data.templates import load_templates

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")


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

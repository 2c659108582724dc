"""A recipe that is nested beyond reason is one line, as any other that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_most.config import load_recipe
from megatron_most.errors import ConfigError


def test_a_recipe_nested_too_deep_is_not_readable(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match="deep.toml': not readable as TOML"):
        load_recipe(tmp_path / "deep.toml")

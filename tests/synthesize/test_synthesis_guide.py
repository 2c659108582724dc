"""docs/synthesis.md is so: it has a command for each step, the options it names exist."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from megatron_most.data import commands as data_commands
from megatron_most.synthesize import commands
from tests.doc_words import commands_of

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
TOOL = "tools/synthesize.py"


def options_of(kind: Any, prefix: str = "") -> set[str]:
    """The long options of a command's dataclass."""
    found: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        if name not in {field.name for field in fields(kind)}:
            continue
        dashed = name.replace("_", "-")
        inner = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        if inner is None:
            found |= {prefix + dashed, f"{prefix}no-{dashed}"}
        else:
            found |= options_of(inner, f"{prefix}{dashed}.") | options_of(inner, prefix)
    return found


def test_every_step_of_the_tool_has_a_command_in_the_guide(tmp_path: Path) -> None:
    """They are run by test_doc_pages.py."""
    steps = {command.words[2] for command in commands_of("synthesis.md", GUIDE, tmp_path) if TOOL in command.text}
    assert steps == commands._STEPS.keys() - {"merge"}


def test_every_option_the_guide_names_exists() -> None:
    known = set().union(*(options_of(step) for step in (*commands._STEPS.values(), *data_commands._STEPS.values())))
    known |= {"help", "port", "scale"}  # port: vllm's; scale: examples/synthesis/run.py's
    known |= {"name", "licence", "source", "files", "column"}  # of `manifest chat`
    named = {word.rstrip(".") for word in re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", GUIDE)}
    assert named <= known, sorted(named - known)

"""docs/synthesis.md is so: its commands parse, the options it names exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from megatron_most.data import commands as data_commands
from megatron_most.synthesize import commands, run_synthesize

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
TOOL = ".venv/bin/python tools/synthesize.py"
LINES = [
    line.strip()
    for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
]


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


def test_every_command_of_the_guide_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    for step in (*commands._STEPS.values(), *data_commands._STEPS.values()):
        monkeypatch.setattr(step, "run", lambda self: parsed.append(self))
    ours = [line for line in LINES if line.startswith(TOOL)]
    for line in ours:
        run_synthesize(shlex.split(line)[2:])
    for line in LINES:
        if "prepare_data.py" in line:
            data_commands.run_prepare_data(shlex.split(line)[2:])
    assert {type(one) for one in parsed} >= set(commands._STEPS.values()) - {commands.Merge}
    assert len(parsed) >= len(ours) >= 6


def test_every_option_the_guide_names_exists() -> None:
    known = set().union(*(options_of(step) for step in (*commands._STEPS.values(), *data_commands._STEPS.values())))
    known |= {"help", "port", "scale"}  # port: vllm's; scale: examples/synthesis/run.py's
    known |= {"name", "licence", "source", "files", "column"}  # of `manifest chat`
    named = {word.rstrip(".") for word in re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", GUIDE)}
    assert named <= known, sorted(named - known)

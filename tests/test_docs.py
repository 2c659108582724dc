"""What the pages say is so: links lead somewhere, tables agree with the recipes, and commands run.

Commands of `sh` blocks are run as written, with this interpreter and fewer steps; `make` lines must name a target.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_most.config import Facts, build, count_parameters, load_recipe, recipe_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
BLOCKS = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)]
LINES = sorted({line.split("   #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()})
RUN_AS = {
    ".venv/bin/python": [sys.executable],
    ".venv/bin/torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_on_the_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_table_of_presets_names_every_recipe_with_its_size() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| ([\d.]+) B \| ([\d.]+) B \| (.*) \|$", README, re.M)
    named = {name for name, *_ in rows} | {name for *_, also in rows for name in re.findall(r"`([\w-]+)`", also)}
    phases = {name for name in recipe_names() if name.startswith("stage")}  # of the models in the table
    assert named == set(recipe_names()) - phases and all(f"`{name}`" in README for name in phases)
    for name, total, active, _ in rows:
        config = load_recipe(name)
        facts = Facts(world_size=max(1, config.layout.expert), device="gpu", core_version=(0, 16))
        size = count_parameters(build(config, facts))
        assert (total, active) == (f"{size.total / 1e9:.1f}", f"{size.active / 1e9:.1f}")


def test_every_make_line_names_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {line.split()[1] for line in LINES if line.startswith("make ")}
    named |= {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("make ")])
def test_the_command_runs(line: str) -> None:
    program, *words = shlex.split(line)
    command = [*RUN_AS[program], *words]
    if "examples/quickstart/demo.py" in words:
        command += ["--train.steps", "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    if "examples/quickstart/demo.py" in words:
        assert "text" in done.stderr and "->" in done.stderr  # its closing line, after the check that losses fell


def test_the_benchmark_shows_both_gates() -> None:
    command = [sys.executable, "bench/gate_collapse.py", "--steps", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row.split("|")[1].strip() for row in done.stdout.splitlines()[2:]]
    assert rows.count("reference") == rows.count("masked_softmax") > 0

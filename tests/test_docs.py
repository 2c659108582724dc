"""What the pages say is so: links lead somewhere, tables agree with the recipes, and every command has who runs it.

Who that is says doc_lines.py. What it leaves to this file is run as written, but for the size: layouts with two layers
and fewer steps, training for two steps. Python's programs are forked from this process, and so are torchrun's ranks.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_most.config import Facts, build, count_parameters, from_command_line, load_recipe, recipe_names
from megatron_most.data import commands as data_commands
from megatron_most.vocab import llama_token_map
from tests.doc_lines import CLAIMS, HERE, LINES, PAGES, ROOT, SMALL, Line, lines_of, taken
from tests.hf_models import llama
from tests.phases import make_blend
from tests.programs import run_program

README = PAGES[0].read_text(encoding="utf-8")
PYTHON = ".venv/bin/python"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_on_the_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [
        target for target in targets if not target.startswith("https://") and not (page.parent / target).exists()
    ]
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
    named = {line.words.split()[1] for line in LINES if line.words.startswith("make ")}
    named |= {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("line", taken(HERE), ids=lambda line: line.words)
def test_the_command_runs(line: Line) -> None:
    program, *words = shlex.split(line.words)
    is_layout = "examples/layouts/layout.py" in words
    if is_layout:
        words += ["--train.steps", "25", "--model.num-layers", "2"]
    if program == ".venv/bin/torchrun":
        words = ["tests/agent.py", *words]
    done = run_program(ROOT / words[0], *words[1:], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    if is_layout:
        assert "text" in done.stderr and "->" in done.stderr  # its closing line, after the check that losses fell


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small datasets under every name that a page gives them."""
    root = make_blend(tmp_path_factory.mktemp("blend"))
    (root / "text-lm").rename(root / "train")
    (root / "text-lm").mkdir()
    (root / "train").rename(root / "text-lm" / "train")
    place = tmp_path_factory.mktemp("place")
    (place / "runs").mkdir()
    for name in ("DATA", "runs/real_speech"):
        (place / name).symlink_to(root)
    return place


@pytest.fixture(scope="module")
def trained(blend: Path) -> Path:
    """After the training commands of README and docs/training.md, two steps of each."""
    lines = [line for line in taken(SMALL) if line.page in ("README.md", "training.md")]
    trained = expanded(lines)
    assert {words[words.index("--config") + 1] for words in trained} == {"stage1-tiny", "most-tiny"}
    few = ["--train.steps", "2", "--train.global-batch-size", "2", "--train.micro-batch-size", "1"]
    few += ["--train.warmup-steps", "0", "--checkpoint.folder", "runs/{name}", "--telemetry.no-tensorboard"]
    for tool, *words in trained:
        done = run_program(ROOT / tool, *words, *few, cwd=blend)
        assert done.returncode == 0, done.stderr[-3000:]
    return blend


def test_the_training_commands_train_on_small_data(trained: Path) -> None:
    for name in ("speech", "stage1-tiny"):
        assert (trained / "runs" / name / "checkpoints" / "step-00000002").is_dir()


def test_an_export_answers_in_plain_transformers_as_the_readme_says(trained: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.splitlines()) <= 6 and "megatron" not in code
    files = ["--source", "runs/speech", "--tokenizer", "DATA/tokenizer", "--out", "runs/quickstart/export", "--no-gate"]
    done = run_program(ROOT / "tools" / "convert_ckpt.py", "export", *files, cwd=trained)
    assert done.returncode == 0, done.stderr[-3000:]
    code += "import sys\nassert not any(name.startswith('megatron') for name in sys.modules)\n"
    env = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HF_HOME": str(trained / "cache")}
    answered = subprocess.run(
        [sys.executable, "-c", code], cwd=trained, env=env, capture_output=True, text=True, timeout=280
    )
    assert answered.returncode == 0, answered.stderr[-3000:]
    assert "two red cats" in answered.stdout and len(answered.stdout) > len("two red cats sleep who") + 1


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\((\w+\.md)\)", index))
    assert named == {page.name for page in PAGES[1:]} - {"index.md"} and "docs/index.md" in README
    assert len(README.splitlines()) < 150


def test_the_commands_for_frames_are_read_by_their_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for step in data_commands._STEPS.values():
        monkeypatch.setattr(step, "run", lambda self: read.append(type(self).__name__))
    for tool, *words in expanded([line for line in taken(SMALL) if line.page == "most_c.md"]):
        if tool == "tools/train.py":
            read.append(from_command_line(words).name)
        else:
            data_commands.run_prepare_data(words)
    assert sorted(read) == ["Build", "Build", "KeepFrames", "stage1-most-c", "stage1-most-c"]


def test_a_llama_is_upcycled_as_written(tmp_path: Path) -> None:
    [(tool, *words)] = expanded([line for line in taken(SMALL) if line.page == "upcycling.md"])
    tokens = llama_token_map()
    ids = {"vocab_size": tokens.backbone_vocab_size, "bos_token_id": tokens.bos_id, "eos_token_id": tokens.eos_id}
    small = llama(**ids, num_hidden_layers=1, hidden_size=16, head_dim=4)
    small.save_pretrained(tmp_path / "Llama-3.2-3B")
    done = run_program(ROOT / tool, *words, cwd=tmp_path)
    assert done.returncode == 0 and "logits gate passed" in done.stderr, done.stderr[-3000:]
    assert (tmp_path / "llama-3b-upcycled" / "resolved.toml").exists()


def expanded(lines: Sequence[Line]) -> list[list[str]]:
    """The words behind .venv/bin/python, as bash hands them over."""
    assert lines
    record = "record() { printf '%s\\037' \"$@\"; printf '\\036'; }\nset -eu\n"
    script = record + "\n".join(line.words.replace(PYTHON, "record") for line in in_order(lines))
    bash = [shutil.which("bash") or "bash", "--noprofile", "--norc", "-c", script]
    done = subprocess.run(bash, capture_output=True, text=True, env={"PATH": ""}, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [words.split("\037")[:-1] for words in done.stdout.split("\036")[:-1]]


def in_order(lines: Sequence[Line]) -> list[Line]:
    """As the pages have them: variables come before those who use them."""
    return [line for line in LINES if line in lines]


def test_every_command_of_the_pages_has_who_runs_it() -> None:
    unclaimed = [f"{line.page}: {line.words}" for line in LINES if line.claim is None]
    assert not unclaimed, "run it by a test and say so in tests/doc_lines.py, or say there why none can"
    assert len(LINES) > 120


def test_every_claim_is_of_a_line_and_names_a_test_or_a_reason() -> None:
    used = [line.claim for line in LINES]
    for page, claims in CLAIMS.items():
        assert (ROOT / page).exists() or (ROOT / "docs" / page).exists(), page
        for claim in claims:
            assert claim in used, f"{page}: no line is left that begins with {claim.begins!r}"
            assert claim.by or claim.why, f"{page}: {claim.begins!r}: neither a test nor a reason"
            if claim.by in ("", HERE, SMALL):
                continue
            file, _, name = claim.by.partition("::")
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in text, f"{page}: {claim.by} is not there"


def test_a_command_that_nobody_has_is_found() -> None:
    page = "```bash\n.venv/bin/python tools/serve.py --help\nrm -rf build  # away\n```\n"
    known, new = lines_of("serving.md", page)
    assert known.claim is not None and new.words == "rm -rf build" and new.claim is None
    assert [line.words for line in lines_of("x.md", "```sh\na \\\n  b   # c\n```\n```toml\nx = 1\n```\n")] == ["a b"]
    here = "```bash\npython - <<'END'\nimport os\nEND\n```\n"
    assert [line.words for line in lines_of("x.md", here)] == ["python -"]


def test_the_benchmark_shows_both_gates() -> None:
    done = run_program(ROOT / "bench" / "gate_collapse.py", "--steps", "10", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row.split("|")[1].strip() for row in done.stdout.splitlines()[2:]]
    assert rows.count("reference") == rows.count("masked_softmax") > 0

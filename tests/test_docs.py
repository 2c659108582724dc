"""What the pages say is so: links lead somewhere, tables agree with the recipes, and every command has who runs it.

Who that is says doc_lines.py. What it leaves to this file is run as written, but for the sizes that it declares.
Python's programs are forked from this process, and so are torchrun's ranks. And every command, whoever runs it, is
given to its program's own command line: what has rotted is found in lines that want a cluster too.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_most.config import Facts, build, count_parameters, load_recipe, recipe_names
from megatron_most.vocab import llama_token_map
from tests.doc_lines import CLAIMS, HERE, LINES, PAGES, READ, ROOT, SHELLS, SMALL, Line, lines_of, taken
from tests.doc_words import PYTHON, TORCHRUN, Command, all_commands, commands_of, of_make, read_all, smaller
from tests.hf_models import llama
from tests.phases import make_blend
from tests.programs import run_program

README = PAGES[0].read_text(encoding="utf-8")


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
    assert line.claim is not None
    program, *words = smaller(shlex.split(line.words), line.claim.small)
    if program == TORCHRUN:
        words = ["tests/agent.py", *words]
    done = run_program(ROOT / words[0], *words[1:], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    if "examples/layouts/layout.py" in words:
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
    [small] = {line.claim.small for line in lines if line.claim is not None and line.claim.small}
    for tool, *words in trained:
        done = run_program(ROOT / tool, *smaller(words, small), cwd=blend)
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
    asked = "two red cats sleep how many"
    assert asked in answered.stdout and len(answered.stdout) > len(asked) + 1


def test_nothing_on_a_page_is_out_of_sight_of_these_tests() -> None:
    """Pages elsewhere, blocks of other languages and indented commands would be read by nobody."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {ROOT / name for name in listed} <= set(PAGES)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"^```(\w*)$", text, re.M)) <= {*SHELLS, "toml", "python", "json", "text"}, page.name
        prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        assert not re.findall(r"^(?:    |\t)(?:\$ )?(?:\.venv/bin|tools/|bash |sbatch |make |python)", prose, re.M)


def test_names_that_python_on_the_pages_takes_are_there() -> None:
    found = 0
    for page in PAGES:
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("megatron_most"):
                    module = importlib.import_module(str(node.module))
                    assert not [one.name for one in node.names if not hasattr(module, one.name)], (page.name, code)
                    found += 1
    assert found >= 3


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\((\w+\.md)\)", index))
    assert named == {page.name for page in PAGES[1:]} - {"index.md"} and "docs/index.md" in README
    assert len(README.splitlines()) < 150


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


def test_every_claim_is_of_a_line_and_names_a_test_that_reads_the_page_or_a_reason() -> None:
    used = [line.claim for line in LINES]
    for page, claims in CLAIMS.items():
        assert (ROOT / page).exists() or (ROOT / "docs" / page).exists(), page
        for claim in claims:
            assert claim in used, f"{page}: no line is left that begins with {claim.begins!r}"
            assert claim.why or claim.how in ("as written", "in small"), f"{page}: {claim.begins!r}: why not run?"
            if claim.by in ("", HERE, SMALL, READ):
                continue
            file, _, name = claim.by.partition("::")
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {name}(" in text, f"{page}: {claim.by} is not there"
            assert page in text or "commands_by(" in text, f"{page}: {file} has words of its own, not the page's"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[Command]:
    return all_commands(tmp_path_factory.mktemp("pages"))


def options(words: Sequence[str]) -> list[int]:
    """Where they are, from the first program of ours on."""
    first = next((n for n, word in enumerate(words) if word.endswith(".py")), len(words))
    return [n for n, word in enumerate(words) if n > first and word.startswith("--")]


def test_every_command_is_taken_by_the_program_it_is_for(commands: list[Command]) -> None:
    """Of the turns of a loop, which have the same options, the first."""
    turns = {
        (one.page, *one.words[:4], *(word for word in one.words if word.startswith("--"))): one
        for one in reversed(commands)
    }
    several = list(turns.values())
    wrong = {one.text: problem for one, problem in zip(several, read_all(several), strict=True) if problem}
    assert not wrong and len(several) > 100


def test_in_every_program_of_the_pages_an_unknown_option_is_found(commands: list[Command]) -> None:
    """Its last one, misspelt, in one command of each program and step."""
    spelt: dict[tuple[str, ...], tuple[str, ...]] = {}
    for command in commands:
        words, at = list(command.words), options(command.words)
        if at and "--help" not in words:
            program = tuple(word for word in words[: at[0]] if not word.startswith("-"))
            words[at[-1]] += "-of-old"
            spelt[program[:3]] = tuple(words)
    assert len(spelt) > 35
    missed = [
        words for words, problem in zip(spelt.values(), read_all(list(spelt.values())), strict=True) if not problem
    ]
    assert not missed


ROTTEN = {
    ".venv/bin/python tools/prepare_dataset.py units": "tools/prepare_dataset.py: is not in the clone",
    ".venv/bin/python tools/prepare_data.py unitz --manifest m --codec c --out u": "in prepare_data.py",
    ".venv/bin/python tools/prepare_data.py build --task asr2 --manifest m --tokenizer t --out d": "asr2",
    ".venv/bin/python tools/train.py --config stage1-tinny": "no such recipe",
    ".venv/bin/python tools/train.py --config most-tiny --layout.tensor 7": "layout.tensor",
    ".venv/bin/python tools/train.py --config stage1-tiny": "name its datasets",
    ".venv/bin/python tools/evaluate.py asr --model m --out o": "asr needs it",
    ".venv/bin/python tools/plan.py --machine b9000": "b9000",
    ".venv/bin/python tools/plan.py --train.stepz 7": "--train.stepz",
    ".venv/bin/python bench/ablation.py --only vanilla": "vanilla",
    ".venv/bin/torchrun --nproc-per-node 2 examples/layouts/layout.py --layout.expert 3": "layout.expert",
    "make demoo": "demoo",
    'make prebuild ARGS="--config x"': "",
    "bash launch/stage3.sh --dry-run": "launch/stage3.sh: is not in the clone",
    "docker build -f container/Dockerfiles -t most .": "container/Dockerfiles: is not in the clone",
    "rm -rf build": "rm: a program that no page has called so far",
}


def test_a_page_that_has_rotted_is_found(tmp_path: Path) -> None:
    page = "# x\n\n```bash\n" + "\n".join(ROTTEN) + "\n```\n"
    told = read_all(commands_of("hpc.md", page, tmp_path))
    for (line, wanted), problem in zip(ROTTEN.items(), told, strict=True):
        assert wanted in problem and bool(wanted) == bool(problem), (line, problem)


def commands_in_prose() -> list[tuple[str, list[str]]]:
    """What stands between backticks and begins with a program of ours: (page, words). It is often no whole command."""
    folders = [ROOT / "tools", ROOT / "bench"]
    programs = {path.name: path.relative_to(ROOT).as_posix() for folder in folders for path in folder.glob("*.py")}
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for span in re.findall(r"`((?:(?:[\w/]+/)?\w+\.py|make|torchrun|launch/\w+\.sh) [^`]+)`", text):
            program, *words = shlex.split(span)
            program = programs.get(program, program)
            before = [TORCHRUN] if program == "torchrun" else [PYTHON, program] if ".py" in program else [program]
            found.append((page.name, [*(["bash"] if ".sh" in program else []), *before, *words]))
    return [(name, words) for name, words in found if name != "log.md"]  # which tells of what was


def is_rotten(words: Sequence[str], problem: str) -> bool:
    """Something is unknown; that something is missing is no matter."""
    if not re.search(r"required|Missing|expected one argument", problem) or "nrecognized" in problem:
        return bool(problem)
    shows_all = "usage:" in problem  # as argparse does, which tells of one thing alone
    return shows_all and any(word.startswith("--") and word not in problem for word in words)


def test_commands_in_prose_name_nothing_that_is_no_more() -> None:
    prose = [words for _, words in commands_in_prose() if not {"TASK...", "train.py"} & set(words)]
    prose_told = list(zip(prose, read_all(prose), strict=True))
    assert not [(words, problem) for words, problem in prose_told if is_rotten(words, problem)] and len(prose) > 40
    old = [
        "report.py RUN --outs f",
        "convert_ckpt.py exports",
        "generate.py --routings F",
        "synthesize.py speak --voicez",
    ]
    rotten = [[PYTHON, *f"tools/{words}".split()] for words in old]
    assert all(is_rotten(words, problem) for words, problem in zip(rotten, read_all(rotten), strict=True))


def test_make_does_what_its_claims_say() -> None:
    [demo], [ablation] = of_make("demo", "ARGS=--scale ci"), of_make("ablation")
    assert demo == [".venv/bin/python", "examples/quickstart/demo.py", "--scale", "ci"]
    assert ablation == [".venv/bin/python", "bench/ablation.py"]


def test_sizes_take_the_place_of_their_like_or_come_behind() -> None:
    words = "t.py asr --only a b --steps 9 --out x".split()
    assert (
        smaller(words, "--only c --device cpu --steps 1") == "t.py asr --only c --steps 1 --out x --device cpu".split()
    )
    assert smaller(words, "") == words


def test_files_of_the_clone_that_pages_name_are_there() -> None:
    """In prose too: `tools/train.py`, `bench/data.py --x`."""
    named = {
        name
        for page in PAGES
        for name in re.findall(
            r"`(?:[^`\n]* )?((?:tools|bench|launch|examples|container|requirements)/[\w./-]+\.\w+)[^`\n]*`",
            page.read_text(encoding="utf-8"),
        )
        if page.name != "log.md"  # which tells of files that were
    }
    assert {name for name in named if not (ROOT / name).exists()} <= {"launch/cluster.env"} and len(named) > 30


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

"""docs/data.md is so: its commands parse and fit together, its options exist, its tables are those of the code.

Bash itself expands the guide's loops and variables, with a function in place of the tool and no other program at hand;
what it would have run is then parsed by the real command line. No step runs and no corpus is touched.
"""

from __future__ import annotations

import ast
import functools
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from megatron_most.data import commands, rejects
from megatron_most.data.corpora import CORPORA
from megatron_most.data.tokenizer import fit_tokenizer
from megatron_most.speech import PRESETS
from megatron_most.vocab import TokenMap, deepseek_token_map, llama_token_map
from tests.datasets import random_documents, write_dataset

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
TOOL = ".venv/bin/python tools/prepare_data.py"
OF_OTHERS = {"help", "array", "ntasks", "gpus-per-task", "cpus-per-task", "time", "requeue", "config"}


def blocks(language: str, holding: str = "") -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.S | re.M)
    return [block for block in found if holding in block]


@functools.cache
def guide_commands() -> tuple[tuple[str, ...], ...]:
    """Words after the tool's name, of each command that bash would run, loops unrolled."""
    record = "record() { printf '%s\\037' \"$@\"; printf '\\036'; }\nsrun() { \"$@\"; }\nset -eu\n"
    script = record + "\n".join(blocks("bash", "tools/prepare_data.py")).replace(TOOL, "record")
    assert "prepare_data" not in script, f"a command that does not begin with {TOOL}"
    bash = [shutil.which("bash") or "bash", "--noprofile", "--norc", "-c", script]
    done = subprocess.run(bash, capture_output=True, text=True, env={"PATH": ""}, cwd=ROOT / "docs", timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return tuple(tuple(line.split("\037")[:-1]) for line in done.stdout.split("\036")[:-1])


@functools.cache
def parsed_commands() -> tuple[Any, ...]:
    """The guide's commands as the command line understands them."""
    parsed: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for step in commands._STEPS.values():
            patch.setattr(step, "run", lambda self: parsed.append(self))
        for words in guide_commands():
            try:
                commands.run_prepare_data(words)
            except SystemExit:  # what is wrong has been printed
                pytest.fail(f"the guide's command does not parse: {' '.join(words)}")
    return tuple(parsed)


@pytest.fixture
def steps() -> tuple[Any, ...]:
    return parsed_commands()


def outputs(steps: Sequence[Any]) -> set[str]:
    """What the commands write; each a folder, or a page, of its own."""
    writers = [getattr(step, "corpus", step) for step in steps]
    made = [str(writer.out) for writer in writers if getattr(writer, "out", None) is not None]
    assert len(made) == len(set(made)) > 50, "two commands write one folder"
    return set(made)


def test_every_command_of_the_guide_parses(steps: Sequence[Any]) -> None:
    assert len(steps) == len(guide_commands()) > 50
    kinds = {type(step) for step in steps}
    assert kinds >= {
        commands.MakeManifest,
        commands.MakeTokenMap,
        commands.FitCodec,
        commands.Units,
        commands.Build,
        commands.Verify,
    }
    corpora = {type(step.corpus) for step in steps if isinstance(step, commands.MakeManifest)}
    four = {CORPORA[name] for name in ("libriheavy", "librispeech", "commonvoice", "voxpopuli")}
    assert corpora == four | {CORPORA[name] for name in ("text", "chat", "release")}


def test_what_a_command_reads_below_data_is_made_by_another(steps: Sequence[Any]) -> None:
    made, read = outputs(steps), set()
    for step in steps:
        for name in ("manifest", "units", "dataset", "paths"):
            value = getattr(step, name, None) or ()
            read |= {str(path) for path in (value if isinstance(value, tuple) else (value,))}
        read |= {str(path) for path in getattr(step, "evaluation", {}).values()}
    assert {path for path in read if path.startswith("data/")} <= made and len(read) > 20


def test_every_task_and_both_kinds_of_codec_have_a_command(steps: Sequence[Any]) -> None:
    tasks = {step.task for step in steps if isinstance(step, commands.Build)}
    assert tasks == set(get_args(get_type_hints(commands.Build)["task"]))
    assert {step.model is None for step in steps if isinstance(step, commands.FitCodec)} == {True, False}
    assert {name for name in PRESETS if f"| `{name}` |" in GUIDE} == set(PRESETS)


def option_names(kind: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        name = prefix + field.name.replace("_", "-")
        yield name
        yield f"{prefix}no-{field.name.replace('_', '-')}"
        if is_dataclass(hints[field.name]):
            yield from option_names(hints[field.name], "" if field.name == "options" else f"{name}.")


def test_every_option_that_the_guide_names_exists() -> None:
    known = set(OF_OTHERS)
    for kind in [*commands._STEPS.values(), *CORPORA.values()]:
        if kind is not commands.MakeManifest:
            known |= set(option_names(kind))
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", GUIDE))
    assert named <= known | {"interleave"} and len(named) > 40


def reasons_in_code() -> set[str]:
    """First words of each rejection, wherever one is made: in an error, a reject, or a pair that extract.py returns."""
    at = {"RowError": 0, "AudioError": 0, "Reject": 1, "Rejection": 1, "reject": 1}
    found: set[str] = set()

    def take(node: ast.expr) -> None:
        if isinstance(node, ast.IfExp):
            take(node.body), take(node.orelse)
        elif isinstance(node, ast.JoinedStr) and isinstance(start := node.values[0], ast.Constant):
            found.add(f"{start.value}NAME")
        elif isinstance(node, ast.Constant):
            found.add(node.value)

    for path in [path for room in ("data", "speech") for path in (ROOT / "megatron_most" / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in at and len(node.args) > at[name]:
                    take(node.args[at[name]])
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                take(node.value)
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and path.name == "extract.py":
                take(node.value.elts[0])
    return found


def test_the_table_of_reasons_holds_those_of_the_code() -> None:
    table = GUIDE.split("| reason | step | what it means |\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == sorted(reasons_in_code(), key=str.casefold)
    assert all(set(row[1].split(", ")) <= {"manifest", "units", "build"} and row[2] for row in rows)
    by_choice = {row[0].removesuffix("NAME") for row in rows if row[2].endswith("by choice")}
    assert by_choice == set(rejects._BY_CHOICE)


def test_the_table_of_token_maps_has_the_maps_own_numbers() -> None:
    for name, tokens in (("deepseek", deepseek_token_map()), ("llama", llama_token_map())):
        row = next(line for line in GUIDE.splitlines() if line.startswith(f"| `{name}` ("))
        assert f"| {tokens.first_unit_id}, " in row and f"| {tokens.vocab_size:,} | 4 |" in row


def test_the_map_of_an_own_tokenizer_is_made_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [own, llama] = [words for words in guide_commands() if words[0] == "token-map"]
    fit_tokenizer(["some words"], 300, tmp_path / "tokenizers" / "mine")
    monkeypatch.chdir(tmp_path)
    commands.run_prepare_data(own)
    tokens = TokenMap.load(tmp_path / "tokenizers" / "mine" / "token_map.json")
    assert (tokens.backbone, tokens.num_units) == ("own", 500)
    assert llama[llama.index("--eos") + 1] == "<|eot_id|>"  # made in test_fit.py, of a vocabulary of that size


def test_the_recipe_reads_what_the_commands_make(
    steps: Sequence[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [recipe] = blocks("toml")
    named = re.findall(r'"(data/sets/(.*?)/.*?)"', recipe)
    assert {folder for folder, _ in named} <= outputs(steps)
    tokens = deepseek_token_map()
    for number, (folder, task) in enumerate(named):
        documents = [document for document in random_documents(30, number, tokens) if document.length > 1][:20]
        write_dataset(tmp_path / folder, documents, tokens=tokens, task=task)
    (tmp_path / "phase1.toml").write_text(recipe, encoding="utf-8")
    run_snippet("open_reader", tmp_path, monkeypatch)
    found = re.findall(r"name='(.*?)', share=([\d.]+), documents=(\d+)", capsys.readouterr().out)
    train, valid = found[:3], found[3:]
    assert [(task, share) for task, share, _ in train] == [("asr", "0.4"), ("tts", "0.4"), ("text-lm", "0.2")]
    assert valid == [("asr", "0.0", "20"), ("tts", "0.0", "20"), ("text-lm", "0.0", "20")]
    assert [documents for *_, documents in train] == ["60", "60", "20"]


def test_stock_core_opens_a_dataset_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(3)
    write_dataset(tmp_path / "data" / "sets" / "asr" / "libriheavy", documents)
    seen = run_snippet("IndexedDataset", tmp_path, monkeypatch)
    first, mode = documents[0].runs[0], int(seen["mode"])
    assert seen["ids"].tolist() == first.ids.tolist()
    assert (mode & 0x7F, mode < 0) == (first.tag, first.is_trained)


def run_snippet(holding: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the guide's snippet of python in a folder; its variables."""
    [snippet] = blocks("python", holding)
    (folder / "snippet.py").write_text(snippet, encoding="utf-8")
    monkeypatch.chdir(folder)
    return runpy.run_path("snippet.py")

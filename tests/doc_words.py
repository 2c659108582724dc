"""The words of a page's commands: as bash hands them over, made small, gone through, or read.

`read_all` gives every command to its program's own command line and stops there: recipes are loaded and built into
plans, but nothing trains and no folder of the clone is touched. So an option, a value, a recipe, a file or a make
target that is no more is found in every line, also in those that no machine of ours could go through with.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import tyro

from megatron_most import config as config_room
from megatron_most.config import Facts, RunConfig, build
from megatron_most.errors import MostError
from megatron_most.runtime import Launch
from megatron_most.vocab import tiny_token_map
from tests.doc_lines import CLAIMS, PAGES, ROOT, Claim, page_text, shell_of
from tests.harness import launch_ranks

PYTHON, TORCHRUN = ".venv/bin/python", ".venv/bin/torchrun"
OURS = ("tools/", "launch/", "bench/", "examples/", "container/", "requirements/")
"""Folders of the clone: what a command names in them is there."""
MADE = {"launch/cluster.env"}  # by a line before
OTHERS = {"apptainer", "cd", "cp", "docker", "git", "hf", "pip", "python", "python3.12", "vllm"}
"""Programs of others that pages call, and commands of bash."""
CHECKED = {f"tools/{name}.py": name for name in ("evaluate", "prepare_data", "convert_ckpt")}  # by check_words.py
RECIPES = {
    "my_phase.toml": re.findall(r"```toml\n(.*?)```", page_text("training.md"), re.S)[0],
    "phase1.toml": re.findall(r"```toml\n(.*?)```", page_text("data.md"), re.S)[0],
    "runs/two_phases/stage1.toml": 'extends = "most-tiny"\n',
    "runs/two_phases/stage2.toml": 'extends = "most-tiny"\n',
}
"""Of the pages' commands, where none is shipped: two pages show one, a command of README makes the others."""
_TRIES = "examples/add_a_backbone/qwen3.py", "--try"  # which is read by nobody: it is run at once
_RECORD = """
record() { printf '%s\\037' "$@"; printf '\\036'; }
command_not_found_handle() { record "$@"; }
cd() { record cd "$@"; }
.() { record . "$@"; }
set -eu
"""


@dataclass(frozen=True)
class Command:
    """What bash would run: the words of one line of a page, or of one turn of its loop."""

    page: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def claim(self) -> Claim | None:
        return next((one for one in CLAIMS.get(self.page, ()) if self.text.startswith(one.begins)), None)

    @property
    def smaller(self) -> list[str]:
        """With what its claim declares in place of sizes, paths and devices."""
        return smaller(self.words, self.claim.small if self.claim else "")


def smaller(words: Sequence[str], small: str) -> list[str]:
    """The options in `small` take the place of their like in `words`, values and all, or come behind."""
    made, given = list(words), shlex.split(small)
    starts = [at for at, word in enumerate(given) if word.startswith("--")]
    assert not given or starts[:1] == [0], f"{small}: not options"
    for start, end in itertools.pairwise([*starts, len(given)]):
        at = made.index(given[start]) if given[start] in made else len(made)
        after = next((n for n in range(at + 1, len(made)) if made[n].startswith("--")), len(made))
        made[at:after] = given[start:end]
    return made


def commands_of(page: str, text: str, folder: Path) -> list[Command]:
    """Those of a page, in order, as bash itself expands them in a folder: variables, loops and names of files.

    No program is at hand there, so nothing is run. Variables of docs/data.md are set, as that page says of them.
    """
    exports = "\n".join(re.findall(r"(?m)^export .*$", shell_of(page_text("data.md"))))
    script = re.sub(r"(?m)(^\s*|&& |; )((?:\.venv|env)/bin/\w+)", r"\1record \2", shell_of(text))
    bash = [shutil.which("bash") or "bash", "--noprofile", "--norc", "-c", f"{_RECORD}{exports}\n{script}"]
    done = subprocess.run(bash, capture_output=True, text=True, env={"PATH": "/nowhere"}, cwd=folder, timeout=60)
    assert done.returncode == 0 and not done.stderr, f"{page}: {done.stderr}"
    return [Command(page, tuple(line.split("\037")[:-1])) for line in done.stdout.split("\036")[:-1]]


def all_commands(folder: Path) -> list[Command]:
    return [found for page in PAGES for found in commands_of(page.name, page.read_text(encoding="utf-8"), folder)]


def commands_by(by: str, folder: Path) -> list[Command]:
    """Those that a test has, each once."""
    pages = [page for page, claims in CLAIMS.items() if any(claim.by == by for claim in claims)]
    found = [command for page in pages for command in commands_of(page, page_text(page), folder)]
    mine = [command for command in found if command.claim is not None and command.claim.by == by]
    assert mine, f"{by}: no line of the pages is left for it"
    return list({command.words: command for command in mine}.values())


def go_through(commands: Sequence[Command], folder: Path, stand_ins: Mapping[str, str] | None = None) -> None:
    """Run each in `folder`, made small, one after another, in one forked process, which imports everything once.

    `stand_ins`, word for word, are what only a run can know: the address of a server.
    """

    def body(_launch: Launch) -> int:
        os.chdir(folder)
        for command in commands:
            words = [(stand_ins or {}).get(word, word) for word in command.smaller]
            program, file, *rest = words[1:] if words[0] == "srun" else words
            assert program == PYTHON, command.text
            sys.argv = [str(ROOT / file), *rest]
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as end:
                if end.code:
                    sys.stderr.write(f"{command.page}: {shlex.join(words)}: ended with {end.code}\n")
                    return 1
        return 0

    assert launch_ranks(body, 1, timeout=280.0) == [0], "a command of the page failed; stderr names it"


def of_make(target: str, *variables: str) -> list[list[str]]:
    """The commands of a target of the Makefile, without the environment that it makes before."""
    done = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    commands = re.findall(r'(?m)^(?:PATH="[^"]*" )?((?:\.venv/bin/python|bash) .*)$', done.stdout)
    return [shlex.split(command.partition(" > ")[0]) for command in commands]


def read_all(commands: Sequence[Command | Sequence[str]]) -> list[str]:
    """What is wrong with each command, "" where nothing is."""
    with tempfile.TemporaryDirectory(prefix="read-") as folder:

        def body(_launch: Launch) -> int:
            os.chdir(folder)
            _stop_after_reading()
            told = []
            for command in commands:
                words = list(command.words if isinstance(command, Command) else command)
                _make_files(words)
                told.append(_problem(words))
            Path("told").write_text("\036".join(told))
            return 0

        assert launch_ranks(body, 1, timeout=280.0) == [0]
        told = (Path(folder) / "told").read_text().split("\036")
    assert len(told) == len(commands)
    return told


def _problem(words: Sequence[str]) -> str:
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            _read(words, 1)
    except SystemExit as end:
        return f"{end.code}: {said.getvalue()[-6000:]}"
    except (MostError, ValueError) as error:
        return str(error)
    return ""


def _read(words: Sequence[str], ranks: int) -> None:
    """Return where the program takes the words; else SystemExit, or an error that says why."""
    for word in words:
        if word.startswith(OURS) and word not in MADE and not (ROOT / word).exists():
            raise ValueError(f"{word}: is not in the clone")
    program, *rest = words
    if program == TORCHRUN:
        from torch.distributed.run import get_args_parser

        with _reading.inside():
            given = get_args_parser().parse_args(rest)
        _read([PYTHON, given.training_script, *given.training_script_args], int(given.nproc_per_node))
    elif program in ("sudo", "srun"):
        if rest[0] != "apt":
            _read(rest, ranks)
    elif program == "make":
        for command in of_make(*rest):
            _read(command, ranks)
    elif program in ("bash", "sbatch"):
        script = next((word for word in rest if word.startswith("launch/") and word.endswith(".sh")), "")
        if not script:
            raise ValueError(f"{' '.join(words)}: no script of launch/")
    elif Path(program).name == "python" and rest[:1] not in ([], ["-"], ["-m"]):
        if not (ROOT / rest[0]).is_file():
            raise ValueError(f"{rest[0]}: is not in the clone")
        if tuple(rest[:2]) != _TRIES:
            _read_script(rest[0], rest[1:], ranks)
    elif program != "." and Path(program).name not in OTHERS:
        raise ValueError(f"{program}: a program that no page has called so far; tests/doc_words.py lists them")


def _read_script(file: str, words: Sequence[str], ranks: int) -> None:
    """Run it as __main__ up to where it has read its words. check_words.py goes on to its end, where it has looked
    at them too.
    """
    before, is_checked = list(sys.path), file in CHECKED
    if is_checked:
        file, words = "tools/check_words.py", [CHECKED[file], *words]
    sys.argv = [str(ROOT / file), *words]
    sys.path[:0] = [str((ROOT / file).parent)]
    _reading.ranks = ranks
    try:
        with _reading.inside() if is_checked else nullcontext():
            runpy.run_path(sys.argv[0], run_name="__main__")
    except _Read:
        return
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    finally:
        sys.path[:] = before
    if not is_checked and not {"--help", "--reference"} & set(words):
        raise ValueError(f"{file}: ended before it had read its words")


class _Read(BaseException):
    """A program has read its words, and is to do nothing with them."""


class _Reading:
    """What reads words within what reads words goes on; the outermost ends by _Read."""

    def __init__(self) -> None:
        self.depth, self.ranks = 0, 1

    @contextmanager
    def inside(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def stopping(self, read: Callable[..., Any], look: Callable[[Any], object]) -> Callable[..., Any]:
        """`read`, which does not return: what it has read is looked at, and that is all."""

        @functools.wraps(read)
        def read_and_stop(*given: Any, **named: Any) -> Any:
            if self.depth:
                return read(*given, **named)
            with self.inside():
                look(read(*given, **named))
            raise _Read

        return read_and_stop

    def plan(self, config: RunConfig) -> None:
        """On as many ranks as the command has; alone, on as many as its layout wants at least."""
        layout = config.layout
        least = layout.tensor * layout.pipeline * layout.context
        ranks = self.ranks if self.ranks > 1 else max(least, layout.expert)
        build(config, Facts(world_size=ranks, device="gpu", core_version=(0, 16)))


_reading = _Reading()


def _stop_after_reading() -> None:
    """In a process of its own: of the functions that programs read their words by, none returns."""
    parser = argparse.ArgumentParser
    whole = config_room.from_command_line

    def fields(known: tuple[argparse.Namespace, list[str]]) -> None:
        """What a parser leaves are fields of a recipe: tools/plan.py."""
        whole(["--config", known[0].config, *known[1]])

    parser.parse_known_args = _reading.stopping(parser.parse_known_args, fields)  # type: ignore[method-assign]
    parser.parse_args = _reading.stopping(parser.parse_args, str)  # type: ignore[method-assign]
    tyro.cli = _reading.stopping(tyro.cli, str)
    config_room.from_command_line = _reading.stopping(whole, _reading.plan)


def _make_files(words: Sequence[str]) -> None:
    """What commands read as they read their words: recipes that are made before, and token maps."""
    for word in words:
        path = Path(word)
        if path.is_absolute() or path.exists():
            continue
        if path.name == "token_map.json":
            path.parent.mkdir(parents=True, exist_ok=True)
            tiny_token_map().save(path)
        elif path.suffix == ".toml" and word in RECIPES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(RECIPES[word], encoding="utf-8")

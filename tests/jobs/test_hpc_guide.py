"""docs/hpc.md is gone through from its first line to its last, by bash, on a login node that is made up.

The launchers are the clone's own and check what they are given. What this machine has not is a small program here: git
gives a clone of links, python3.12 an environment whose python is this one, sbatch asks a script for a dry run of what
it would start; the others note their words. Nothing is downloaded, built or installed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doc_lines import ROOT, page_text, shell_of
from tests.doc_words import commands_by

BY = "jobs/test_hpc_guide.py::test_the_page_is_gone_through_on_a_login_node_without_a_cluster"
NOTE = 'printf "%q " "${0##*/}" "$@" >> "$NOTES"; echo >> "$NOTES"\n'
PROGRAMS = {
    "git": NOTE + '[ "$1" = clone ] && cp -a "$CLONE" "$3"\n',
    "python3.12": NOTE + '[ "$1 $2" = "-m venv" ] && cp -a "$ENVIRONMENT" "$3"\n',
    "sbatch": NOTE + "case $* in\n    --parsable*) wc -l < \"$NOTES\"; exit ;;\nesac\n"
    "options=()\n"
    'while [[ $1 = -* ]]; do options+=("$1"); shift; done\n'
    'script=$1\nshift\nexec bash "$script" --dry-run "${options[@]}" "$@"\n',
    **dict.fromkeys(("docker", "apptainer", "sudo"), NOTE),
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs, what they give, and the data that the page has made before phase 1: all in one folder."""
    place = tmp_path_factory.mktemp("login node")
    (place / "clone").mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("launch", "runs", ".git"):
            (place / "clone" / path.name).symlink_to(path)
    shutil.copytree(ROOT / "launch", place / "clone" / "launch", ignore=shutil.ignore_patterns("cluster.env"))
    attempt = place / "clone" / "runs" / "stage1-asr-tts" / "slurm" / "attempt-0001"
    attempt.mkdir(parents=True)
    (attempt / "begin.json").write_text(json.dumps({"job": "7", "nodes": "n1", "step": 0}))
    for name, body in PROGRAMS.items():
        write_program(place / "bin" / name, body)
    write_program(place / "environment" / "bin" / "python", f'exec {shlex.quote(sys.executable)} "$@"\n')
    for name in ("pip", "hf"):
        write_program(place / "environment" / "bin" / name, NOTE)
    for task in ("asr", "tts", "text-lm", "speech-instruct", "text-instruct"):
        for name in ("libriheavy-whole", "libriheavy-dev-whole"):
            (place / "sets" / task / name).mkdir(parents=True)
            (place / "sets" / task / name / "dataset.json").write_text("{}")
    return place


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}")
    path.chmod(0o755)


def settings(node: Path) -> str:
    """What a user writes into the file that the page has copied: "and edit it"."""
    given = {"PYTHON": node / "work/megatron-most/env/bin/python", "DATA": node / "sets", "BACKBONE": node / "v2",
             "HF_MODEL": node / "models/DeepSeek-V2-Lite", "MODEL": node / "runs/stage2"}  # fmt: skip
    lines = "".join(f"export MOST_{name}={shlex.quote(str(value))}\n" for name, value in given.items())
    return f"cat >> launch/cluster.env <<'SETTINGS'\n{lines}SETTINGS\n"


def go(node: Path, script: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Bash with what the page of the data exports; what the programs have noted."""
    (node / "work").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MOST_"))}
    own = {"NOTES": str(node / "notes"), "CLONE": str(node / "clone"), "ENVIRONMENT": str(node / "environment")}
    own |= {"PATH": f"{node / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    exports = "\n".join(re.findall(r"(?m)^export .*$", shell_of(page_text("data.md"))))
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-euc", f"{exports}\n{script}"], env={**kept, **own}, cwd=node / "work",
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    notes = (node / "notes").read_text().splitlines() if (node / "notes").exists() else []
    return done, [shlex.split(line) for line in notes]


@pytest.fixture(autouse=True)
def _from_the_start(node: Path) -> Iterator[None]:
    yield
    shutil.rmtree(node / "work")
    (node / "notes").unlink(missing_ok=True)


def test_the_page_is_gone_through_on_a_login_node_without_a_cluster(node: Path) -> None:
    page = shell_of(page_text("hpc.md"))
    copied = re.findall(r"(?m)^cp launch/cluster.env.example .*\n", page)
    assert len(copied) == 1
    script = page.replace(copied[0], copied[0] + settings(node))
    script += "".join(f"{shlex.join(one.words)}\n" for one in commands_by(BY, node) if one.page != "hpc.md")
    done, notes = go(node, script)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert {words[0] for words in notes} == {*PROGRAMS, "pip", "hf"}
    sent = [[word for word in words[1:] if ".sh" in word][0].rpartition("/")[2] for words in notes
            if words[0] == "sbatch" and "--parsable" in words]  # fmt: skip
    data = ["prepare_data.sh"] * (1 + 2 + 2 + 2)
    scaling = ["stage1_asr_tts.sh"] * 4 + ["scaling.sh"]
    chains = ["stage1_asr_tts.sh", "stage2_instruct.sh"] * 2
    assert sent == [*data, *chains, "evaluate.sh", *scaling, *scaling]
    asked = [words[1:] for words in notes if words[0] == "sbatch" and "--parsable" not in words]
    assert [next(word for word in words if ".sh" in word) for words in asked] == [
        "launch/prebuild.sh", "launch/convert.sh", "launch/stage1_asr_tts.sh", "launch/stage1_asr_tts.sh",
        "launch/evaluate.sh",
    ]  # fmt: skip
    hf_model = str(node / "models/DeepSeek-V2-Lite").replace(" ", "\\ ")
    swuggy = "swuggy sblimp --zerospeech data/sLM21-dataset --codec models/codec"
    for said in ("tools/job.py prebuild", f"import --source {hf_model}", "--nodes=16 --ntasks=128", swuggy):
        assert said in done.stdout
    assert "the recipe's layout: 500,000 steps" in done.stdout and "attempt  1" in done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bash launch/stage1_asr_tts.sh --dry-run --layout.experts 8", "--layout.experts"),
        ("bash launch/prepare_data.sh submit 16 -- build --task asr --manifests m --out o", "--manifests"),
        ("sbatch launch/evaluate.sh swuggy sblimp --zerospeeches data/sLM21-dataset", "--zerospeeches"),
        ("bash launch/pipelines.sh --nodes=6", "launch/pipelines.sh"),
    ],
)
def test_a_line_of_the_page_that_has_rotted_ends_the_walk(node: Path, line: str, said: str) -> None:
    """Or the walk above would prove nothing."""
    begin = "git clone URL m\ncd m\npython3.12 -m venv env\ncp launch/cluster.env.example launch/cluster.env\n"
    own = settings(node).replace("megatron-most", "m")
    done, notes = go(node, f"{begin}{own}. launch/cluster.env\n{line}\ndocker build .\n")
    assert done.returncode and said in done.stderr, done.stderr
    assert "docker" not in [words[0] for words in notes]

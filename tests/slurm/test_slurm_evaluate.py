"""The life of an evaluation under Slurm. A program stands for tools/evaluate.py: ranks keep their items as they go."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.slurm import harm
from tests.slurm.jobs import Bench, python_that

ITEMS = 8
PROGRAM = """
import os, sys, time
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1]) / "nll.part"
out.mkdir(parents=True, exist_ok=True)
path = out / f"records-{int(os.environ['SLURM_PROCID']):05d}.jsonl"
fails = [int(word.partition("=")[2]) for word in sys.argv if word.startswith("--fail=")]
while not fails and len(path.read_text().splitlines() if path.exists() else []) < ITEMS:
    time.sleep(1)
    with path.open("a") as file:
        file.write("{}\\n")
print("words of a rank", file=sys.stderr)
sys.exit(*fails)
""".replace("ITEMS", str(ITEMS))


@pytest.fixture
def stand_in(bench: Bench) -> Path:
    """Where results go, by a launcher that finds the program above for tools/evaluate.py."""
    program = bench.folder / "stand_in.py"
    program.write_text(PROGRAM)
    case = (
        f'case $1 in */evaluate.py) shift; exec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@" ;; esac'
    )
    bench.write_env(MOST_PYTHON=python_that(bench.folder, case), MOST_GRACE_S="2")
    return bench.folder / "the model's results"


def submit(bench: Bench, out: Path, *words: str) -> str:
    options = ["--nodes=2", "--ntasks-per-node=1", bench.script("evaluate"), "nll", "--model", "none"]
    env = {"MOST_CLUSTER_ENV": str(bench.folder / "cluster.env")}
    job = bench.box.sbatch(*options, "--out", str(out), "--device", "cpu", *words, cwd=bench.folder, **env)
    bench.note(job)
    return job


def items(out: Path, rank: int) -> int:
    path = out / "nll.part" / f"records-{rank:05d}.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_an_evaluation_goes_on_after_a_killed_rank_and_after_its_time_is_over(bench: Bench, stand_in: Path) -> None:
    job = submit(bench, stand_in)
    bench.box.wait(lambda: items(stand_in, 1) >= 2, 60, "two items of rank 1")
    process, _ = harm.processes_of(job, "stand_in.py")[1]
    harm.kill(process)
    bench.box.wait((stand_in / "slurm" / f"{job}.1" / "codes").exists, 90, "the second turn")
    before = items(stand_in, 1)
    assert 2 <= before < ITEMS and (stand_in / "slurm" / f"{job}.0" / "codes" / "1.137").exists()
    bench.box.wait(lambda: items(stand_in, 1) > before, 60, "another item")
    harm.signal_before_time_limit(bench.box, job)
    bench.box.await_state(job, "COMPLETED", seconds=120)
    assert (stand_in / "slurm" / f"{job}.2" / "codes" / "0.0").exists() and "the time limit is near" in bench.said(job)
    assert [items(stand_in, rank) for rank in (0, 1)] == [ITEMS, ITEMS], "each item once"
    assert "all tasks are done; results are in " in bench.said(job)


@pytest.mark.parametrize(("code", "words"), [(1, "no item was finished in this turn"), (2, "words of a rank")])
def test_an_evaluation_that_gets_nowhere_ends(bench: Bench, stand_in: Path, code: int, words: str) -> None:
    job = submit(bench, stand_in, f"--fail={code}")
    bench.box.await_state(job, "FAILED", seconds=60)
    assert words in bench.said(job) and not (stand_in / "slurm" / f"{job}.1").exists()

"""The life of a phase under Slurm: a chain to its end, and on through kills, lost nodes, signals and cut cables."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from megatron_most.checkpoint import read_record, verify_files
from tests.slurm import harm
from tests.slurm.jobs import EVERY, SMALL, Bench, python_that

TWO = ("--nodes=2", "--ntasks-per-node=1")
FOUR = ("--nodes=2", "--ntasks-per-node=2")
CLOSE = {"rel": 1e-4}  # fp32, sums in another order
pytestmark = pytest.mark.timeout(900)  # each wait has its own limit, and says what it was for


@pytest.mark.ci
def test_a_chain_of_two_phases_and_an_evaluation_is_done_with_the_losses_of_one_process(bench: Bench) -> None:
    bench.write_env(MOST_STAGES="stage1 stage2 evaluate")
    tasks = ["nll", "--dataset", str(bench.data / "asr" / "valid"), "--limit", "3", "--device", "cpu"]
    words = [*TWO, "--", *SMALL, "--train.steps", "6", "--", *tasks]
    said = bench.on_head("bash", bench.script("pipeline"), *words)
    jobs = {stage: job for job, stage in (line.split() for line in said.splitlines())}
    bench.note(*jobs.values())
    bench.box.await_state(jobs["evaluate"], "COMPLETED", seconds=290)
    [result] = (bench.runs / "evaluate").rglob("result.json")
    assert json.loads(result.read_text())["items"] == 3
    for name in ("stage1-tiny", "stage2-tiny"):
        bench.run = bench.runs / name
        assert (bench.done()["attempt"], bench.done()["step"]) == (1, 6)
        found = bench.losses()
        assert found[5] < found[0]
        assert found == pytest.approx(bench.losses_of_one_process(), **CLOSE)
    assert bench.done()["job"] == jobs["stage2"]
    status = bench.on_head("bash", bench.script("status"), str(bench.run))
    assert "DONE" in status and "6 of 6, 6 saved" in status


@pytest.mark.ci
def test_a_killed_rank_costs_at_most_the_steps_since_the_last_save(bench: Bench) -> None:
    job = bench.submit(*FOUR, steps=30)
    bench.await_saved(EVERY)
    node = harm.kill_rank(job, 1)
    since = time.monotonic()
    bench.box.wait((bench.attempt(1) / "end.json").exists, 90, "the attempt's end")
    assert time.monotonic() - since < 60, f"the ranks end in seconds, after one on {node} was killed"
    assert bench.end(1)["action"] == "requeue" and "rank 1 was killed by signal 9" in bench.end(1)["reason"]
    last = bench.step()
    bench.box.await_state(job, "COMPLETED", seconds=280)
    assert bench.done()["attempt"] >= 2
    assert last - EVERY <= bench.begin(2)["step"] <= last
    assert bench.losses() == pytest.approx(bench.losses_of_one_process(), **CLOSE)


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.ci), 0], ids=["", "the batch script's own"])
def test_a_node_that_loses_power_is_left_and_the_run_goes_on(bench: Bench, rank: int) -> None:
    job = bench.submit(*TWO, steps=30)
    bench.await_saved(EVERY)
    lost = harm.processes_of(job, "tools/train.py")[rank][1]
    assert (lost == harm.batch_script_of(job)[1]) == (rank == 0)
    harm.power_off(bench.box, lost)
    bench.await_attempt(2)
    assert not (bench.attempt(1) / "end.json").exists(), "the batch script is killed where a node is lost"
    assert lost not in bench.box.job(job)["NodeList"]
    bench.box.await_state(job, "COMPLETED", seconds=280)
    assert bench.begin(2)["restart"] == 1 and bench.done()["attempt"] >= 2
    assert bench.losses() == pytest.approx(bench.losses_of_one_process(), **CLOSE)


@pytest.mark.ci
def test_an_older_attempt_on_a_node_that_was_cut_off_publishes_nothing_more(bench: Bench) -> None:
    """It has no peers to miss, so it trains on, and can reach the run's folder."""
    job = bench.submit("--nodes=1", "--ntasks-per-node=1", "--exclude=n3", steps=100_000)
    bench.await_saved(EVERY)
    [(process, node)] = harm.processes_of(job, "tools/train.py").values()
    harm.cut(bench.box, node)
    bench.await_attempt(2)
    assert os.path.exists(f"/proc/{process}"), "the older attempt lives on"
    assert bench.begin(2)["step"] > EVERY, "and has gone on saving meanwhile"
    log = bench.attempt(1) / "log"
    bench.box.wait(lambda: "taken this folder over" in log.read_text(), 180, "the older attempt being told")
    saved_by = lambda: [  # noqa: E731
        json.loads(path.read_text())["attempt"]
        for path in sorted((bench.run / "checkpoints").glob("step-*/manifest.json"))
    ]
    bench.box.wait(lambda: 2 in saved_by(), 120, "a checkpoint of attempt 2")  # the older one had saved until then
    bench.await_saved(bench.saved() + EVERY)
    bench.box.wait(lambda: "attempt 2 has begun, so attempt 1 is over" in bench.said(job), 60, "its batch script")
    by_step = saved_by()
    assert by_step == sorted(by_step) and by_step[0] < by_step[-1], "each is of one attempt, and none older follows"
    assert not (bench.attempt(1) / "end.json").exists() and not (bench.run / "DONE").exists()
    bench.box.on("head", "scancel", job)
    bench.box.wait(lambda: bench.box.state(job) == "CANCELLED", 60, "the job being cancelled")
    bench.box.wait((bench.attempt(2) / "end.json").exists, 60, "the end of attempt 2")
    assert bench.end(2)["action"] == "stop" and bench.end(2)["step"] == bench.saved()
    bench.losses()  # each step once, in order


@pytest.mark.ci
def test_an_older_attempt_that_has_taken_its_last_step_says_no_done(bench: Bench) -> None:
    """Its batch script is held until another attempt owns the run: all that is left for it to do is to say DONE."""
    job = bench.submit("--nodes=1", "--ntasks-per-node=2", "--exclude=n3", steps=2 * EVERY)
    bench.box.wait(lambda: harm.processes_of(job, "tools/train.py"), 120, "ranks")
    script, node = harm.batch_script_of(job)
    harm.kill(script, signal.SIGSTOP)
    bench.await_saved(2 * EVERY)
    bench.box.wait(lambda: not harm.processes_of(job, "tools/train.py"), 60, "the end of the ranks")
    bench.box.wait((bench.attempt(1) / "codes" / "0.0").exists, 60, "the code they ended with")
    assert not (bench.run / "DONE").exists()
    harm.cut(bench.box, node)
    bench.await_attempt(2)
    harm.kill(script, signal.SIGCONT)
    bench.box.wait(lambda: not os.path.exists(f"/proc/{script}"), 60, "the end of the older batch script")
    assert not (bench.run / "DONE").exists() or bench.done()["attempt"] == 2
    bench.box.wait(lambda: "attempt 2 has begun, so attempt 1 is over" in bench.said(job), 60, "its words")
    bench.box.wait((bench.run / "DONE").exists, 180, "attempt 2, which finds no step to take")
    assert (bench.done()["attempt"], bench.done()["step"]) == (2, 2 * EVERY)
    assert not (bench.attempt(1) / "end.json").exists()


def test_slurm_itself_signals_a_phase_before_its_time_is_over(bench: Bench) -> None:
    """As the launcher's own #SBATCH line has it: five minutes before the end, or up to a minute earlier."""
    bench.submit("--nodes=1", "--ntasks-per-node=2", "--time=7", steps=100_000, fields=("--checkpoint.every", "50"))
    bench.box.wait((bench.attempt(1) / "end.json").exists, 200, "the attempt's end")
    assert bench.end(1)["action"] == "requeue" and "the time limit is near" in bench.end(1)["reason"]
    assert bench.end(1)["at"] - bench.begin(1)["at"] < 180
    bench.await_saved(bench.end(1)["step"] + 1)
    assert bench.begin(2)["step"] == bench.end(1)["step"] > 0, "no step is taken twice"
    bench.losses()  # each step once, in order


def test_a_signal_before_the_time_limit_saves_and_requeues(bench: Bench) -> None:
    job = bench.submit(*TWO, steps=40)
    bench.await_saved(EVERY)
    harm.signal_before_time_limit(bench.box, job)
    bench.await_attempt(2)
    assert bench.end(1)["action"] == "requeue" and "the time limit is near" in bench.end(1)["reason"]
    assert bench.begin(2)["step"] == bench.end(1)["step"], "no step is taken twice"
    assert not (bench.run / "stop").exists()
    bench.box.await_state(job, "COMPLETED", seconds=280)
    assert bench.losses() == pytest.approx(bench.losses_of_one_process(), **CLOSE)


def test_a_cut_between_two_nodes_that_srun_does_not_see_ends_in_a_requeue(bench: Bench) -> None:
    job = bench.submit(*FOUR, steps=100_000, fields=("--train.hang-after-s", "8"))
    bench.await_saved(EVERY)
    one, other = {node for _, node in harm.processes_of(job, "tools/train.py").values()}
    harm.cut_between(bench.box, one, other)
    bench.box.wait((bench.attempt(1) / "end.json").exists, 150, "the attempt's end")
    assert bench.end(1)["action"] == "requeue"
    assert (bench.attempt(1) / "lost").exists(), "srun was ended by the watchdog"
    harm.heal(bench.box)
    bench.await_saved(bench.end(1)["step"] + EVERY)


def test_a_job_that_saves_nothing_twice_stops_and_says_so(bench: Bench) -> None:
    broken = python_that(bench.folder, 'case $1 in */train.py) echo "no luck" >&2; exit 1 ;; esac')
    bench.write_env(MOST_PYTHON=broken)
    job = bench.submit(*TWO)
    bench.box.await_state(job, "FAILED", seconds=120)
    assert [bench.end(number)["action"] for number in (1, 2)] == ["requeue", "stop"]
    assert "2 attempts in a row have saved nothing beyond step 0" in bench.end(2)["reason"]
    assert "2 attempts in a row" in bench.said(job) and "no luck" in bench.said(job)


def test_a_phase_that_fails_cancels_what_depends_on_it(bench: Bench) -> None:
    words = ["--nodes=1", "--ntasks-per-node=1", "--", *SMALL, "--data.asr.train", str(bench.folder / "nowhere")]
    said = bench.on_head("bash", bench.script("pipeline"), *words)
    first, second = (line.split()[0] for line in said.splitlines())
    bench.note(first, second)
    bench.box.await_state(first, "FAILED", seconds=60)
    bench.box.await_state(second, "CANCELLED", seconds=30)
    assert "nowhere: not seen" in bench.said(first) and "no node is fit" in bench.said(first)
    assert not (bench.attempt(1) / "log").exists(), "no rank was started"


def require_whole(bench: Bench, step: int) -> None:
    """Every byte of a checkpoint is as its manifest says."""
    path = bench.run / "checkpoints" / f"step-{step:08d}"
    verify_files(path, read_record(path))


def test_a_run_that_is_cancelled_goes_on_upon_one_node_and_upon_two_again(bench: Bench) -> None:
    for number, nodes in enumerate((2, 1, 2), 1):
        job = bench.submit(f"--nodes={nodes}", "--ntasks-per-node=2", steps=36)
        if number == 3:
            break
        bench.await_saved(12 * number)
        bench.box.on("head", "scancel", job)
        bench.box.wait((bench.attempt(number) / "end.json").exists, 60, "the attempt's end")
        assert bench.end(number)["step"] == bench.saved() < 36 and bench.end(number)["action"] == "stop"
        require_whole(bench, bench.saved())
    bench.box.await_state(job, "COMPLETED", seconds=280)
    assert bench.losses() == pytest.approx(bench.losses_of_one_process(), **CLOSE)


def test_a_rank_that_is_killed_while_it_saves_leaves_a_whole_checkpoint_to_go_on_from(bench: Bench) -> None:
    """Rank 0 is held where a draft is there, then killed: it can say and tidy nothing."""
    job = bench.submit(*TWO, steps=100_000, fields=("--checkpoint.every", "1"))
    bench.await_saved(6)
    process, _ = harm.processes_of(job, "tools/train.py")[0]

    def is_held_while_saving() -> bool:
        if not bench.drafts():
            return False
        harm.kill(process, signal.SIGSTOP)
        if bench.drafts():
            return True
        harm.kill(process, signal.SIGCONT)  # too late
        return False

    bench.box.wait(is_held_while_saving, 120, "a checkpoint being written")
    saved = bench.saved()
    harm.kill(process, signal.SIGKILL)
    assert bench.drafts(), "cut off in the middle of it"
    require_whole(bench, saved)
    bench.await_attempt(2)
    bench.await_saved(saved + 2)
    require_whole(bench, bench.saved())


def test_scaling_measures_each_number_of_nodes_and_reports(bench: Bench) -> None:
    at = SMALL.index("--checkpoint.every")  # the launcher's own
    words = ["submit", "1", "2", "--ntasks-per-node=1", "--", *SMALL[:at], *SMALL[at + 2 :], "--train.steps", "16"]
    said = bench.on_head("bash", bench.script("scaling"), *words)
    jobs = {name: job for job, name in (line.split() for line in said.splitlines())}
    bench.note(*jobs.values())
    bench.box.await_state(jobs["report"], "COMPLETED", seconds=280)
    page = (bench.runs / "scaling" / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")][2:]
    assert [row[:2] for row in rows] == [["1", "1"], ["2", "2"]] and rows[0][8:] == ["100%", "100%"]
    assert [int(row[3]) for row in rows] == [6, 6] and 0 < int(rows[1][8][:-1]) < 300
    assert (bench.runs / "scaling" / "report.svg").exists()
    assert not list((bench.runs / "scaling").glob("*/checkpoints")), "weights of a few steps are not kept"

"""The words that batch scripts use, in the order in which a job uses them, on a real folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from megatron_most.config import Facts, build, count_parameters, dump, from_command_line, load_recipe
from megatron_most.errors import ConfigError, MostError
from megatron_most.jobs import run_job
from megatron_most.jobs.facts import as_lines
from megatron_most.runtime import sha256_file
from tests.jobs.test_preflight import node


class Run:
    """A run whose ranks are files that say how they ended."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        self.folder, self._capsys = folder, capsys
        self.recipe = ["--", "--config", "most-tiny", "--device", "cpu", "--checkpoint.folder", str(folder)]

    def begin(self, job: str = "7", running: str = "7", ranks: int = 2, *fields: str) -> str:
        words = ["begin", "--job", job, "--nodes", "n[1-3]", "--ranks", str(ranks), "--running", running]
        self.code = run_job([*words, *self.recipe, *fields])
        return self._capsys.readouterr().out.strip()

    def end(self, attempt: str, codes: dict[int, int], srun: int, *flags: str) -> str:
        for rank, code in codes.items():
            (Path(attempt) / "codes" / f"{rank}.{code}").touch()
        run_job(["end", "--attempt", attempt, "--srun", str(srun), *flags])
        return self._capsys.readouterr().out.strip()

    def preflight(self, attempt: str, *told: dict) -> str:
        (Path(attempt) / "preflight.facts").write_text("\n".join(line for facts in told for line in as_lines(facts)))
        words = ["preflight", "--attempt", attempt, "--found", f"{attempt}/preflight.facts", "--nodes", "n[1-3]"]
        run_job([*words, "--ranks", "2", "--since", str(time.time()), *self.recipe])
        return self._capsys.readouterr().out.strip()

    def save(self, step: int) -> None:
        (self.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Run:
    return Run(tmp_path / "run", capsys)


def now(name: str, **changes: object) -> dict:
    return node(name, at=time.time(), **changes)


def test_a_job_from_its_first_attempt_over_a_killed_rank_to_done(run: Run) -> None:
    first = run.begin()
    assert run.preflight(first, now("n1"), now("n2"), now("n3")) == "ok 29500"
    run.save(20)
    assert run.end(first, {1: 137, 0: 1}, 137) == "requeue 75"
    second = run.begin()
    run.save(60)
    assert second != first and run.end(second, {0: 0}, 0) == "done 0"
    assert json.loads((run.folder / "DONE").read_text())["step"] == 60
    assert (run.begin(), run.code) == ("", 3), "done already"
    assert run.begin("8", "8", 2, "--train.steps", "61") and run.code == 0, "a longer recipe is not"
    assert not (run.folder / "DONE").exists(), "nor is the run, for who waits for that"


def test_a_run_that_is_done_by_another_recipe_is_refused_by_the_field(run: Run) -> None:
    run.save(60)
    run.end(run.begin(), {0: 0}, 0)
    place, config = run.folder / "checkpoints" / "step-00000060", from_command_line(run.recipe[1:], prog="train.py")
    (place / "resolved.toml").write_text(dump(config))
    (place / "manifest.json").write_text(json.dumps({"resolved.toml": sha256_file(place / "resolved.toml")}))
    assert run.begin() == "" and run.code == 3
    other = ["--moe.top-k", "1"]
    with pytest.raises(MostError, match="moe.top_k = 1, but the run in .* was begun with 2"):
        run.begin("8", "8", 2, *other)
    with pytest.raises(MostError, match="moe.top_k = 1"):
        run_job(["plan", "--ranks", "2", *run.recipe, *other])
    (place / "resolved.toml").write_text("torn")  # training passes over it, or says what is wrong
    assert run.begin("8", "8", 2, *other) == "" and run.code == 3


def test_an_older_attempt_neither_ends_nor_leaves_nodes(run: Run) -> None:
    old = run.begin()
    run.begin()
    with pytest.raises(MostError, match="attempt 2 has begun, so attempt 1 is over"):
        run.end(old, {0: 0}, 0)
    with pytest.raises(MostError, match="attempt 2 has begun"):
        run.preflight(old, now("n1"), now("n3"))
    assert not (run.folder / "DONE").exists() and not (Path(old) / "end.json").exists()


def test_bad_nodes_are_left_three_times_and_then_the_job_ends(run: Run) -> None:
    for _ in range(3):
        assert run.preflight(run.begin(), now("n1"), now("n3")) == "leave n2"
    last = run.begin()
    with pytest.raises(
        MostError, match="this job has left bad nodes 3 times since it last got on; n2: it did not answer"
    ):
        run.preflight(last, now("n1"), now("n3"))
    assert json.loads((Path(last) / "end.json").read_text())["action"] == "stop"


def test_where_no_node_is_fit_the_job_ends_at_once(run: Run) -> None:
    lacking = {"writes": "/run: Read-only file system"}
    with pytest.raises(MostError, match="no node is fit"):
        run.preflight(run.begin(), *(now(name, **lacking) for name in ("n1", "n2", "n3")))


def test_two_fruitless_attempts_are_enough(run: Run) -> None:
    run.save(5)
    assert run.end(run.begin(), {0: 1}, 1) == "requeue 75"
    run.begin()  # lost with its node: it says nothing
    with pytest.raises(MostError, match="2 attempts of job 7 in a row have saved nothing beyond step 5"):
        run.begin()
    assert run.begin(job="8", running="8"), "a person may try again"


def test_a_run_that_another_job_trains_is_refused(run: Run) -> None:
    run.begin(job="7", running="7")
    with pytest.raises(MostError, match="job 7 trains here; wait for it, or scancel it"):
        run.begin(job="8", running="7 8")
    assert run.begin(job="8", running="8"), "job 7 is gone"


def test_a_run_that_another_job_waits_to_go_on_with_is_refused(run: Run) -> None:
    """Else the one that comes back finds it taken, fails, and takes its dependants with it."""
    assert run.end(run.begin(job="7", running="7"), {0: 75}, 0, "--asked") == "requeue 75"
    with pytest.raises(MostError, match="job 7 is in the queue to go on here; wait for it, or scancel it"):
        run.begin(job="8", running="7 8")
    assert run.begin(job="7", running="7 8")


def test_without_a_word_of_the_user_there_must_be_room_for_two_checkpoints(run: Run) -> None:
    size = count_parameters(build(load_recipe("most-tiny"), Facts(world_size=2, device="cpu", core_version=(0, 16))))
    room = {"run": 2 * 12 * size.total - 1, "temporary": 10**12, "shm": 10**12}
    assert run.preflight(run.begin(), now("n1"), now("n2", free=room), now("n3")) == "leave n2"
    room["run"] += 1
    assert run.preflight(run.begin(), now("n1"), now("n2", free=room), now("n3")).startswith("ok ")


def test_bad_nodes_of_weeks_of_training_do_not_add_up(run: Run) -> None:
    for step in range(5):
        assert run.preflight(run.begin(), now("n1"), now("n3")).startswith("leave n2")
        run.save(step + 1)


def test_what_does_not_fit_leaves_no_trace(run: Run) -> None:
    with pytest.raises(MostError, match="layout.tensor"):
        run.begin("7", "7", 2, "--layout.tensor", "7")
    assert not run.folder.exists()


def test_a_run_lives_where_training_would_put_it_and_nowhere_else(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(run.folder.parent)
    words = ["folder", "--", "--config", "most-tiny", "--name"]
    assert run_job([*words, "{0}", "--checkpoint.folder", "a/{{b}}/{name}"]) == 0
    assert capsys.readouterr().out.strip() == str(run.folder.parent / "a" / "{b}" / "{0}")
    for name, pattern, wrong in (("x", "a/{", "checkpoint.folder = 'a/{'"), ("../x", "a/{name}", "name = '../x'")):
        with pytest.raises(ConfigError, match=wrong):
            run_job([*words, name, "--checkpoint.folder", pattern])


def test_a_run_is_asked_to_stop_by_a_file_that_goes_with_the_attempt(run: Run) -> None:
    attempt = run.begin()
    run_job(["ask", "--attempt", attempt])
    assert (run.folder / "stop").exists()
    run.save(3)
    assert run.end(attempt, {0: 75}, 0, "--asked") == "requeue 75" and not (run.folder / "stop").exists()
    (run.folder / "stop").write_text("")
    with pytest.raises(MostError, match="stop: there, so the run would stop after one step; remove it first"):
        run.begin()

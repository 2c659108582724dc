"""The batch scripts without Slurm: what they would run, what they ask for, and that a shell reads them as meant."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TINY = ["--device", "cpu", "--train.steps", "3"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A clone and data below a path with a space and a quote."""
    folder = tmp_path / "it's a place"
    folder.mkdir()
    (folder / "clone").symlink_to(ROOT)
    for task in ("asr", "tts", "text-lm", "speech-instruct", "text-instruct"):
        for name in ("train", "valid") if task == "asr" else ("libri", "libri-dev"):
            (folder / "sets" / task / name).mkdir(parents=True)
            (folder / "sets" / task / name / "dataset.json").write_text("{}")
    return folder


def launch(place: Path, script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MOST_"))}
    own = {} if "MOST_CONTAINER" in env else {"MOST_PYTHON": sys.executable}
    lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in {**own, **env}.items())
    (place / "cluster.env").write_text(lines)
    settings = {"MOST_CLUSTER_ENV": str(place / "cluster.env"), "PYTHONPATH": str(ROOT)}
    command = ["bash", str(place / "clone" / "launch" / script), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=place, env={**kept, **settings}, timeout=120)


def usual(place: Path, **changes: str) -> dict[str, str]:
    env = {"MOST_PYTHON": sys.executable, "MOST_DATA": f"{place}/sets", "MOST_BACKBONE": "none"}
    return {**env, "MOST_STAGE1_RECIPE": "stage1-tiny", "MOST_STAGE2_RECIPE": "stage2-tiny", **changes}


def commands(done: subprocess.CompletedProcess) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: sudo apt install shellcheck")
    done = subprocess.run(["shellcheck", "-x", script.name], cwd=script.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(len(line) <= 120 for line in script.read_text().splitlines())


def test_without_options_phase_1_is_six_nodes_of_eight_ranks(place: Path) -> None:
    facts, ranks = commands(launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place)))
    assert {"--nodes=6", "--ntasks=6", "--ntasks-per-node=1"} <= set(facts)
    assert {"--nodes=6", "--ntasks=48", "--ntasks-per-node=8"} <= set(ranks)
    assert ranks[-len(TINY) :] == TINY, "words of the user come last, so they win"


def test_a_dry_run_can_be_of_other_sizes_and_in_a_job_they_are_told_to_belong_to_sbatch(place: Path) -> None:
    sizes = ["--nodes=3", "--ntasks-per-node=5", "--train.global-batch-size", "7"]
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *sizes, *TINY, **usual(place))
    assert {"--nodes=3", "--ntasks=15", "--ntasks-per-node=5"} <= set(commands(done)[1])
    assert "data parallelism 15" in done.stderr, "which does not divide the batch, and need not"
    for words in (["--dry-run", "--nodes=2-4"], ["--nodes=3"]):
        refused = launch(place, "stage1_asr_tts.sh", *words, *TINY, **usual(place, SLURM_JOB_ID="7"))
        assert refused.returncode == 2 and words[-1] in refused.stderr, refused.stderr
    assert "goes before the script's name" in refused.stderr


def test_paths_with_spaces_and_quotes_arrive_whole(place: Path) -> None:
    [_, ranks] = commands(launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place)))
    at = ranks.index("--data.asr.train")
    assert ranks[at + 1 : at + 4] == [f"{place}/sets/asr/train", "--data.asr.valid", f"{place}/sets/asr/valid"]
    at = ranks.index("--data.tts.train")
    assert ranks[at + 1 : at + 4] == [f"{place}/sets/tts/libri", "--data.tts.valid", f"{place}/sets/tts/libri-dev"]
    assert f"{place}/clone/tools/train.py" in ranks


def test_phase_2_begins_with_phase_1_and_a_recipe_of_the_user_is_in_charge_of_all(place: Path) -> None:
    runs = f"{place}/runs"
    done = launch(place, "stage2_instruct.sh", "--dry-run", *TINY, **usual(place, MOST_RUNS=runs))
    [_, ranks] = commands(done)
    assert ranks[ranks.index("--checkpoint.start-from") + 1] == f"{runs}/stage1-tiny"
    assert f"{runs}/stage1-tiny, to begin with, is not there yet" in done.stderr
    [_, ranks] = commands(launch(place, "stage2_instruct.sh", "--dry-run", "--config", "most-tiny", "--device", "cpu",
                                 MOST_PYTHON=sys.executable))  # fmt: skip
    assert ranks[-4:] == ["--config", "most-tiny", "--device", "cpu"] and "--data.asr.train" not in ranks


def test_gpus_are_asked_for_unless_the_user_names_a_device(place: Path) -> None:
    [_, ranks] = commands(launch(place, "stage1_asr_tts.sh", "--dry-run", **usual(place)))
    assert ranks[-2:] == ["--device", "gpu"]


@pytest.mark.parametrize(
    ("script", "missing", "words"),
    [
        ("stage1_asr_tts.sh", "MOST_DATA", "where the datasets are"),
        ("stage1_asr_tts.sh", "MOST_BACKBONE", "the checkpoint to begin with, made by launch/convert.sh"),
        ("stage2_instruct.sh", "MOST_DATA", "where the datasets are"),
        ("convert.sh", "MOST_HF_MODEL", "the folder of the Hugging Face model"),
        ("convert.sh", "MOST_BACKBONE", "the folder of the checkpoint to be made of it"),
    ],
)
def test_a_variable_that_is_not_set_is_named_with_where_to_set_it(
    place: Path, script: str, missing: str, words: str
) -> None:
    env = {name: value for name, value in usual(place, MOST_HF_MODEL="/hf").items() if name != missing}
    done = launch(place, script, "--dry-run", **env)
    assert done.returncode == 2 and f"{missing} is not set: it says {words}" in done.stderr
    assert f"{place}/cluster.env" in done.stderr and done.stdout == ""


def test_an_interpreter_that_is_not_there_is_told_with_the_variable_that_names_it(place: Path) -> None:
    for script in ("stage1_asr_tts.sh", "status.sh", "pipeline.sh"):
        done = launch(place, script, "--dry-run", **usual(place, MOST_PYTHON="/no/python"))
        assert done.returncode == 2 and "/no/python: no such program; MOST_PYTHON names" in done.stderr
        assert f"{place}/cluster.env" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "name", ["MOST_WATCH_S", "MOST_GRACE_S", "MOST_SKEW_S", "MOST_FREE_GB", "MOST_LINK_FLOOR_GBPS"]
)
def test_a_setting_that_is_no_number_is_named_before_the_queue(place: Path, name: str) -> None:
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place, **{name: "2TB"}))
    assert done.returncode == 2 and f"{name}=2TB: not a number" in done.stderr and not done.stdout


def test_settings_that_bash_cannot_read_are_refused(place: Path) -> None:
    settings = place / "broken.env"
    settings.write_text("export MOST_DATA='unclosed\n")
    env = {**os.environ, "MOST_CLUSTER_ENV": str(settings)}
    command = ["bash", str(ROOT / "launch" / "stage1_asr_tts.sh"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "broken.env: bash cannot read it" in done.stderr


def test_a_python_without_our_packages_is_told_with_the_variable_that_names_it(place: Path) -> None:
    bare = place / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site packages
    bare.chmod(0o755)
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place, MOST_PYTHON=str(bare)))
    assert done.returncode == 2 and "set MOST_PYTHON" in done.stderr and "Traceback" not in done.stderr


def test_the_device_may_be_written_as_of_the_runtime(place: Path) -> None:
    words = [word for word in TINY if word not in ("--device", "cpu")]
    for device in (["--runtime.device", "cpu"], ["--runtime.device=cpu"]):
        done = launch(place, "stage1_asr_tts.sh", "--dry-run", *words, *device, **usual(place))
        assert "gpu" not in [word for line in commands(done) for word in line]


def test_a_chain_waits_as_a_whole_for_what_its_user_names(place: Path) -> None:
    for given in (["--dependency=afterok:5"], ["--dependency", "afterok:5"], ["-d", "afterok:5"], ["-dafterok:5"]):
        lines = commands(launch(place, "pipeline.sh", "--dry-run", "--nodes=1", *given, "--", *TINY, **usual(place)))
        waits = [[word for word in line if word.startswith("--dependency")] for line in lines]
        assert waits == [["--dependency=afterok:5"], ["--dependency=afterok:JOB1"]]


def test_settings_may_read_variables_that_are_not_set(place: Path) -> None:
    """As `module load` does, and who adds to LD_LIBRARY_PATH; our own scripts go on without that."""
    lines = [f"export MOST_PYTHON={shlex.quote(sys.executable)}", "export LIBS=/opt/lib:$NOT_SET_ANYWHERE"]
    (place / "their.env").write_text("\n".join(lines))
    command = ["bash", str(place / "clone" / "launch" / "convert.sh"), "--dry-run", "inspect", "--path", "x"]
    env = {**os.environ, "MOST_CLUSTER_ENV": str(place / "their.env")}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "tools/convert_ckpt.py inspect --path x" in done.stdout, done.stderr


@pytest.mark.parametrize("jobs", [2, 60_000])
def test_a_queue_may_be_longer_than_a_command_line(place: Path, jobs: int) -> None:
    runs = place / "runs"
    (runs / "stage1-tiny" / "slurm" / "attempt-0001").mkdir(parents=True)
    begin = {"job": "7", "nodes": "n1", "step": 0}
    (runs / "stage1-tiny" / "slurm" / "attempt-0001" / "begin.json").write_text(json.dumps(begin))
    (place / "squeue").write_text(
        f"#!/bin/bash\nfor ((n = 7; n < {jobs} + 7; n++)); do\n"
        'case "$*" in *%T*) echo "$n|RUNNING|2:03:04|None" ;; *) echo "$n" ;; esac\ndone\n'
    )
    (place / "squeue").chmod(0o755)
    env = usual(place, MOST_RUNS=str(runs), PATH=f"{place}:{os.environ['PATH']}")
    done = launch(place, "status.sh", str(runs / "stage1-tiny"), **env)
    assert done.returncode == 0 and "RUNNING, 2:03:04 left" in done.stdout, done.stderr[-500:]
    done = launch(place, "stage1_asr_tts.sh", *TINY, SLURM_JOB_ID="8", **env)
    assert done.returncode == 2 and "job 7 trains here; wait for it, or scancel it" in done.stderr, done.stderr[-500:]


def test_a_signal_that_comes_while_settings_are_read_does_not_end_the_job(place: Path) -> None:
    """Of a job whose time limit is shorter than the notice it wants, as on a partition for trying out."""
    (place / "their.env").write_text(f"MOST_PYTHON={shlex.quote(sys.executable)}\nkill -USR1 $$\n")
    command = ["bash", str(place / "clone" / "launch" / "stage1_asr_tts.sh"), "--dry-run", "--config", "most-tiny"]
    env = {**os.environ, "MOST_CLUSTER_ENV": str(place / "their.env"), "SLURM_JOB_ID": "8"}
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "tools/train.py" in done.stdout, done.stderr


def test_a_layout_that_does_not_fit_is_refused_before_the_queue(place: Path) -> None:
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, "--layout.tensor", "7", **usual(place))
    assert done.returncode == 2 and "layout.tensor" in done.stderr


def test_outside_of_slurm_a_batch_script_says_how_to_submit_it(place: Path) -> None:
    done = launch(place, "stage1_asr_tts.sh", *TINY, **usual(place))
    assert done.returncode == 2 and "sbatch " in done.stderr and "--dry-run" in done.stderr


def test_data_that_is_not_there_is_told_with_the_place(place: Path) -> None:
    shutil.rmtree(place / "sets" / "tts")
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place))
    assert done.returncode == 2 and f"no dataset of tts in {place}/sets/tts" in done.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("apptainer", ["apptainer", "exec", "--nv", "--bind", "ROOT,/scratch:/scratch", "/images/most.sif", "python3"]),
        ("pyxis", ["--container-image=/images/most.sif", "--container-mounts=ROOT:ROOT,/scratch:/scratch"]),
    ],
)
def test_ranks_run_in_a_container_by_configuration(place: Path, kind: str, words: list[str]) -> None:
    """What is asked of python on the spot goes to a program of that name, which does what it is for: nothing."""
    for name in ("apptainer", "srun"):
        (place / name).write_text("#!/bin/bash\nexit 0\n")
        (place / name).chmod(0o755)
    env = usual(place, MOST_CONTAINER=kind, MOST_IMAGE="/images/most.sif", MOST_MOUNTS="/scratch:/scratch")
    del env["MOST_PYTHON"]
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **env, PATH=f"{place}:{os.environ['PATH']}")
    [_, ranks] = commands(done)
    root = str(place / "clone")
    assert set(word.replace("ROOT", root) for word in words) <= set(ranks)
    assert ("the layout was not checked" in done.stderr) == (kind == "pyxis"), "srun would want an allocation"
    assert f"MOST_DATA={place}/sets lies in none of MOST_MOUNTS" in done.stderr
    missing = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **{**env, "MOST_IMAGE": ""})
    assert missing.returncode == 2 and "MOST_IMAGE is not set" in missing.stderr


def test_status_is_told_by_the_login_node_itself_where_python_is_in_jobs_alone(place: Path) -> None:
    (place / "srun").write_text('#!/bin/bash\necho "srun would wait in the queue" >&2; exit 1\n')
    (place / "python3").write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -S "$@"\n')  # no packages
    for name in ("srun", "python3"):
        (place / name).chmod(0o755)
    env = {"MOST_CONTAINER": "pyxis", "MOST_IMAGE": "/images/most.sif", "PATH": f"{place}:{os.environ['PATH']}"}
    done = launch(place, "status.sh", str(place / "runs"), **env)
    assert "srun would" not in done.stderr and "no run" in done.stderr + done.stdout, done.stderr
    (place / "python3").write_text("#!/bin/bash\nexit 1\n")
    done = launch(place, "status.sh", str(place / "runs"), **env)
    assert done.returncode == 2 and "needs a python3 of 3.11 or newer" in done.stderr


def test_prebuild_refuses_in_a_dry_run_what_it_would_refuse_in_a_job(place: Path) -> None:
    done = launch(place, "prebuild.sh", "--dry-run", "--train.stepz", "3", **usual(place))
    assert done.returncode == 2 and "--train.stepz" in done.stderr and not done.stdout
    assert commands(launch(place, "prebuild.sh", "--dry-run", "--config", "stage1-tiny", **usual(place)))
    [command] = commands(launch(place, "prebuild.sh", "--dry-run", "--runtime.device", "cpu", **usual(place)))
    assert command[-2:] == ["--device", "cpu"] and "gpu" not in command


@pytest.fixture
def queue(place: Path) -> tuple[Path, str]:
    """sbatch is a program that writes down how it was called and tells number after number; (its notes, PATH)."""
    called = place / "called"
    (place / "sbatch").write_text(
        f'#!/bin/bash\nprintf "%q " "$@" >> "{called}"; echo >> "{called}"; echo $((76 + $(wc -l < "{called}")))\n'
    )
    (place / "sbatch").chmod(0o755)
    return called, f"{place}:{os.environ['PATH']}"


def calls(called: Path) -> list[list[str]]:
    return [shlex.split(line) for line in called.read_text().splitlines()]


def test_shards_become_an_array_and_a_merge_behind_it(place: Path, queue: tuple[Path, str]) -> None:
    needs = ["--manifest", "m", "--units", "u", "--tokenizer", "t"]
    words = ["--partition=cpu", "--", "build", "--task", "asr", *needs, "--out", f"{place}/sets/asr/big"]
    done = launch(place, "prepare_data.sh", "submit", "64", *words, PATH=queue[1])
    assert done.stdout == "77 build\n78 merge\n", done.stderr
    array, merge = calls(queue[0])
    script = f"{place}/clone/launch/prepare_data.sh"
    assert array == ["--parsable", "--array=0-63", "--output=%x-%A_%a.log", "--partition=cpu", script, *words[2:]]
    assert merge[1:4] == ["--dependency=afterok:77", "--kill-on-invalid-dep=yes", "--partition=cpu"]
    assert merge[4:] == [script, "merge", "--dataset", f"{place}/sets/asr/big", "--out", f"{place}/sets/asr/big-whole"]
    dry = launch(place, "prepare_data.sh", "submit", "64", "--dry-run", *words, PATH=queue[1])
    assert len(calls(queue[0])) == 2, "nothing more was submitted"
    assert [line[1:] for line in commands(dry)] == [array, [*merge[:1], "--dependency=afterok:JOB1", *merge[2:]]]
    place_of = ["--chdir=/scratch", "-D", "/scratch", "--export=ALL,MOST_X=1", "--time=1:00:00"]
    dry = launch(place, "prepare_data.sh", "submit", "64", "--dry-run", *place_of, *words, PATH=queue[1])
    assert commands(dry)[1][4:9] == [*place_of[:4], "--partition=cpu"], "relative paths and settings are the array's"
    nowhere = launch(place, "prepare_data.sh", "submit", "64", "--", "build", "--task", "asr", PATH=queue[1])
    assert nowhere.returncode == 2 and "no --out among the words of build" in nowhere.stderr
    wrong = launch(place, "prepare_data.sh", "submit", "64", "--", "stats")
    assert wrong.returncode == 2 and "only units and build have shards, not stats" in wrong.stderr


def test_the_chain_ends_with_an_evaluation_that_has_words_of_its_own(place: Path, queue: tuple[Path, str]) -> None:
    words = ["--nodes=2", "--", "--train.steps", "9", "--", "nll", "--dataset", f"{place}/sets/asr/train"]
    env = usual(place, MOST_STAGES="stage1 stage2 evaluate", PATH=queue[1])
    done = launch(place, "pipeline.sh", *words, **env)
    assert done.stdout == "77 stage1\n78 stage2\n79 evaluate\n", done.stderr
    first, second, last = calls(queue[0])
    scripts = f"{place}/clone/launch"
    assert first == ["--parsable", "--nodes=2", f"{scripts}/stage1_asr_tts.sh", "--train.steps", "9"]
    assert second[1:3] == ["--dependency=afterok:77", "--kill-on-invalid-dep=yes"]
    assert last[1:] == ["--dependency=afterok:78", "--kill-on-invalid-dep=yes", "--nodes=2", f"{scripts}/evaluate.sh",
                        "nll", "--dataset", f"{place}/sets/asr/train"]  # fmt: skip
    dry = launch(place, "pipeline.sh", "--dry-run", *words, **env)
    assert len(calls(queue[0])) == 3, "nothing was submitted"
    assert [line[0] for line in commands(dry)] == ["sbatch"] * 3 and "--dependency=afterok:JOB2" in dry.stdout
    lacking = launch(place, "pipeline.sh", *words[:4], **env)
    assert lacking.returncode == 2 and "evaluate: which tasks?" in lacking.stderr
    assert len(calls(queue[0])) == 3
    unasked = launch(place, "pipeline.sh", *words, **usual(place, PATH=queue[1]))
    assert unasked.returncode == 2 and 'set MOST_STAGES="stage1 stage2 evaluate"' in unasked.stderr


@pytest.mark.parametrize(
    ("options", "fields", "changes", "said"),
    [
        (["-N2"], ["--layout.tensor", "7"], {}, "layout.tensor"),
        (["-N", "1", "--ntasks-per-node=2"], ["--layout.expert", "4"], {}, "layout.expert"),
        ([], [], {"MOST_BACKBONE": ""}, "MOST_BACKBONE is not set"),
        ([], ["--train.stepz", "3"], {}, "--train.stepz"),
    ],
    ids=["tensor", "expert", "variable", "field"],
)
def test_what_would_be_refused_hours_later_is_not_submitted(
    place: Path, queue: tuple[Path, str], options: list[str], fields: list[str], changes: dict[str, str], said: str
) -> None:
    words = ["--device", "cpu", *fields]
    done = launch(place, "pipeline.sh", *options, "--", *words, **usual(place, PATH=queue[1], **changes))
    assert done.returncode == 2 and said in done.stderr and "nothing was submitted" in done.stderr, done.stderr
    done = launch(place, "scaling.sh", "submit", "1", "2", *options[2:], "--", *words,
                  **usual(place, PATH=queue[1], **changes))  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "nothing was submitted" in done.stderr, done.stderr
    assert not queue[0].exists()


CHAIN = {"MOST_STAGES": "stage1 stage2 evaluate"}
TASKS = ["--", "nll", "--dataset", "/d"]


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, ["--", "--checkpoint.folder", "/one"], "--checkpoint.folder: would be for every phase"),
        ({}, ["--", "--checkpoint.start-from=/bb"], "--checkpoint.start-from: would be for every phase"),
        (CHAIN, ["--", "--name", "foo", *TASKS], "--name: would be for every phase"),
        ({}, ["--", "--config", "stage1-tiny"], "--config: would be both phases' recipe"),
        ({"MOST_STAGE1": "/tmp/old"}, [], "MOST_STAGE1=/tmp/old: this chain makes its own phase 1"),
        ({}, ["--array=0-3"], "--array: a run has one job at a time"),
    ],
)
def test_a_chain_whose_phases_would_miss_each_other_is_not_submitted(
    place: Path, queue: tuple[Path, str], changes: dict[str, str], words: list[str], said: str
) -> None:
    done = launch(place, "pipeline.sh", *words, **usual(place, PATH=queue[1], **changes))
    assert done.returncode == 2 and said in done.stderr and not queue[0].exists(), done.stderr


def test_a_chain_evaluates_what_it_makes_whatever_model_is_set_for_other_evaluations(
    place: Path, queue: tuple[Path, str]
) -> None:
    env = usual(place, PATH=queue[1], MOST_RUNS=f"{place}/runs", MOST_MODEL="/m", **CHAIN)
    done = launch(place, "pipeline.sh", "--", "--device", "cpu", *TASKS, **env)
    assert done.returncode == 0 and "MOST_MODEL=/m is passed over" in done.stderr, done.stderr
    assert calls(queue[0])[-1][-2:] == ["--model", f"{place}/runs/stage2-tiny"]
    own = launch(place, "pipeline.sh", "--", "--device", "cpu", *TASKS, "--model", "/other", **env)
    assert own.returncode == 0 and calls(queue[0])[-1][-2:] == ["--model", "/other"], own.stderr


@pytest.mark.parametrize("script", ["stage1_asr_tts.sh", "stage2_instruct.sh"])
def test_a_phase_asks_slurm_for_what_its_life_rests_on(script: str) -> None:
    """A cluster may have JobRequeue=0 and share its nodes. The drills of tests/slurm rest on the first two."""
    asked = [line for line in (ROOT / "launch" / script).read_text().splitlines() if line.startswith("#SBATCH")]
    for word in ("--requeue", "--signal=B:USR1@300", "--exclusive", "--mem=0"):
        assert any(line.split()[1] == word for line in asked), word


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("root=/scratch/me", "sets root=/scratch/me: the launchers call their clone so; take another name"),
        ("[ -d /no/such/folder ] || exit", "ends whoever reads it: it calls exit"),
        ("exit 0", "ends whoever reads it: it calls exit"),
        ("MOST_GRACE_S=0", "MOST_GRACE_S=0: give more than 0"),
        ("MOST_WATCH_S=0.0", "MOST_WATCH_S=0.0: give more than 0"),
        ("MOST_PREFLIGHT_S=0", "MOST_PREFLIGHT_S=0: give more than 0"),
        ("MASTER_PORT=abc", "MASTER_PORT=abc: not a port"),
        ("MOST_PREFLIGHT=no", "MOST_PREFLIGHT=no: give 1, or 0"),
    ],
)
def test_settings_that_would_harm_later_are_refused_at_once(place: Path, line: str, said: str) -> None:
    (place / "their.env").write_text("".join(f"{n}={shlex.quote(v)}\n" for n, v in usual(place).items()) + line + "\n")
    command = ["bash", str(place / "clone" / "launch" / "stage1_asr_tts.sh"), "--dry-run", *TINY]
    env = {**os.environ, "MOST_CLUSTER_ENV": str(place / "their.env")}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and said in done.stderr and str(place / "their.env") in done.stderr + said, done.stderr


def test_a_separator_that_is_left_behind_does_no_harm(place: Path) -> None:
    (place / "their.env").write_text("".join(f"{n}={shlex.quote(v)}\n" for n, v in usual(place).items()) + "IFS=:\n")
    command = ["bash", str(place / "clone" / "launch" / "stage1_asr_tts.sh"), "--dry-run", *TINY]
    env = {**os.environ, "MOST_CLUSTER_ENV": str(place / "their.env")}
    assert commands(subprocess.run(command, capture_output=True, text=True, env=env))


def test_an_evaluation_is_a_process_a_gpu_of_the_model_of_phase_2(place: Path) -> None:
    runs = f"{place}/runs"
    [ranks] = commands(launch(place, "evaluate.sh", "--dry-run", "nll", "--dataset", f"{place}/sets/asr/train",
                              **usual(place, MOST_RUNS=runs)))  # fmt: skip
    assert {"--nodes=1", "--ntasks=8", "--ntasks-per-node=8", f"{place}/clone/tools/evaluate.py"} <= set(ranks)
    own = ["--model", f"{runs}/stage2-tiny", "--out", f"{runs}/evaluate", "--device", "gpu"]
    assert ranks[-9:] == ["nll", "--dataset", f"{place}/sets/asr/train", *own]
    (place / "sets" / "tokenizer").mkdir()
    [ranks] = commands(launch(place, "evaluate.sh", "--dry-run", "nll", "--model", "/run", "--dataset", "/d",
                              **usual(place)))  # fmt: skip
    assert ranks[ranks.index("--tokenizer") + 1] == f"{place}/sets/tokenizer"
    given = ["nll", "--model", "/m", "--out", "/o", "--device", "cpu", "--dataset", "/d"]
    (place / "hf").mkdir()
    (place / "hf" / "config.json").write_text("{}")
    given[2] = str(place / "hf")  # which has a tokenizer of its own
    [ranks] = commands(launch(place, "evaluate.sh", "--dry-run", *given, **usual(place)))
    assert ranks[-9:] == given
    done = launch(place, "evaluate.sh", "asr", **usual(place, MOST_RUNS=runs))
    assert done.returncode == 2 and f"{runs}/stage2-tiny is not done: finish phase 2, or name the model" in done.stderr
    none = launch(place, "evaluate.sh", **usual(place))
    assert none.returncode == 2 and "which tasks?" in none.stderr


def test_scaling_is_a_run_for_each_number_of_nodes_and_a_report_behind_all(
    place: Path, queue: tuple[Path, str]
) -> None:
    env = usual(place, MOST_RUNS=f"{place}/runs", PATH=queue[1])
    words = ["submit", "1", "2", "4", "--partition=gpu", "--", "--layout.expert", "4", "--train.steps", "30"]
    done = launch(place, "scaling.sh", *words, **env)
    assert done.stdout == "77 nodes-1\n78 nodes-2\n79 nodes-4\n80 report\n", done.stderr
    *runs, report = calls(queue[0])
    for count, run in zip((1, 2, 4), runs, strict=True):
        assert run[1:4] == [f"--nodes={count}", "--partition=gpu", f"{place}/clone/launch/stage1_asr_tts.sh"]
        assert run[-4:] == ["--checkpoint.every", "0", "--checkpoint.folder", f"{place}/runs/scaling/nodes-{count}"]
        assert run.index("50") < run.index("30"), "words of the user win"
    assert report[1:3] == ["--dependency=afterok:77:78:79", "--kill-on-invalid-dep=yes"]
    assert report[3:] == ["--partition=gpu", f"{place}/clone/launch/scaling.sh", "report", "1", "2", "4"]
    for wrong, said in (
        (["submit", "2"], "two numbers of nodes at least"),
        (["1", "2"], "usage: scaling.sh submit"),
        (["submit", "1", "2", "--", "--checkpoint.folder", "/x"], "--checkpoint.folder: is chosen here"),
        (["submit", "1", "2", "--nodes=4"], "--nodes=4: is chosen here"),
        (["submit", "1", "2", "-a0-3"], "-a0-3: is chosen here"),
    ):
        refused = launch(place, "scaling.sh", *wrong, **env)
        assert refused.returncode == 2 and said in refused.stderr
    assert len(calls(queue[0])) == 4


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("evaluate.sh", ["--dry-run", "asr2", "--model", "/m"], "asr2"),
        ("evaluate.sh", ["--dry-run", "asr", "--model", "/m"], "asr needs it"),
        ("evaluate.sh", ["--dry-run", "nll", "--model", "/m", "--dataset", "/d", "--limitt", "3"], "--limitt"),
        ("prepare_data.sh", ["--dry-run", "unitz"], "unitz"),
        ("prepare_data.sh", ["submit", "4", "--", "units", "--manifests", "m", "--out", "u"], "--manifests"),
        ("convert.sh", ["--dry-run", "imports", "--source", "/m", "--out", "/o"], "imports"),
        ("convert.sh", ["--dry-run", "import", "--source", "/m"], "--out"),
    ],
)
def test_words_that_a_tool_would_refuse_need_no_queue(
    place: Path, queue: tuple[Path, str], script: str, words: list[str], said: str
) -> None:
    done = launch(place, script, *words, **usual(place, PATH=queue[1]))
    assert done.returncode == 2 and said in done.stderr and not done.stdout, done.stderr
    assert not queue[0].exists()


def test_a_chain_with_unknown_tasks_is_not_submitted(place: Path, queue: tuple[Path, str]) -> None:
    env = usual(place, MOST_STAGES="stage1 evaluate", PATH=queue[1])
    done = launch(place, "pipeline.sh", "--nodes=1", "--", *TINY, "--", "swugy", "--zerospeech", "z", **env)
    assert done.returncode == 2 and "swugy" in done.stderr and "nothing was submitted" in done.stderr
    assert not queue[0].exists()


@pytest.mark.parametrize("stages", ["stage2 stage1", "stage1 stage1", "stage1 convert", "evaluate stage2"])
def test_stages_have_an_order(place: Path, queue: tuple[Path, str], stages: str) -> None:
    words = ["--nodes=1", "--", *TINY, *(["--", "nll", "--dataset", "/d"] if "evaluate" in stages else [])]
    done = launch(place, "pipeline.sh", *words, **usual(place, MOST_STAGES=stages, MOST_HF_MODEL="/h", PATH=queue[1]))
    assert done.returncode == 2 and "the order is convert, stage1, stage2, evaluate" in done.stderr, done.stderr
    assert not queue[0].exists()


def test_jobs_of_one_process_get_the_place_that_the_user_names(place: Path, queue: tuple[Path, str]) -> None:
    """A conversion and a report ask for no eight GPUs, but they run on the partition and are paid by the account."""
    options = ["--partition=big", "-A", "lab", "--gpus-per-node=4", "--ntasks-per-node=4", "-qlong"]
    env = usual(place, MOST_STAGES="convert stage1", MOST_HF_MODEL="/h", MOST_BACKBONE=f"{place}/b", PATH=queue[1])
    done = launch(place, "pipeline.sh", *options, "--", *TINY, **env)
    assert done.returncode == 0, done.stderr
    convert, stage1 = calls(queue[0])
    assert convert == ["--parsable", "--partition=big", "-A", "lab", "-qlong", f"{place}/clone/launch/convert.sh"]
    assert options == stage1[3 : 3 + len(options)]
    done = launch(place, "scaling.sh", "submit", "1", "2", *options, "--", *TINY, **usual(place, PATH=queue[1]))
    assert done.returncode == 0, done.stderr
    report = calls(queue[0])[-1]
    assert report[3:7] == ["--partition=big", "-A", "lab", "-qlong"] and "--gpus-per-node=4" not in report


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("stage1_asr_tts.sh", "--partition=gpu"), ("stage1_asr_tts.sh", "--time"), ("stage2_instruct.sh", "-N"),
        ("evaluate.sh", "--gres=gpu:8"), ("convert.sh", "--mem=200G"), ("prepare_data.sh", "--account=lab"),
        ("stage1_asr_tts.sh", "--nodes"),
    ],
)  # fmt: skip
def test_options_of_sbatch_behind_the_script_are_told_where_to_go(place: Path, script: str, word: str) -> None:
    done = launch(place, script, "--dry-run", *TINY, word, **usual(place))
    assert done.returncode == 2 and f"{word} is an option of sbatch: it goes before the script's name" in done.stderr


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name not in ("common.sh", "rank.sh")],
                         ids=lambda path: path.name)  # fmt: skip
def test_every_script_says_what_it_is_for(place: Path, script: Path) -> None:
    done = launch(place, script.name, "--help")
    assert done.returncode == 0 and done.stdout.strip() and "#" not in done.stdout, done.stdout
    assert not done.stderr


def test_a_machine_that_the_planner_does_not_know_stops_no_report_behind_days_of_runs(
    place: Path, queue: tuple[Path, str]
) -> None:
    env = usual(place, MOST_MACHINE="b9000", PATH=queue[1])
    done = launch(place, "scaling.sh", "submit", "1", "2", "--", *TINY, **env)
    assert done.returncode == 2 and "MOST_MACHINE=b9000" in done.stderr and not queue[0].exists()


def test_the_merge_waits_for_its_array_whatever_the_user_gives(place: Path, queue: tuple[Path, str]) -> None:
    options = ["--dependency=afterok:99", "--gpus=1", "--partition=cpu"]
    words = ["--", "build", "--task", "asr", "--manifest", "m", "--tokenizer", "t", "--out", f"{place}/sets/asr/big/"]
    done = launch(place, "prepare_data.sh", "submit", "64", *options, *words, PATH=queue[1])
    assert done.returncode == 0, done.stderr
    array, merge = calls(queue[0])
    assert array[3:6] == options
    assert merge[1:4] == ["--dependency=afterok:77", "--kill-on-invalid-dep=yes", "--partition=cpu"]
    assert merge[-4:] == ["--dataset", f"{place}/sets/asr/big", "--out", f"{place}/sets/asr/big-whole"]
    for wrong, said in (
        (["--array=0-63%8", *words], "leave --array out"),
        ([*words, "--shard", "1/4"], "--shard is each"),
    ):
        refused = launch(place, "prepare_data.sh", "submit", "64", *wrong, PATH=queue[1])
        assert refused.returncode == 2 and said in refused.stderr
    assert len(calls(queue[0])) == 2


def test_a_merged_validation_set_is_no_training_data(place: Path) -> None:
    whole = place / "sets" / "tts" / "libri-dev-whole"
    (place / "sets" / "tts" / "libri-dev").rename(whole)
    [_, ranks] = commands(launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place)))
    at = ranks.index("--data.tts.train")
    assert ranks[at + 1 : at + 4] == [f"{place}/sets/tts/libri", "--data.tts.valid", str(whole)]


@pytest.mark.parametrize("script", ["pipeline.sh --nodes=1", "scaling.sh submit 1 2"])
def test_a_dry_run_asked_for_in_the_wrong_place_submits_nothing(
    place: Path, queue: tuple[Path, str], script: str
) -> None:
    done = launch(place, *script.split(), "--", "--dry-run", *TINY, **usual(place, PATH=queue[1]))
    assert done.returncode == 2 and "--dry-run goes before --" in done.stderr and not queue[0].exists()


@pytest.mark.parametrize("stages", ["stage2", "stage1 evaluate", "evaluate"])
def test_a_chain_that_lacks_what_it_begins_with_is_not_submitted(
    place: Path, queue: tuple[Path, str], stages: str
) -> None:
    tasks = ["--", "nll", "--dataset", "/d"] if "evaluate" in stages else []
    env = usual(place, MOST_STAGES=stages, MOST_RUNS=f"{place}/runs", PATH=queue[1])
    done = launch(place, "pipeline.sh", "--nodes=1", "--", *TINY, *tasks, **env)
    assert done.returncode == 2 and "which is not done: add stage" in done.stderr and not queue[0].exists()
    for name in ("stage1-tiny", "stage2-tiny"):
        (place / "runs" / name).mkdir(parents=True)
        (place / "runs" / name / "DONE").write_text("{}")
    done = launch(place, "pipeline.sh", "--nodes=1", "--", *TINY, *tasks, **env)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_runs_that_depends_on_where_one_stands_is_refused(place: Path) -> None:
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place, MOST_RUNS="runs"))
    assert done.returncode == 2 and "MOST_RUNS=runs: give the whole path" in done.stderr


def test_braces_in_the_folder_of_runs_are_told(place: Path) -> None:
    done = launch(place, "stage1_asr_tts.sh", "--dry-run", *TINY, **usual(place, MOST_RUNS=f"{place}/a{{b}}"))
    assert done.returncode == 2 and "MOST_RUNS=" in done.stderr and "braces" in done.stderr


def test_more_ranks_than_gpus_are_refused_before_an_attempt_is_opened(place: Path) -> None:
    env = usual(place, MOST_RUNS=f"{place}/runs", SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="4")
    words = ["--train.steps", "3"]
    done = launch(place, "stage1_asr_tts.sh", *words, SLURM_NTASKS_PER_NODE="8", **env)
    assert done.returncode == 2 and "8 ranks a node, and Slurm has granted 4 GPUs" in done.stderr, done.stderr
    assert not (place / "runs").exists()


def test_a_rank_leaves_its_code_and_a_wished_stop_is_no_failure(tmp_path: Path) -> None:
    def rank(number: int, code: int) -> int:
        env = {**os.environ, "SLURM_PROCID": str(number)}
        command = ["bash", str(ROOT / "launch" / "rank.sh"), str(tmp_path), "bash", "-c", f"exit {code}"]
        return subprocess.run(command, env=env).returncode

    assert [rank(0, 75), rank(1, 75), rank(2, 1), rank(3, 2)] == [0, 0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.75", "3.2"]

"""What is looked at before training: each node that is not fit is named and left, and the job goes on without it."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from megatron_most.jobs.facts import from_lines
from megatron_most.jobs.gpus import FIELDS
from tests.slurm.jobs import SMALL, Bench, python_that
from tests.slurm.sandbox import GPUS

TWO = ("--nodes=2", "--ntasks-per-node=1")
pytestmark = pytest.mark.timeout(900)  # as in test_slurm_life.py


def left_behind(bench: Bench, job: str, node: str) -> str:
    """Why an attempt left a node, once the next one has begun without it."""
    bench.await_attempt(2)
    end = bench.end(1)
    assert end["action"] == "leave", end
    assert bench.box.job(job)["ExcNodeList"] == node, bench.said(job)
    assert node not in bench.box.on("head", "scontrol", "show", "hostnames", bench.begin(2)["nodes"]).stdout.split()
    assert f"again without {node}" in bench.said(job) and f"preflight: {node}: " in bench.said(job)
    return end["reason"]


def test_a_node_without_the_data_is_named_and_left(bench: Bench) -> None:
    sets = str(bench.data / "asr" / "train")
    bench.box.on("n2", "mount", "-t", "tmpfs", "none", sets)
    try:
        job = bench.submit(*TWO, steps=2)
        reason = left_behind(bench, job, "n2")
        assert sets in reason and "n2: " in reason and "n1: " not in reason
        bench.box.await_state(job, "COMPLETED", seconds=200)
    finally:
        bench.box.on("n2", "umount", sets)


def test_nodes_with_another_version_of_a_package_and_with_a_wrong_clock_are_named_and_left(bench: Bench) -> None:
    (bench.folder / "old" / "torch-0.0.1.dist-info").mkdir(parents=True)
    (bench.folder / "late").mkdir()
    (bench.folder / "late" / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() - 60\n"
    )
    lines = [
        f'[ "$(hostname)" != {node} ] || export PYTHONPATH={shlex.quote(str(bench.folder / name))}:$PYTHONPATH'
        for node, name in (("n2", "old"), ("n3", "late"))
    ]
    bench.write_env(MOST_PYTHON=python_that(bench.folder, "\n".join(lines)))
    job = bench.submit(*TWO, steps=2)
    assert "package torch: 0.0.1, not " in left_behind(bench, job, "n2")
    bench.box.wait((bench.attempt(2) / "end.json").exists, 90, "the end of attempt 2")
    assert "n3: its clock is off by at least " in bench.end(2)["reason"]


def test_sick_gpus_are_left_node_by_node(bench: Bench) -> None:
    """nvidia-smi is a program that replays what it says: n2 has one with errors, n3 lacks one and has a slow one."""
    fine = ["NVIDIA H100 80GB HBM3", "570.86.10", "81559", "4", "0", *["Not Active"] * 4]
    assert len(fine) == len(FIELDS) - 1
    told = {"n1": fine, "n2": [*fine[:4], "17", *fine[5:]], "n3": [*fine[:6], "Active", *fine[7:]]}
    for node, words in told.items():
        lines = [", ".join([str(number), *(words if number == 3 else fine)]) for number in range(GPUS - (node == "n3"))]
        (bench.folder / f"gpus of {node}").write_text("\n".join(lines) + "\n")
    program = bench.folder / "nvidia-smi"
    program.write_text(f'#!/bin/bash\ncat "{bench.folder}/gpus of $(hostname)"\n')
    program.chmod(0o755)
    bench.write_env(MOST_NVIDIA_SMI=str(program))
    job = bench.submit(*TWO, steps=2)
    assert "n2: GPU 3 has 17 uncorrected memory errors" in left_behind(bench, job, "n2")
    bench.box.wait((bench.attempt(2) / "end.json").exists, 90, "the end of attempt 2")
    assert "n3: 7 GPUs are seen, 8 were granted" in bench.end(2)["reason"]
    assert "preflight: n3: GPU 3 is slowed down (hw_thermal_slowdown)" in bench.said(job)
    bench.box.wait(lambda: bench.box.job(job).get("ExcNodeList") in ("n[2-3]", "n2,n3"), 30, "both being left")


def test_a_node_without_the_interpreter_is_left_by_a_job_that_asks_for_gpus_as_its_site_wants(bench: Bench) -> None:
    """Submitted from the clone by a relative name, with --gres for --gpus-per-node: 4 of the 8 GPUs that a node has."""
    (bench.folder / "env").mkdir()
    bench.write_env(MOST_PYTHON=python_that(bench.folder / "env", ""), MOST_NVIDIA_SMI=str(bench.folder / "nvidia-smi"))
    fine = ", ".join(["NVIDIA H100 80GB HBM3", "570.86.10", "81559", "4", "0", *["Not Active"] * 4])
    program = bench.folder / "nvidia-smi"
    program.write_text(f'#!/bin/bash\nfor n in {{0..7}}; do echo "$n, {fine}"; done\n')
    program.chmod(0o755)
    bench.box.on("n2", "mount", "-t", "tmpfs", "none", str(bench.folder / "env"))
    try:
        words = [*TWO, "--gpus-per-node=0", "--gres=gpu:4", "launch/stage1_asr_tts.sh", *SMALL, "--train.steps", "2"]
        env = {"MOST_CLUSTER_ENV": str(bench.folder / "cluster.env")}
        logs = ["--output", str(bench.folder / "%x-%j.log")]
        job = bench.box.sbatch(*logs, *words, cwd=bench.folder / "clone", **env)
        bench.note(job)
        assert "it did not answer; its words are above" in left_behind(bench, job, "n2")
        assert "python that differs" in bench.said(job) and "No such file or directory" in bench.said(job)
        bench.box.await_state(job, "COMPLETED", seconds=200)
    finally:
        bench.box.on("n2", "umount", str(bench.folder / "env"))
    nodes = from_lines((bench.attempt(2) / "preflight.facts").read_text().splitlines())
    assert [len(node["gpus"]["gpus"]) for node in nodes] == [4, 4]


def test_gpus_that_were_granted_and_cannot_be_asked_for_end_the_job(bench: Bench) -> None:
    bench.write_env(MOST_NVIDIA_SMI=str(bench.folder / "no such program"))
    job = bench.submit(*TWO, steps=2)
    bench.box.await_state(job, "FAILED", seconds=90)
    assert "no node is fit" in bench.said(job) and "does not run" in bench.end(1)["reason"]


def test_ranks_meet_at_another_port_where_theirs_is_taken(bench: Bench) -> None:
    job = bench.submit("--hold", "--nodelist=n1,n2", *TWO, steps=2)
    port = 29500 + int(job) % 2000
    listen = f"import socket,time; s=socket.socket(); s.bind(('', {port})); s.listen(); time.sleep(600)"
    command = [*bench.box.enter("n1"), bench.env["MOST_PYTHON"], "-c", listen]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command]) as taken:
        try:
            time.sleep(1)
            assert taken.poll() is None
            bench.box.on("head", "scontrol", "release", job)
            bench.box.await_state(job, "COMPLETED", seconds=200)
        finally:
            taken.kill()
    assert f"port {port} is taken on the first node; ranks meet at {port + 1}" in bench.said(job)


def test_a_slow_link_below_the_floor_is_named(bench: Bench) -> None:
    bench.write_env(MOST_LINK_FLOOR_GBPS="0.006", MOST_LINK_MB="2")
    slow = "tc qdisc replace dev vn2 root tbf rate 20mbit burst 64kb latency 400ms".split()
    if bench.box.on("head", *slow, check=False).returncode:
        pytest.skip("the kernel has no token bucket filter (tc qdisc ... tbf)")
    try:
        job = bench.submit("--nodes=3", "--ntasks-per-node=1", steps=2)
        bench.box.wait((bench.attempt(1) / "end.json").exists, 240, "the verdict")
        assert "n2: all-reduce with " in bench.end(1)["reason"], bench.end(1)
        assert bench.end(1)["action"] == "leave" and "n1:" not in bench.end(1)["reason"]
        # Three nodes are all there are, so that without one the job waits.
        bench.box.wait(lambda: bench.box.job(job).get("ExcNodeList") == "n2", 60, "n2 being excluded")
        bench.box.await_state(job, "PENDING", seconds=60)
    finally:
        bench.box.on("head", "tc", "qdisc", "del", "dev", "vn2", "root")


def test_a_full_disk_ends_the_job_with_the_reason_and_keeps_what_was_saved(bench: Bench) -> None:
    at = bench.folder / "small disk"
    at.mkdir()
    bench.box.on("n1", "mount", "-t", "tmpfs", "-o", "size=20m", "none", str(at))
    try:
        bench.write_env(MOST_RUNS=str(at))
        job = bench.submit("--nodes=1", "--ntasks-per-node=1", "--nodelist=n1", steps=100_000)
        saved = f"cd {shlex.quote(str(at))}/stage1-tiny/checkpoints && ls -d step-*"

        def count() -> int:
            return len(bench.box.on("n1", "bash", "-c", saved, check=False).stdout.splitlines())

        bench.box.wait(lambda: count() >= 2, 200, "two checkpoints")
        bench.box.on("n1", "dd", "if=/dev/zero", f"of={at}/fill", "bs=1k", check=False)
        bench.box.await_state(job, "FAILED", seconds=120)
        assert "No space left on device" in bench.said(job) and "make room" in bench.said(job)
        bench.box.on("n1", "rm", f"{at}/fill")
        assert "Traceback" not in bench.said(job)
        newest = f"{saved} && cd $(ls -d step-* | tail -1)"
        whole = '[ "$(sha256sum < manifest.json | cut -c1-64)" = "$(cat manifest.sha256)" ]'
        bench.box.on("n1", "bash", "-c", f"{newest} && {whole}")
    finally:
        bench.box.on("n1", "umount", "-l", str(at), check=False)


def test_nothing_is_looked_at_where_that_is_wished(bench: Bench) -> None:
    bench.write_env(MOST_PREFLIGHT="0", MOST_NVIDIA_SMI=str(bench.folder / "no such program"))
    job = bench.submit("--nodes=1", "--ntasks-per-node=1", steps=2)
    bench.box.await_state(job, "COMPLETED", seconds=150)
    assert not Path(bench.attempt(1) / "preflight.facts").exists()

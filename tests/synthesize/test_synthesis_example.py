"""examples/synthesis/run.py: from seeds to steps of phase 2, killed at random moments of each of its steps.

All processes of a run are killed at once, as an out-of-memory kill of its control group or a node's end does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data_files import content
from tests.doc_words import commands_by, smaller

ROOT = Path(__file__).resolve().parents[2]
KILLS = 12
CLOCKS = ("run/metrics.jsonl", "run/tensorboard/")
"""What tells the time: compared by its losses alone, and not at all."""
SUMS = ("/manifest.sha256", "run/checkpoints/latest")
"""Of the manifests of checkpoints, which tell the attempt and the datasets' times, and are compared without."""


def begin(out: Path, log: Path) -> subprocess.Popen[bytes]:
    by = "synthesize/test_synthesis_example.py::test_a_dozen_kills_leave_the_bytes_of_an_unbroken_run"
    [command] = commands_by(by, out.parent)
    words = [sys.executable, str(ROOT / command.words[1]), *smaller(command.smaller[2:], f"--out {out}")]
    with open(log, "wb") as file:
        return subprocess.Popen(
            words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def steps(log: Path) -> list[str]:
    """The commands that were echoed, without what is the same in all."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.startswith("$ ")]


def made(out: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, data in content(out).items():
        if name.startswith("run/checkpoints/") and name.endswith("/manifest.json"):
            manifest = {**json.loads(data), "attempt": 0}
            del manifest["training"]["loop"]["files"]  # when each file of the datasets was written
            data = json.dumps(manifest).encode()
        if not name.startswith(CLOCKS) and not name.endswith(SUMS):
            found[name] = data
    return found


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "gradient_norm" in line}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_dozen_kills_leave_the_bytes_of_an_unbroken_run(tmp_path: Path) -> None:
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed: apt install flite")
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed: pip install pocketsphinx")
    out, kept, log = tmp_path / "out", tmp_path / "unbroken", tmp_path / "log"
    assert begin(out, log).wait(600) == 0, log.read_text()[-3000:]
    out.rename(kept)  # paths are in the files, so both are made in one place
    found = json.loads((kept / "summary.json").read_text())
    assert found["dialogues with speech"] > 5 and found["dialogues without"] > 1 and found["hours of speech"] > 0.01
    assert found["word error rate of those kept"] < 0.2 and found["steps"] == 4 and len(losses(kept)) == 4
    assert found["loss"][1] < found["loss"][0]

    every, draw = steps(log), random.Random(11)
    assert len(every) == 14
    long = [step for step in every if "synthesize.py speak" in step or "train.py" in step]
    victims = sorted([*range(len(every)), *(every.index(step) for step in long)])
    victims = sorted(draw.sample(victims, KILLS))
    killed = 0
    for victim in victims:  # or a later one, where it had ended just before the last kill
        process, until = begin(out, log), time.monotonic() + 300
        while not set(every[victim:]) & set(steps(log)):
            assert time.monotonic() < until and process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 8 if every[victim] in long else 4))
        killed += process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed >= 10
    assert begin(out, log).wait(600) == 0, log.read_text()[-3000:]
    assert made(out) == made(kept)
    assert losses(out) == losses(kept)
    summary = (out / "summary.json").read_bytes()
    assert begin(out, log).wait(300) == 0 and len(steps(log)) == 2  # verified, and seen to be trained
    assert (out / "summary.json").read_bytes() == summary

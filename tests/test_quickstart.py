"""make demo: what it trains on and what it is asked are apart, it goes on after a kill, and it says what is missing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_most.config import Facts, TaskConfig, build, dump, load_recipe
from megatron_most.errors import DataError
from megatron_most.runtime import write_atomically
from tests.doc_words import of_make
from tests.offline import tried, without_network

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

import demo  # noqa: E402  (a folder of scripts, as it is when demo.py is run)
import speech  # noqa: E402
from corpus import Corpus, write_corpus  # noqa: E402
from domain import PHRASES, sentences, words  # noqa: E402
from figures import players, summarise  # noqa: E402
from recipes import write_recipes  # noqa: E402
from steps import Steps, require_room  # noqa: E402

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="no flite here: sudo apt install flite")


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_the_domain_is_as_large_as_is_said() -> None:
    full = demo.SCALES["full"].corpus
    assert len(words()) >= 60 and full.train >= 300
    drawn = [one.text for one in sentences(full.test + full.texts, random.Random(full.seed))]
    assert len(set(drawn)) == len(drawn) and full.texts >= full.train


def test_no_part_of_a_sentence_is_one() -> None:
    """Phrases are drawn apart from test sentences, so none of them may be as long as one."""
    longest = max(len(one.text.split()) for one in sentences(40, random.Random(0), PHRASES))
    assert longest < min(len(one.text.split()) for one in sentences(40, random.Random(0))) + 1
    kinds = {tuple(kind for kind, _ in one.parts) for one in sentences(40, random.Random(0))}
    assert not kinds & {tuple(shape.split()) for shape in PHRASES}


@needs_flite
def test_what_is_evaluated_was_never_trained_on(tmp_path: Path) -> None:
    size = Corpus(train=6, phrases=0, test=4, unseen=2, stories=2, asked=3, texts=12)
    write_corpus(tmp_path, size)
    trained = set(texts(tmp_path / "train.jsonl"))
    trained |= {text for one in ("train", "texts") for text in texts(tmp_path / f"{one}.jsonl")}
    for name in ("test", "unseen", "shuffled"):
        assert not trained & set(texts(tmp_path / f"{name}.jsonl"))
    heard = [json.loads(line) for name in ("test", "unseen") for line in (tmp_path / f"{name}.jsonl").open()]
    assert {row["speaker"] for row in heard} == {*speech.VOICES, speech.UNSEEN}
    assert speech.UNSEEN not in {json.loads(line)["speaker"] for line in (tmp_path / "train.jsonl").open()}
    dialogues = (tmp_path / "written.jsonl").read_text() + (tmp_path / "spoken.jsonl").read_text()
    assert not any(text in dialogues for text in texts(tmp_path / "test.jsonl"))
    one = texts(tmp_path / "test.jsonl")[0]
    assert sorted(speech.read(tmp_path / "test/0000.wav")) == sorted(
        speech.read(tmp_path / "shuffled/test-0000.wav")
    ), one
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("t*/*.wav")}
    (tmp_path / "test/0001.wav").unlink()
    write_corpus(tmp_path, size)  # as after a kill
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed == {tmp_path / "test/0001.wav"}


@pytest.mark.parametrize("scale", demo.SCALES)
def test_its_recipes_are_runs(tmp_path: Path, scale: str) -> None:
    """Phase 1 on the imported base, phase 2 on phase 1, at every scale and in any folder."""
    tmp_path = tmp_path / 'a "place" \\ of é'
    (tmp_path / "base").mkdir(parents=True)
    (tmp_path / "base" / "resolved.toml").write_text(dump(load_recipe("most-tiny")))
    write_recipes(tmp_path, demo.SCALES[scale].steps, "resolved.toml", ranks=2)
    for phase, start, steps in zip(
        ("phase1", "phase2"), ("base", "runs/phase1"), demo.SCALES[scale].steps, strict=True
    ):
        config = load_recipe(tmp_path / f"{phase}.toml")
        build(config, Facts(world_size=2, device="cpu", core_version=(0, 16)))
        assert (config.train.steps, config.checkpoint.start_from) == (steps, str(tmp_path / start))
        shares = {one.name: getattr(config.data, one.name).weight for one in fields(config.data)
                  if isinstance(getattr(config.data, one.name), TaskConfig)}  # fmt: skip
        assert sum(shares.values()) == pytest.approx(1.0)
        assert all(getattr(config.data, name).train for name, share in shares.items() if share)


def test_a_finished_step_is_not_done_again_and_a_failed_one_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise DataError("broken off")

    steps = Steps(tmp_path, 2)
    steps.own("first", {"of": 1}, "words", lambda: done.append("first"))
    with pytest.raises(DataError, match="broken off"):
        steps.own("second", {}, "", fail)
    again = Steps(tmp_path, 2)
    again.own("first", {"of": 1}, "words", fail)
    again.own("second", {}, "", lambda: done.append("second"))
    assert done == ["first", "second"] and set(again.seconds) == {"first", "second"}
    assert "[1/2] first: done before" in capfd.readouterr().out
    Steps(tmp_path, 2).own("first", {"of": 1}, "", lambda: done.append("anew"), leaves=tmp_path / "gone")
    (tmp_path / "steps" / "second.json").write_text("")
    Steps(tmp_path, 2).own("second", {}, "", lambda: done.append("torn"))
    assert done[2:] == ["anew", "torn"], "what a step has left is looked for, and a torn mark is none"
    with pytest.raises(DataError, match=f"first was made by another command or other settings; remove {tmp_path}"):
        Steps(tmp_path, 2).own("first", {"of": 2}, "words", fail)


def test_a_command_is_echoed_and_its_failure_names_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"look: tools/train.py ended with code 2; see above"):
        Steps(tmp_path, 1).command("look", "tools/train.py", "--config", "none at all")
    assert "$ tools/train.py --config 'none at all'" in capfd.readouterr().out
    with pytest.raises(DataError, match=r"both: tools/train.py ended"):
        Steps(tmp_path, 1).command("both", "tools/train.py", "--config", "none at all", ranks=2)
    said = capfd.readouterr()
    assert "$ torchrun --standalone --nproc-per-node 2 tools/train.py" in said.out and "none at all" in said.err
    made = tmp_path / "made"
    made.mkdir()
    Steps(tmp_path, 1).command(
        "look", "tools/train.py", "--config", "none at all", makes=made
    )  # killed after it was made


def test_without_flite_there_is_one_line_that_helps(tmp_path: Path) -> None:
    command = [sys.executable, str(QUICKSTART / "demo.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "sudo apt install flite" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_figure_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(DataError, match="'asr/animals/test' is not there"):
        summarise(tmp_path, {}, "ci")


def test_a_wave_that_is_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"a.wav: no whole wave .*; remove it and start again"):
        speech.read(tmp_path / "a.wav")


def test_a_result_that_is_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation/heard/asr").mkdir(parents=True)
    (tmp_path / "evaluation/heard/asr/result.json").write_text('{"task": "as')
    with pytest.raises(DataError, match=r"asr/result.json: no result .*; remove .*/evaluation/heard, and run the same"):
        summarise(tmp_path, {}, "ci")


def test_a_demo_that_is_all_but_done_wants_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=500_000_000))
    with pytest.raises(DataError, match="0.5 GB free, and the demo wants 1;"):
        require_room(tmp_path)
    with open(tmp_path / "made", "wb") as file:
        file.truncate(800_000_000)
    require_room(tmp_path)


def test_players_say_what_is_heard(tmp_path: Path) -> None:
    audio = tmp_path / "evaluation/spoken/audio/animals-own-test"
    audio.mkdir(parents=True)
    (tmp_path / "evaluation/spoken/tts-animals-own-test").mkdir()
    heard = {"real": "two cats run", "resynthesised": "two cats", "generated": ""}
    lines = [{"id": f"animals-test-000{at}", "reference": f"two {at}", "heard": heard} for at in (4, 1)]
    records = tmp_path / "evaluation/spoken/tts-animals-own-test/records.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recording, again, said = players(tmp_path).items()
    assert recording[1] == tmp_path / "corpus/test/0001.wav" and "“two 1”" in recording[0]
    assert again == ("“two 1”, its units, spoken again; the judge hears “two cats”",
                     audio / "resynthesised/animals-test-0001.wav")  # fmt: skip
    assert said[1] == audio / "animals-test-0001.wav" and said[0].endswith("the judge hears “nothing”")


@needs_flite
def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, str(QUICKSTART / "demo.py"), "--scale", "ci", "--out", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not a folder" in done.stderr, done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    """What `make demo` does, as README.md and docs/quickstart.md have it; in small, and in a folder of the test's."""
    [(_, program, *given)] = of_make("demo", "ARGS=--scale ci")
    command = [sys.executable, "-u", str(ROOT / program), *given, "--out", str(out), *words]
    pipe, env = subprocess.PIPE, without_network(out.parent / "guard")
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=env)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo in small, run through, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "quickstart"
    process = start(out)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-4000:]
    assert not tried(out.parent / "guard"), "what is installed is enough for the demo"
    return out, said


@pytest.mark.slow
@needs_flite
def test_the_whole_demo_runs_in_small_and_again_does_nothing(unbroken: tuple[Path, str]) -> None:
    out, said = unbroken
    summary = json.loads((out / "summary.json").read_text())
    assert summary["items"]["asr/animals/test"] == demo.SCALES["ci"].corpus.test and summary["minutes"] > 0
    assert 0 <= summary["asr_wer"] and "Word errors" in (out / "report.html").read_text()
    numbers = re.findall(rf"^\[(\d+)/{demo.NUM_STEPS}\] ", said, re.M)
    assert numbers == [str(number + 1) for number in range(demo.NUM_STEPS)]
    own = len(re.findall(r"^\[.*\] (speech|recipes)$", said, re.M))
    assert own == 2 and len(re.findall(r"^\[.*\] [\w-]+\n\$ ", said, re.M)) == demo.NUM_STEPS - own, "echoed"
    assert "the judge hears" in (out / "report.html").read_text()
    write_atomically(out / "summary.json", "gone")
    again = start(out)
    told, _ = again.communicate(timeout=100)
    assert again.returncode == 0 and told.count("done before") == demo.NUM_STEPS
    assert json.loads((out / "summary.json").read_text()) == summary
    for gone in ("report.html", "routing.json", "export", "evaluation/heard"):
        shutil.rmtree(out / gone) if (out / gone).is_dir() else (out / gone).unlink()
    (out / "steps" / "listen.json").write_text("{}")
    again = start(out)
    told, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and told.count("is gone, so it is made again") == 4, told[-3000:]
    assert (out / "report.html").exists() and told.count("done before") == demo.NUM_STEPS - 5
    recipe = (out / "phase1.toml").read_text()
    longer = start(out, "--steps", "9", "2")
    told, _ = longer.communicate(timeout=100)
    assert longer.returncode == 2 and "recipes was made by another command or other settings" in told
    assert (out / "phase1.toml").read_text() == recipe, "of the run that is there"
    none = start(out, "--steps", "-5", "2")
    told, _ = none.communicate(timeout=100)
    assert none.returncode == 2 and "--steps -5 2: at least one of each phase" in told


@pytest.mark.slow
@needs_flite
def test_killed_again_and_again_it_comes_to_the_same_figures(unbroken: tuple[Path, str], tmp_path: Path) -> None:
    out, draw = tmp_path / "quickstart", random.Random(1)
    names = re.findall(rf"^\[\d+/{demo.NUM_STEPS}\] ([\w-]+)$", unbroken[1], re.M)
    at = {"speech", "fit-codec", "units-train", "import", "recipes", "phase1", "phase2", "evaluate", "evaluate-tts"}
    assert at < set(names) and len(names) == demo.NUM_STEPS
    at |= set(draw.sample(sorted(set(names) - at), 2))
    for name in (name for name in names if name in at):
        with start(out) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.endswith(f"] {name}\n"):
                    time.sleep(draw.uniform(0, 8))
                    os.killpg(process.pid, signal.SIGKILL)
                    break
    last = start(out)
    told, _ = last.communicate(timeout=900)
    assert last.returncode == 0, told[-4000:]
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, unbroken[0]))
    for summary in (ours, theirs):
        for name in ("minutes", "seconds"):
            summary.pop(name, None)
    assert ours == theirs

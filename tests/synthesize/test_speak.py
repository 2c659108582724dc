"""Dialogues become speech: voices kept through a dialogue, faults counted by reason, kills without a trace.

Voices are a small program of the test's own, so that it can be silent, noisy or broken at will; flite and a real judge
where they are installed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_most.data import run_prepare_data
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError, MostError
from megatron_most.synthesize import run_synthesize
from megatron_most.synthesize.unheard import Unheard
from megatron_most.synthesize.wer import check_wave, flatness, word_error_rate
from tests.data_files import content

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "examples" / "synthesis" / "seeds.toml"
PROGRAM = """
import array, math, random, sys, time, wave
voice, given, out = sys.argv[1:]
text = open(given).read()
draw, seconds, rate = random.Random(text), 0.4 * len(text.split()), 16000
count = int(rate * seconds)
if "honey" in text:
    samples = bytes(2 * count)
elif "whale" in text:
    samples = draw.randbytes(2 * count)
elif "coffee" in text.lower():
    samples = bytes([0, 20]) * 160
elif "sleep" in text:
    sys.exit("no voice today")
elif "train" in text:
    open(out, "w").write("no wave")
    sys.exit(0)
else:
    pitch = 100 + sum(voice.encode()) % 200
    turn = 2 * math.pi / rate
    second = array.array("h", (int(9000 * math.sin(4 * turn * n) * math.sin(pitch * turn * n)) for n in range(rate)))
    samples = (second * math.ceil(seconds)).tobytes()[: 2 * count]
with wave.open(out, "wb") as file:
    file.setparams((1, 2, rate, 0, "NONE", ""))
    file.writeframes(samples)
"""


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dialogues") / "d"
    run_synthesize(
        ["dialogues", "--seeds", str(SEEDS), "--dialogues", "24", "--out", str(out), "--shape.max-exchanges", "2"]
    )
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("voice") / "voice.py"
    path.write_text(PROGRAM)
    return f"{sys.executable} -S -E {path} {{voice}} {{text}} {{wave}}"


def words(dialogues: Path, out: Path, program: str, *more: str) -> list[str]:
    common = ["speak", "--dialogues", str(dialogues), "--out", str(out), "--name", "spoken", "--voices", "anna", "bob"]
    common += ["carl", "--voice.command", program, "--judge.name", "none", "--workers", "2", "--max-reject-rate", "0.9"]
    return [*common, *more]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, dialogues: Path, program: str) -> Path:
    out = tmp_path_factory.mktemp("speech") / "out"
    run_synthesize(words(dialogues, out, program))
    return out


def test_every_fault_of_a_voice_is_counted_and_the_run_goes_on(dialogues: Path, unbroken: Path) -> None:
    done = json.loads((unbroken / "speech.json").read_text())
    assert set(done["rejects"]) == {"silence", "noise", "wrong length", "voice failed"}
    assert done["spoken"] + done["written"] + sum(done["rejects"].values()) == 24
    assert done["spoken"] >= 10 and done["written"] >= 2
    told = [row["detail"] for row in rows(unbroken / "rejects.jsonl")]
    assert any("no voice today" in detail for detail in told) and any("its wave" in detail for detail in told)


def test_modes_and_voices_are_those_that_were_drawn(unbroken: Path) -> None:
    said = {f"spoken-{row['id']}": row for row in rows(unbroken / "utterances.jsonl")}
    modes = Counter()
    for row in rows(unbroken / "spoken.jsonl") + rows(unbroken / "written.jsonl"):
        spoken = {
            role: [message["content"][0]["speech"] for message in row["messages"]
                   if message["role"] == role and not isinstance(message["content"], str)]
            for role in ("user", "assistant")
        }  # fmt: skip
        written = {message["role"] for message in row["messages"] if isinstance(message["content"], str)}
        sides = {role for role in spoken if spoken[role]}
        assert not sides & written  # a side speaks in all its turns, or in none
        expected = {"speech_to_text": {"user"}, "text_to_speech": {"assistant"}, "text_to_text": set()}
        assert sides == expected.get(row["mode"], {"user", "assistant"})
        voices = {role: {said[id]["speaker"] for id in spoken[role]} for role in sides}
        assert all(len(found) == 1 for found in voices.values())
        if len(sides) == 2:
            assert voices["user"] != voices["assistant"]
        modes[row["mode"]] += 1
    assert set(modes) == {"speech_to_text", "text_to_speech", "speech_to_speech", "text_to_text"}
    assert {row["speaker"] for row in said.values()} == {"anna", "bob", "carl"}


def test_the_data_room_makes_documents_of_them(unbroken: Path, tmp_path: Path) -> None:
    def prepare(step: str, out: str, *words: str) -> Path:
        run_prepare_data([*step.split(), "--out", str(tmp_path / out), *words])
        return tmp_path / out

    terms = ["--licence", "CC0-1.0", "--source", "made"]
    lists = ["--files", str(unbroken / "utterances.jsonl"), "--audio-root", str(unbroken / "audio")]
    heard = str(prepare("manifest jsonl", "m", "--name", "spoken", *lists, *terms))
    codec = prepare("fit-codec", "c", "--manifest", heard, "--num-units", "16", "--hours", "0.01")
    units = prepare("units", "u", "--manifest", heard, "--codec", str(codec))
    tokenizer = prepare("fit-tokenizer", "t", "--manifest", heard, "--vocab-size", "400", "--num-units", "16")
    tokens = ["--tokenizer", str(tokenizer), "--tokens", str(tokenizer / "token_map.json")]
    for name, task, more in (("spoken", "speech-instruct", ["--units", str(units)]), ("written", "text-instruct", [])):
        files = ["--files", str(unbroken / f"{name}.jsonl")]
        chats = prepare("manifest chat", name, "--name", "talk", *files, *terms)
        built = prepare("build", task, "--task", task, "--manifest", str(chats), *tokens, *more)
        made = json.loads((built / "dataset.json").read_text())
        assert made["documents"] == len(rows(unbroken / f"{name}.jsonl")) and not made.get("rejects")


def test_killed_and_started_again_the_bytes_are_the_same(
    dialogues: Path, program: str, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    journal = tmp_path / "out.part" / ".journal.jsonl"
    command = [sys.executable, str(ROOT / "tools" / "synthesize.py"), *words(dialogues, out, program)]
    environment, taken = {**os.environ, "PYTHONPATH": str(ROOT)}, []
    for commits in (1, 2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= commits:
                break
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
        taken.append(json.loads(journal.read_bytes().splitlines()[-1])["progress"]["taken"])
    assert 0 < taken[0] < taken[1] < 24
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert content(out) == content(unbroken)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--voice.command", "no-such-program {text} {wave}"], "no program 'no-such-program'"),
        (["--voice.command", "cat {text}"], r"no \{wave\} in it"),
        (["--voice.command", "cat '{text} {wave}"], "close the quote"),
        (["--voice.url", "http://localhost:1"], "no more and no less"),
        (["--voices", "-o"], "give names of voices"),
        (["--weights.text-to-text", "-1"], "not shares"),
        (["--judge.name", "whisper"], "--judge.model"),
        (["--judge.max-wer", "-1"], "not an error rate"),
    ],
    ids=["program", "wave", "quote", "both", "voice", "weights", "model", "rate"],
)
def test_wrong_options_are_refused_by_name(
    dialogues: Path, program: str, tmp_path: Path, more: list[str], told: str
) -> None:
    given = words(dialogues, tmp_path / "out", program)
    if more == ["--voices", "-o"]:
        given, more = [word if word != "anna" else "a/b" for word in given], []
    with pytest.raises(DataError, match=told):
        run_synthesize([*given, *more])
    assert not (tmp_path / "out").exists()


def test_where_pocketsphinx_is_missing_voices_speak_and_what_to_do_is_named(
    dialogues: Path, program: str, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = words(dialogues, tmp_path / "out", program, "--judge.name", "pocketsphinx")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pocketsphinx", None)
        with pytest.raises(
            DataError, match="pip install pocketsphinx.*; or speak without a judge: .* 0 of 24 .* failed"
        ):
            run_synthesize(given)
    kept = list((tmp_path / "out.part" / "unheard").glob("*/*.npz"))
    assert len(kept) == json.loads((unbroken / "speech.json").read_text())["spoken"] and not (tmp_path / "out").exists()
    refused = [*given, "--judge.name", "whisper", "--judge.model", str(tmp_path / "no such folder")]
    with pytest.raises(MostError, match="no such folder"):
        run_synthesize([*refused[:-4], *refused[-4:], "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other.part").exists(), "without its folder a judge has no name, and the work none"


def test_what_nobody_has_to_hear_needs_no_judge(
    dialogues: Path, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    shares = [f"--weights.{mode}=0" for mode in ("speech-to-text", "text-to-speech", "speech-to-speech")]
    run_synthesize(words(dialogues, tmp_path / "out", program, "--judge.name", "pocketsphinx", *shares))
    assert json.loads((tmp_path / "out" / "speech.json").read_text())["written"] == 24


def test_faults_of_a_voice_do_not_hide_that_the_judge_is_gone(
    dialogues: Path, program: str, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        identity = "a judge"

        def transcribe(self, waves: list[np.ndarray]) -> list[str]:
            raise RuntimeError("device lost")

    monkeypatch.setattr("megatron_most.synthesize.hearing.load_judge", lambda name, **options: Gone())
    given = words(dialogues, tmp_path / "out", program, "--judge.name", "whisper", "--judge.model", str(tmp_path))
    with pytest.raises(DataError, match="device lost.* of 24 dialogues are in the lists"):
        run_synthesize(given)
    told = tmp_path / "out.part" / "rejects.jsonl"
    assert "judge failed" not in told.read_text()
    kept = list((tmp_path / "out.part" / "unheard").glob("*/*.npz"))
    assert len(kept) == json.loads((unbroken / "speech.json").read_text())["spoken"]


def test_waves_of_another_speaker_or_of_other_words_are_not_taken(tmp_path: Path) -> None:
    said, waves = [(0, "anna", "yes"), (2, "bob", "no")], [np.ones(3, np.float32), np.zeros(2, np.float32)]
    Unheard(tmp_path, {"voice": "one"}).keep("d1", said, waves)
    found = Unheard(tmp_path, {"voice": "one"}).find("d1", said)
    assert found is not None and all(map(np.array_equal, found, waves))
    assert Unheard(tmp_path, {"voice": "two"}).find("d1", said) is None
    assert Unheard(tmp_path, {"voice": "one"}).find("d1", [*said[:1], (2, "bob", "yes")]) is None
    assert Unheard(tmp_path, {"voice": "one"}).find("d2", said) is None


def test_a_higher_rate_of_rejects_goes_on_from_where_a_lower_one_ended(
    dialogues: Path, program: str, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="more than the rate of 0.01 allows.*raise --max-reject-rate"):
        run_synthesize(words(dialogues, tmp_path / "out", program, "--max-reject-rate", "0.01"))
    journal = tmp_path / "out.part" / ".journal.jsonl"
    assert json.loads(journal.read_bytes().splitlines()[-1])["progress"]["taken"] == 24
    run_synthesize(words(dialogues, tmp_path / "out", program))
    assert content(tmp_path / "out") == content(unbroken)  # what was set aside is so still


def test_a_real_voice_passes_a_real_judge_and_a_wrong_text_does_not(dialogues: Path, tmp_path: Path) -> None:
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed: apt install flite")
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed: pip install pocketsphinx")
    few = tmp_path / "d"
    run_synthesize(["dialogues", "--seeds", str(SEEDS), "--dialogues", "30", "--out", str(few), "--seed", "3",
                    "--shape.max-exchanges", "1", "--shape.interruptions", "0"])  # fmt: skip
    given = ["speak", "--dialogues", str(few), "--name", "spoken", "--voices", "rms", "slt", "--shard", "0/10"]
    given += ["--weights.text-to-text", "0", "--weights.speech-to-speech", "0", "--max-reject-rate", "1"]
    flite = "flite -voice {voice} -f {text} -o {wave}"
    run_synthesize([*given, "--out", str(tmp_path / "good"), "--voice.command", flite])
    good = json.loads((next((tmp_path / "good").iterdir()) / "speech.json").read_text())
    assert good["spoken"] >= 2
    # A voice that says something else, as long as it should be.
    wrong = tmp_path / "wrong.sh"
    wrong.write_text('tr "[:alpha:]" "[n-za-mN-ZA-M]" < $1 > $1.x; flite -voice rms -f $1.x -o $2\n')
    run_synthesize([*given, "--out", str(tmp_path / "wrong"), "--voice.command", f"sh {wrong} {{text}} {{wave}}"])
    bad = json.loads((next((tmp_path / "wrong").iterdir()) / "speech.json").read_text())
    assert bad["spoken"] == 0 and sum(bad["rejects"].values()) == 3


def test_waves_that_are_no_speech_are_told_apart() -> None:
    draw, text = np.random.default_rng(0), "one two three four five six"
    turn = 2 * np.pi * np.arange(32000) / 16000
    hum = np.sin(150 * turn).astype(np.float32) * 0.2
    voice = hum * np.abs(np.sin(4 * turn)).astype(np.float32)
    check_wave(voice, text, 16000)

    def coloured(power: float) -> np.ndarray:
        slopes = np.maximum(np.arange(16001), 20.0) ** (-power / 2)
        wave = np.fft.irfft(np.fft.rfft(draw.normal(size=32000)) * slopes)
        return (0.1 * wave / wave.std()).astype(np.float32)

    for wave, reason in (
        (np.zeros(32000, np.float32), "silence"),
        (draw.normal(0, 0.1, 32000).astype(np.float32), "noise"),
        (hum, "noise"),
        (hum + 0.2 * np.sin(7 * 150 * turn).astype(np.float32), "noise"),
        (coloured(1), "noise"),
        (coloured(2), "noise"),
        (voice[:1600], "wrong length"),
        (np.tile(voice, 10), "wrong length"),
        (voice * np.nan, "not sound"),
        (voice[:0], "not sound"),
    ):
        with pytest.raises(RowError) as caught:
            check_wave(wave, text, 16000)
        assert caught.value.reason == reason
    assert flatness(draw.normal(size=32000)) > 0.8 > 0.1 > flatness(voice)


def test_word_error_rate_is_that_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer", reason="jiwer is not installed: pip install jiwer")
    draw, known = np.random.default_rng(1), "a b c d e f".split()
    for _ in range(50):
        said, heard = (" ".join(draw.choice(known, draw.integers(1, 12))) for _ in range(2))
        assert word_error_rate(said, heard) == pytest.approx(jiwer.wer(said, heard), abs=1e-12)
    assert word_error_rate("Don't stop, NOW!", "dont stop now") == 0


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("It has two hundred and six bones in total.", "It has 206 bones in total."),
        ("The war ended in nineteen forty five.", "The war ended in 1945."),
        ("Sure, it costs three dollars and fifty cents.", "Sure, it costs $3.50."),
        ("Do you like the color gray?", "do you like the colour grey"),
    ],
)
def test_a_judge_may_write_figures_where_a_voice_was_given_words(said: str, heard: str) -> None:
    assert word_error_rate(said, heard) == 0
    assert word_error_rate(said, "something else was said here") > 0.5


@pytest.mark.parametrize("gone", ["mdef", "cmudict-en-us.dict"])
def test_a_judge_whose_model_is_not_whole_is_a_judge_that_is_away(
    gone: str, dialogues: Path, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed: pip install pocketsphinx")
    from megatron_most.speech import judge_pocketsphinx

    def missing(*args: object, **options: object) -> None:
        raise (RuntimeError("Failed to initialize PocketSphinx") if gone == "mdef" else FileNotFoundError(gone))

    monkeypatch.setattr(judge_pocketsphinx, "_decoder" if gone == "mdef" else "_dictionary", missing)
    with pytest.raises(DataError, match=r"the judge is gone: pocketsphinx: .*; or speak without a judge"):
        run_synthesize(words(dialogues, tmp_path / "out", program, "--judge.name", "pocketsphinx"))
    assert list((tmp_path / "out.part" / "unheard").glob("*/*.npz"))


def test_a_wrong_bit_in_a_kept_wave_is_spoken_again_or_harmless(tmp_path: Path) -> None:
    said = [(0, "anna", "yes")]
    unheard = Unheard(tmp_path, {"voice": "a"})
    unheard.keep("d", said, [np.linspace(-1, 1, 40, dtype=np.float32)])
    [path] = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 64):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            found = unheard.find("d", said)
            assert found is None or np.array_equal(found[0], np.linspace(-1, 1, 40, dtype=np.float32))
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)
    assert unheard.find("d", said) is None

"""TTS: what a judge hears of a model's speech, beside real, resynthesised and shuffled speech.

With a vocoder and a judge of wood (units written as samples, read back by looking them up) every rate is known
beforehand; with the real ones, where flite speaks, a model that has learnt sentences by heart is understood.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.converse import Talker, opened_hf
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.unit_set import open_units
from megatron_most.errors import DataError
from megatron_most.evaluate import Data, Options, Tools
from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.job import Setting, Share, run_task
from megatron_most.evaluate.speech import open_utterances
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.tasks.tts import Hearing, Tts
from megatron_most.speech import JudgeIdentity, fit_mfcc_codec, load_codec, save_codec, save_vocoder
from megatron_most.speech.codebook_fit import fit_codebook
from tests.data_files import cut, write_manifest
from tests.spoken_models import Spoken, apart, make_model, ran, read_records, teach

SENTENCES = [
    "the quick fox", "seven lazy owls", "a brown dog jumps", "watch from the barn", "old dogs watch owls",
    "over the lazy fox",
]  # fmt: skip


class WoodenVocoder:
    """One sample a unit."""

    sample_rate, num_speakers = 16000, 1

    def __init__(self, codec: Any) -> None:
        self.codec, self.codec_hash = codec, codec.hash

    def speak(self, units: Sequence[int], durations: Sequence[int] | None = None, speaker: int = 0) -> np.ndarray:
        return np.asarray(units, np.float32)


class WoodenJudge:
    """Knows the units of every sentence, and hears nothing else but "noise"; real speech is long."""

    identity = JudgeIdentity("wood", "oak", "0" * 64)

    def __init__(self, known: dict[tuple[int, ...], str], real: dict[int, str]) -> None:
        self._known, self._real = known, real

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        return [self._real.get(len(wave)) or self._known.get(tuple(map(int, wave)), "noise") for wave in waves]


class Loudness:
    name, measures, identity = "loudness", "the mean of its samples", "made up"

    def __call__(self, said: np.ndarray, real: np.ndarray, sample_rate: int) -> float:
        return float(said.mean())


def open_wooden(spoken: Spoken, folder: Path, judge_knows: bool = True, **changes: Any) -> Tts:
    from transformers import AutoModelForCausalLM

    opened = opened_hf(folder, AutoModelForCausalLM.from_pretrained(folder))
    facts = {"folder": str(folder), "hash": "0" * 64, "precision": "float32"}
    subject = Subject(talker=Talker(opened), facts=facts, may_differ=True)
    units = open_units(spoken.root / "units")
    utterances = open_utterances(spoken.manifest, units, None, None, 60.0)
    known = {tuple(units.find(n).units.tolist()): said for n, said in enumerate(spoken.sentences)}
    real = {
        round(row.duration * 16000): f"{row.text} indeed" for row in utterances.rows
    }  # so the judge hears a word too much in each recording
    codec = load_codec(spoken.root / "codec").identity
    given: dict[str, Any] = dict(
        vocoder=WoodenVocoder(codec), vocoder_hash="1" * 64, judge=WoodenJudge(known, real), measures=[Loudness()]
    )
    return Tts(subject, utterances, Hearing(**{**given, **changes}), Decoding(max_new_tokens=80), seed=3)


def wooden_result(spoken: Spoken, folder: Path, out: Path) -> Any:
    task = open_wooden(spoken, folder, keep=out / "audio")
    setting = Setting(
        out=out, model={"hash": "0" * 64, "folder": str(folder), "precision": "float32"}, share=Share(), batch_size=4,
        seeds={"generation": 3, "bootstrap": 0}, versions={},
    )  # fmt: skip
    return run_task(task, setting).to_json()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("tts") / "spoken", utterances=6)


def test_each_side_is_heard_by_itself_and_counted_against_the_same_words(spoken, tmp_path):
    import json

    learnt = make_model(spoken, tmp_path / "learnt")
    assert teach(learnt, spoken.documents("tts"), 130, 6e-3)[-1] < 0.05
    result = json.loads(apart(wooden_result, spoken, learnt, tmp_path / "out"))
    words = sum(len(said.split()) for said in spoken.sentences)
    wer = {side: score["value"] for side, score in result["parts"]["wer"].items()}
    assert wer["resynthesised"] == 0 and wer["real"] == pytest.approx(6 / words)  # a word too much in each of 6
    assert wer["generated"] == result["scores"]["wer"]["value"] < 0.2 and wer["shuffled"] > 0.9
    assert result["config"]["judge"]["name"] == "wood" and result["scores"]["loudness"]["items"] == 6
    records = read_records(tmp_path / "out" / "tts-test-test")
    assert records[0]["heard"]["real"] == f"{spoken.sentences[0]} indeed"
    for folder in ("audio", "audio/resynthesised"):
        assert len(list((tmp_path / "out" / folder).glob("*.wav"))) == 6

    untaught = make_model(spoken, tmp_path / "untaught")
    before = json.loads(apart(wooden_result, spoken, untaught, tmp_path / "before"))
    assert before["scores"]["wer"]["value"] > 0.9 and before["parts"]["wer"]["resynthesised"]["value"] == 0


def test_a_vocoder_of_another_codec_is_refused(spoken, tmp_path):
    folder = make_model(spoken, tmp_path / "model")

    class Other:
        hash, name = "f" * 64, "other"

    def body() -> str:
        with pytest.raises(DataError) as told:
            open_wooden(spoken, folder, vocoder=WoodenVocoder(Other()))
        return str(told.value)

    assert "ffffffffffff" in apart(body) and spoken.codec_key[:12] in apart(body)


def speak(text: str, path: Path) -> np.ndarray:
    """By flite, at 16 kHz."""
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", str(path)], check=True, capture_output=True)
    wave, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    return wave


@pytest.mark.skipif(shutil.which("flite") is None, reason="apt install flite")
def test_sentences_learnt_by_heart_pass_the_judge_where_their_resynthesis_does(tmp_path):
    spoken = Flite(tmp_path / "flite")
    learnt = make_model(spoken, tmp_path / "learnt")
    assert teach(learnt, spoken.documents("tts"), 90, 6e-3)[-1] < 0.05
    asked = Options(
        tasks=("tts",), model=learnt, out=tmp_path / "out", batch_size=6, decoding=Decoding(max_new_tokens=200),
        data=Data(manifest=(spoken.root / "manifest",), units=(spoken.root / "units",)),
        tools=Tools(vocoder=spoken.root / "vocoder", judge="pocketsphinx", judge_hears="words"),
    )  # fmt: skip
    [result] = ran(asked)
    wer = {side: score.value for side, score in result.parts["wer"].items()}
    print("judge's WER:", wer)
    assert wer["real"] < 0.2 and wer["resynthesised"] < 0.4
    assert wer["generated"] <= wer["resynthesised"] + 0.2 and wer["shuffled"] > wer["generated"] + 0.3
    assert result.config["judge"]["name"] == "pocketsphinx"


class Flite(Spoken):
    """Synthetic speech, with a codec and a codebook vocoder fitted on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.sentences = root, SENTENCES
        (root / "audio").mkdir(parents=True)
        waves = [speak(said, root / "audio" / f"u{number}.wav") for number, said in enumerate(SENTENCES)]
        more = [speak(said, root / "more.wav") for said in (f"{a} {b}" for a in SENTENCES for b in SENTENCES[::2])]
        rows = [
            cut(f"u{n}", f"u{n}.wav", 0, len(wave) / 16000, len(wave) / 16000, text=said, language="en")
            for n, (said, wave) in enumerate(zip(SENTENCES, waves, strict=True))
        ]
        write_manifest(root / "manifest", rows, root / "audio", split="test", language="en")
        codec = fit_mfcc_codec([*waves, *more], self.num_units, 0.02)
        save_codec(codec, root / "codec")
        fitted = fit_codebook(((wave, codec.encode([wave])[0], 0) for wave in [*waves, *more]), codec.identity)
        save_vocoder(fitted, root / "vocoder")
        self.fit_words()
        extract_units(self.manifest, codec, root / "units", (0, 1), ExtractOptions(), root / "audio")

    num_units = 100

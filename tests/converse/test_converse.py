"""Talking to a model that has been trained: by the command, by the Talker, with what belongs to it and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_most.converse import Talker, models, open_any, open_ears, run_generate
from megatron_most.convert import run_convert_ckpt
from megatron_most.data import MadeWith
from megatron_most.errors import MostError
from megatron_most.generate import Settings
from megatron_most.runtime import Launch
from megatron_most.speech import load_codec
from megatron_most.speech.vocoder_files import load_vocoder
from tests.data_files import make_codec, sound
from tests.doc_words import commands_by
from tests.harness import launch_ranks
from tests.phases import recipe, run
from tests.talkable import make_talkable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talkable(tmp_path_factory.mktemp("made"))


def said(root: Path, *words: str) -> tuple[int, str]:
    """The command's exit code and what it printed, or its error."""

    def body(launch: Launch) -> int:
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                run_generate(["--model", str(root / "run"), "--max-new-tokens", "12", *words])
        except MostError as error:
            out = io.StringIO(str(error))
            (root / "said").write_text(out.getvalue())
            return 2
        (root / "said").write_text(out.getvalue())
        return 0

    [code] = launch_ranks(body, 1)
    return code, (root / "said").read_text()


def its_own(root: Path) -> list[str]:
    return ["--tokenizer", str(root / "data" / "tokenizer"), "--codec", str(root / "data" / "codec")]


def test_speech_in_text_out_and_text_in_units_out(made: Path) -> None:
    code, text = said(made, *its_own(made), "--audio", str(made / "hello.wav"))
    assert code == 0 and "[Hu" not in text, text
    code, units = said(made, *its_own(made), "--prompt", "the quick fox", "--task", "tts", "--temperature", "1")
    assert code == 0 and units.startswith("[Hu"), units
    code, again = said(made, *its_own(made), "--prompt", "the quick fox", "--task", "tts", "--temperature", "1")
    assert again == units
    code, plain = said(made, *its_own(made), "--prompt", "the quick", "--task", "plain", "--mode", "text-only")
    assert code == 0 and plain.strip() and "[Hu" not in plain


def test_text_in_speech_out(made: Path, tmp_path: Path) -> None:
    words = [*its_own(made), "--prompt", "the quick fox", "--task", "tts", "--temperature", "1"]
    code, units = said(made, *words, "--vocoder", str(made / "vocoder"), "--out", str(tmp_path / "fox.wav"))
    wave, rate = soundfile.read(tmp_path / "fox.wav")
    assert code == 0 and rate == 16000 and len(wave) >= 0.04 * rate * units.count("[Hu") and np.abs(wave).max() > 0.01
    code, text = said(made, *words, "--vocoder", str(made / "other vocoder"), "--out", str(tmp_path / "x.wav"))
    assert code == 2 and "codec eeeeeeeeeeee" in text and not (tmp_path / "x.wav").exists()
    nobody = [*words, "--model", str(tmp_path / "nobody"), "--vocoder", str(made / "vocoder")]  # before it is opened
    assert "written as .wav or .flac" in said(made, *nobody, "--out", "x.mp3")[1]
    assert "speaker 7: no such voice" in said(made, *nobody, "--out", "x.wav", "--speaker", "7")[1]


def test_what_does_not_belong_to_the_model_is_refused(made: Path, tmp_path: Path) -> None:
    own, wave = its_own(made), str(made / "hello.wav")
    other = make_codec(tmp_path / "other", num_units=8)
    assert said(made, *own[:2], "--codec", str(other), "--audio", wave)[1].startswith("mfcc-25hz-8: codec")
    (tmp_path / "t").mkdir()
    definition = (made / "data" / "tokenizer" / "tokenizer.json").read_text()
    (tmp_path / "t" / "tokenizer.json").write_text(definition + "\n")
    refusals = [
        ([*own[:2], "--audio", wave], "a codec is needed to hear it"),
        (["--prompt", "hello"], "holds no tokenizer; give that of its data"),
        (["--tokenizer", str(tmp_path / "t"), "--prompt", "hello"], "has learnt text of"),
        ([*own, "--prompt", "hello", "--templates", "release"], "give --trust-templates to ask in other words"),
        ([*own], "nothing to answer"),
        ([*own, "--prompt", "x", "--out", "x.wav"], "speech needs --out and --vocoder"),
        ([*own, "--prompt", "x", "--audio", wave, "--task", "asr"], "task asr takes speech and no text"),
        ([*own, "--prompt", "x", "--top-p", "7"], "top_p = 7.0"),
    ]
    for words, message in refusals:
        code, text = said(made, *words)
        assert code == 2 and message in text, (words, text)


def test_units_of_a_model_that_does_not_say_whose_it_has_learnt_are_taken_on_trust_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a published model, imported: nothing there says which codec it was."""
    monkeypatch.setattr(models, "made_with_of", lambda folder: MadeWith())
    words = [*its_own(made), "--templates", "chat", "--audio", str(made / "hello.wav")]
    code, text = said(made, *words)
    assert code == 2 and "does not say which codec" in text and "--trust-codec" in text, text
    code, text = said(made, *words, "--trust-codec")
    assert code == 0, text


def test_other_templates_are_taken_where_that_is_asked_for(made: Path) -> None:
    other = ["--templates", "release", "--trust-templates"]
    code, text = said(made, *its_own(made), "--prompt", "hello", "--mode", "text-only", *other)
    assert code == 0 and text.strip(), text


def sounds(folder: Path) -> dict[str, str]:
    """Files that cannot be heard, and why."""
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(folder / "click.wav", np.zeros(20, np.float32), 16000)
    soundfile.write(folder / "hour.wav", sound(400, 3, rate=8000), 8000)
    soundfile.write(folder / "hours.flac", np.zeros(7200 * 8000, np.int16), 8000)
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(40))
    names = {"empty.wav": "no samples", "click.wav": "the codec needs", "hour.wav": "positions; cut it"}
    names |= {"hours.flac": "7200 s; at most 600 s are heard at once"}
    return {**names, "broken.wav": "cannot be heard", "missing.wav": "cannot be heard"}


def talk(launch: Launch, root: Path, folder: Path) -> int:
    codec = load_codec(root / "data" / "codec")
    with open_any(root / "run", launch=launch) as opened:
        talker = Talker(opened, tokenizer=root / "data" / "tokenizer", ears=open_ears(opened, codec))
        for name, message in sounds(folder).items():
            with pytest.raises(MostError, match=message):
                talker.hear(folder / name)
        units = talker.hear(root / "hello.wav")
        assert 5 < len(units) < 60
        prompts = [talker.prompt("asr", heard=units), talker.prompt("chat", "why?", units)]
        prompts += [talker.prompt("tts", "the fox"), talker.prompt("plain", "the fox")]
        settings = [Settings(max_new_tokens=9, mode=mode) for mode in ("text-only", "free", "audio-only", "free")]
        asr, chat, tts, plain = talker.answer(prompts, settings)
        assert asr.text and not asr.units and not tts.text
        assert len(tts.units) == 1 and tts.answer.tags.count(1) == len(tts.units[0]) + tts.answer.ids.count(
            opened.model.tokens.begin_audio_id
        ) + tts.answer.ids.count(opened.model.tokens.end_audio_id)
        voice = load_vocoder(root / "vocoder")
        assert np.array_equal(talker.speak(tts, voice), voice.speak(tts.units[0]))
        with pytest.raises(MostError, match="holds no speech"):
            talker.speak(asr, voice)
        with pytest.raises(MostError, match="the vocoder: codec eeee"):
            talker.speak(tts, load_vocoder(root / "other vocoder"))
    return 0


def test_a_talker_hears_answers_and_speaks(made: Path, tmp_path: Path) -> None:
    assert launch_ranks(talk, 1, made, tmp_path) == [0]


def test_the_checkpoint_knows_what_its_data_was_made_with(made: Path) -> None:
    known = MadeWith.load(made / "run" / "checkpoints" / "step-00000004" / "made_with.json")
    assert known.codec is not None and known.codec.hash == load_codec(made / "data" / "codec").identity.hash
    assert known.tokenizer is not None and [name for name, _ in known.templates] == ["chat"]
    phase = recipe(made / "data", made / "text", **{
        "train.steps": 1, "train.validate_every": 0, "checkpoint.start_from": str(made / "run"),
        "data.asr.weight": 0.0, "data.asr.train": [], "data.asr.valid": [],
        "data.tts.weight": 0.0, "data.tts.train": [], "data.text_lm.weight": 1.0,
    })  # fmt: skip
    run(phase)  # on text alone; what was learnt before is still known
    assert MadeWith.load(made / "text" / "checkpoints" / "step-00000001" / "made_with.json").codec == known.codec


ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_of_the_guide_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    links = {"runs/stage1": "run", "DATA": "data", "question.wav": "hello.wav", "VOCODER": "vocoder"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(made / target)
    monkeypatch.chdir(tmp_path)

    def export(_: Launch) -> int:
        files = ["--source", "runs/stage1", "--out", "exports/most", "--tokenizer", "DATA/tokenizer"]
        run_convert_ckpt(["export", *files, "--no-gate"])
        return 0

    def follow(launch: Launch, words: list[str]) -> int:
        run_generate(words)
        return 0

    (tmp_path / "exports").mkdir()
    assert launch_ranks(export, 1) == [0]
    known = MadeWith.load(tmp_path / "exports" / "most" / "made_with.json")
    assert known.codec is not None, "it goes along"
    guide = commands_by("converse/test_converse.py::test_the_commands_of_the_guide_run", tmp_path)
    assert len(guide) == 3
    for command in guide:
        program, tool, *words = command.smaller
        assert (program, tool) == (".venv/bin/python", "tools/generate.py")
        assert launch_ranks(follow, 1, words) == [0], words
    assert soundfile.info("morning.wav").frames > 0


@pytest.mark.slow
def test_the_command_of_two_processes_says_what_one_does(made: Path, tmp_path: Path) -> None:
    """torch's own launcher imports everything in each of them."""
    by = "converse/test_converse.py::test_the_command_of_two_processes_says_what_one_does"
    [words] = [command.smaller[1:] for command in commands_by(by, tmp_path)]
    (tmp_path / "runs").mkdir()
    for name, target in {"runs/stage1": "run", "DATA": "data"}.items():
        (tmp_path / name).symlink_to(made / target)
    words = [str(ROOT / word) if word == "tools/generate.py" else word for word in words]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300, stdout=subprocess.PIPE)
    alone = said(made, "--tokenizer", str(made / "data" / "tokenizer"), "--prompt", "Hello.")
    assert alone == (0, found.stdout.decode()) and alone[1].strip()


def test_the_routing_of_an_exchange_keeps_each_tag_to_its_own_experts(made: Path) -> None:
    out = made / "routing.json"
    code, text = said(made, *its_own(made), "--audio", str(made / "hello.wav"), "--routing", str(out))
    assert code == 0
    found = json.loads(out.read_text())
    assert found["layers"] and len(found["experts"]) == len(found["layers"])
    assert {token["tag"] for token in found["tokens"]} == {"text", "audio"}
    assert any(token["says"].startswith("[Hu") for token in found["tokens"])
    answer = "".join(token["says"] for token in found["tokens"] if token["tag"] == "text")
    assert text.strip() in answer or not text.strip()
    for layer in found["experts"]:
        assert len(layer) == len(found["tokens"])
        for token, experts in zip(found["tokens"], layer, strict=True):
            assert len(experts) == 2 and set(experts) <= set(found["groups"][token["tag"]])
        assert len({tuple(experts) for experts in layer}) > 2  # a choice, not the same for all


def test_routing_is_refused_where_nobody_can_tell(made: Path, tmp_path: Path) -> None:
    words = ["--source", str(made / "run"), "--out", str(tmp_path / "hf"), "--no-gate"]
    tokenizer = ["--tokenizer", str(made / "data" / "tokenizer")]
    assert launch_ranks(lambda launch: run_convert_ckpt(["export", *words, *tokenizer]) or 0, 1) == [0]
    wave = ["--audio", str(made / "hello.wav"), "--routing", str(tmp_path / "routing.json")]
    code, text = said(made, *its_own(made), *wave, "--model", str(tmp_path / "hf"))
    assert code == 2 and "only a checkpoint of ours" in text and not (tmp_path / "routing.json").exists()

"""Jobs: killed ones continue to the same result, ranks share items, faults are told and the rest is kept."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.checkpoint import MADE_WITH
from megatron_most.converse.models import open_hf
from megatron_most.errors import CheckpointError, ConfigError
from megatron_most.evaluate import Data, Options, Result, Tools, evaluate, read_result
from megatron_most.evaluate import job as jobs
from megatron_most.evaluate.decoding import Decoding
from megatron_most.runtime import Launch, find_device
from tests.data_files import RATE, cut, make_codec, write_manifest
from tests.harness import launch_ranks
from tests.spoken_models import Spoken, alone, make_model, ran, refused

ASR = "asr-test-test"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("jobs") / "spoken", utterances=11)


@pytest.fixture(scope="module")
def model(spoken) -> Path:
    return make_model(spoken, spoken.root / "model")


def options(spoken: Spoken, model: Path, out: Path, **changes: Any) -> Options:
    data = Data(manifest=(spoken.root / "manifest",), units=(spoken.root / "units",))
    given: dict[str, Any] = dict(
        tasks=("asr",), model=model, out=out, data=data, batch_size=2,
        decoding=Decoding(max_new_tokens=6, temperature=1.0),
    )  # fmt: skip
    return Options(**{**given, **changes})


def run(asked: Options, ranks: int = 1) -> Result:
    ran(asked, ranks)
    return read_result(asked.out / ASR)


def but(asked: Options, **changes: Any) -> Options:
    return replace(asked, **changes)


def same(first: Path, second: Path) -> None:
    """Records to the byte, and all of the result but its speed."""
    assert (first / "records.jsonl").read_bytes() == (second / "records.jsonl").read_bytes()
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (first, second))
    for name in ("speed", "ranks"):
        del ours[name], theirs[name]
    assert ours == theirs


def die_after_batches(launch: Launch, asked: Options, batches: int) -> int:
    """The third batch's records are half written when the process is killed."""
    write, done = jobs._write, []

    def torn(file: Any, part: Path, *rest: Any) -> None:
        if len(done) == batches:
            file.write(b'{"number": 7, "id": "u7", "hypo')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(None)
        write(file, part, *rest)

    jobs._write = torn
    evaluate(asked, alone(launch))
    return 0


def test_a_killed_run_continues_to_the_same_result_on_any_number_of_ranks(spoken, model, tmp_path):
    whole = run(options(spoken, model, tmp_path / "whole"))
    assert whole.items == 11 and whole.is_whole
    killed = options(spoken, model, tmp_path / "killed")
    assert launch_ranks(die_after_batches, 1, killed, 2) == [-signal.SIGKILL]
    part = tmp_path / "killed" / f"{ASR}.part"
    assert len((part / "records-00000.jsonl").read_bytes().splitlines()) == 5  # two batches of two, and a torn line
    run(killed, ranks=2)
    same(tmp_path / "killed" / ASR, tmp_path / "whole" / ASR)
    assert not list((tmp_path / "killed" / ASR).glob("records-*.jsonl")) and not part.exists()


def test_two_ranks_come_to_what_one_does_each_with_its_share(spoken, model, tmp_path):
    run(options(spoken, model, tmp_path / "one"))
    both = run(options(spoken, model, tmp_path / "two", batch_size=3), ranks=2)
    same(tmp_path / "one" / ASR, tmp_path / "two" / ASR)
    assert both.ranks == 2


def test_a_rank_without_work_waits_for_the_others(spoken, model, tmp_path):
    asked = options(spoken, model, tmp_path / "few")
    assert run(but(asked, data=replace(asked.data, limit=1)), ranks=2).items == 1


def test_work_that_is_done_is_not_done_again_and_other_settings_are_refused(spoken, model, tmp_path, caplog):
    asked = options(spoken, model, tmp_path / "done")
    before = run(asked)
    stamp = (tmp_path / "done" / ASR / "result.json").stat().st_mtime_ns
    assert run(asked) == before
    assert (tmp_path / "done" / ASR / "result.json").stat().st_mtime_ns == stamp
    assert "begun with config" in refused(but(asked, decoding=Decoding(max_new_tokens=7)))
    assert "begun with seeds" in refused(but(asked, seed=1))
    other = make_model(spoken, tmp_path / "other", seed=1)
    assert "begun with model = " in refused(but(asked, model=other))


def test_a_result_tells_of_model_data_settings_and_versions(spoken, model, tmp_path):
    result = run(options(spoken, model, tmp_path / "told"))
    assert result.model["kind"] == "huggingface" and len(result.model["hash"]) == 64
    assert result.data["hash"] == spoken.manifest.header.sha256
    assert result.config["codec"] == spoken.codec_key and result.config["normaliser"] == "whisper-english"
    assert result.config["generation"]["temperature"] == 1.0 and result.seeds == {"generation": 0, "bootstrap": 0}
    assert {"torch", "transformers", "jiwer", "megatron-most"} <= result.versions.keys()
    assert result.speed["seconds"] > 0 and result.speed["tokens_per_second"] > 0
    record = json.loads((tmp_path / "told" / ASR / "records.jsonl").read_text().splitlines()[0])
    assert record["id"] == "u0" and record["reference"] == spoken.sentences[0] and record["words"][1] > 0
    score = result.scores["wer"]
    assert score.low <= score.value <= score.high and score.items == 11


def _faulty(spoken: Spoken, root: Path) -> Path:
    """A corpus of two good utterances, one without samples, one of two hours, and one whose sound is missing."""
    audio = root / "audio"
    audio.mkdir(parents=True)
    (audio / "empty.wav").write_bytes(b"")
    rows = []
    for number in range(2):
        wave, _ = soundfile.read(spoken.root / "audio" / f"u{number}.wav", dtype="float32")
        soundfile.write(audio / f"good{number}.wav", wave, RATE)
        rows.append(cut(f"good{number}", f"good{number}.wav", 0, len(wave) / RATE, len(wave) / RATE, text="the fox"))
    rows.append(cut("empty", "empty.wav", 0, 1.0, 1.0, text="the fox"))
    rows.append(cut("long", "good0.wav", 0, 7200.0, 7200.0, text="the fox"))
    rows.append(cut("gone", "gone.wav", 0, 1.0, 1.0, text="the fox"))
    write_manifest(root / "manifest", rows, audio, split="test", language="en")
    return root


def test_bad_sounds_are_told_of_and_the_rest_is_kept_until_they_are_mended(spoken, model, tmp_path):
    root = _faulty(spoken, tmp_path / "faulty")
    data = Data(manifest=(root / "manifest",))
    tools = Tools(codec=str(spoken.root / "codec"))
    asked = options(spoken, model, tmp_path / "out", data=data, tools=tools)
    told = refused(asked)
    for words in ("3 of 5 items could not be evaluated", "1 empty file", "1 missing file", "1 too long"):
        assert words in told
    assert "--max-left-out" in told
    part = tmp_path / "out" / f"{ASR}.part"
    kept = read_result(part)
    assert (kept.items, kept.is_whole) == (2, False) and kept.left_out == {
        "empty file": 1,
        "missing file": 1,
        "too long": 1,
    }
    faults = [json.loads(line) for line in (part / "records.jsonl").read_text().splitlines()]
    assert [one["id"] for one in faults if "fault" in one] == ["empty", "long", "gone"]
    assert "7200 s; at most 120 s" in faults[3]["detail"]
    for name in ("empty", "gone"):  # mended: only these and the long one are tried again
        soundfile.write(root / "audio" / f"{name}.wav", np.sin(np.arange(RATE) / 9).astype(np.float32) * 0.3, RATE)
    assert "1 of 5 items could not be evaluated" in refused(asked)
    result = run(but(asked, max_left_out=0.25))
    assert (result.items, result.left_out, result.is_whole) == (4, {"too long": 1}, True)


def test_an_item_whose_sound_has_changed_is_asked_again_until_all_is_done(spoken, model, tmp_path):
    root = _faulty(spoken, tmp_path / "faulty")
    tools, data = Tools(codec=str(spoken.root / "codec")), Data(manifest=(root / "manifest",))
    asked = options(spoken, model, tmp_path / "out", data=data, tools=tools)
    refused(asked)
    changed = root / "audio" / "good1.wav"

    def change() -> None:
        content = bytearray(changed.read_bytes())
        content[-400:] = bytes(255 - byte for byte in content[-400:])  # of the same size
        changed.write_bytes(content)

    change()
    refused(asked)
    lines = (tmp_path / "out" / f"{ASR}.part" / "records-00000.jsonl").read_text().splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    assert (ids.count("good0"), ids.count("good1"), ids.count("long")) == (1, 2, 2)
    allowed = but(asked, max_left_out=0.7)
    result = run(allowed)
    assert len(result.data["sounds"]) == 64 and result.items == 2
    assert run(allowed) == result
    change()  # as it was
    assert "was made of other sounds than those that are there now" in refused(allowed)


def test_no_good_item_at_all_is_an_error_with_the_first_reason(spoken, model, tmp_path):
    root = _faulty(spoken, tmp_path / "faulty")
    data = Data(manifest=(root / "manifest",), max_seconds=0.01)
    asked = options(spoken, model, tmp_path / "out", data=data, tools=Tools(codec=str(spoken.root / "codec")))
    assert "none of 5 items could be evaluated; the first is good0: too long" in refused(asked)


def test_units_of_another_codec_are_refused_by_their_hash(spoken, model, tmp_path):
    other = make_codec(tmp_path / "codec", 12)
    data = Data(manifest=(spoken.root / "manifest",))
    asked = options(spoken, model, tmp_path / "out", data=data, tools=Tools(codec=str(other)))
    assert f"({spoken.codec_key[:12]})" in refused(asked)
    silent = make_model(spoken, tmp_path / "silent")
    (silent / MADE_WITH).unlink()
    assert "--trust-codec" in refused(options(spoken, silent, tmp_path / "silent-out"))
    assert run(options(spoken, silent, tmp_path / "silent-out", tools=Tools(trust_codec=True))).items == 11


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tasks": ("asr", "wer")}, "no such task; use asr"),
        ({"tasks": ()}, "no task"),
        ({"tasks": ("asr", "asr")}, "named twice"),
        ({"tasks": ("swuggy",)}, "--zerospeech = None: swuggy needs it"),
        ({"tasks": ("tts",)}, "--vocoder = None: tts needs it"),
        ({"batch_size": 0}, "--batch-size = 0"),
        ({"max_left_out": 1.5}, "--max-left-out = 1.5"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_opened(spoken, tmp_path, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        evaluate(options(spoken, tmp_path / "no model here", tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named_and_other_tasks_are_kept(spoken, model, tmp_path):
    data = Data(
        manifest=(spoken.root / "manifest", tmp_path / "nowhere"), units=(spoken.root / "units",),
        tsc=tmp_path / "stories",
    )  # fmt: skip
    asked = options(
        spoken, model, tmp_path / "out", tasks=("tsc", "asr"), data=data, tools=Tools(codec=str(spoken.root / "codec"))
    )
    assert re.search(r"stories: cannot be read.*2 tasks failed.*1 ended well", refused(asked))
    assert read_result(tmp_path / "out" / ASR).items == 11


def test_a_folder_without_a_model_is_refused(spoken, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    assert "cannot be opened by transformers" in refused(options(spoken, empty, tmp_path / "out"))


def test_weights_that_are_cut_short_are_one_message(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
    LlamaForCausalLM(LlamaConfig(hidden_size=16, **sizes)).save_pretrained(tmp_path)
    [weights] = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be opened by transformers: .*give the folder of a whole model"):
        open_hf(tmp_path, "float32", find_device("cpu"))

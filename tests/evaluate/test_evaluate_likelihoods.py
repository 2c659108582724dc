"""sWUGGY, sBLIMP, StoryCloze and NLL: what is scored is what the model says, by another way of computing it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.errors import DataError
from megatron_most.evaluate import Data, Options, Tools
from megatron_most.evaluate.tasks.stories import find_stories
from megatron_most.speech import load_codec, read_span
from tests.data_files import RATE
from tests.evaluate.benchmarks import write_sblimp, write_sound, write_swuggy
from tests.spoken_models import Spoken, make_model, ran, read_records, refused


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("likelihoods") / "spoken", utterances=6)


@pytest.fixture(scope="module")
def model(spoken) -> Path:
    return make_model(spoken, spoken.root / "model")


def expected(spoken: Spoken, model: Path, sounds: list[Path]) -> dict[str, tuple[float, int]]:
    """Name -> (log p of all units, how many), by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model)
    codec, tokens = load_codec(spoken.root / "codec"), spoken.tokens
    found = {}
    for path in sounds:
        [units] = codec.encode([read_span(path, sample_rate=RATE)])
        said = [tokens.id_of_unit(int(unit)) for unit in units.units]
        ids = torch.tensor([[tokens.bos_id, tokens.begin_audio_id, *said, tokens.end_audio_id, tokens.eos_id]])
        with torch.no_grad():
            logp = network(ids).logits.double().log_softmax(-1)[0]
        total = sum(float(logp[1 + at, id]) for at, id in enumerate(said))
        found[path.stem] = (total, len(said))
    return found


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_swuggy_is_the_models_own_likelihood_by_the_benchmarks_rules(spoken, model, tmp_path, kind):
    folder = write_swuggy(tmp_path / "sLM21", 2)
    asked = Options(
        tasks=("swuggy",), model=model, out=tmp_path / "out", likelihood=kind, batch_size=3,
        data=Data(zerospeech=tmp_path / "sLM21"), tools=Tools(codec=str(spoken.root / "codec")),
    )  # fmt: skip
    [result] = ran(asked)
    wanted = {
        name: total / count if kind == "mean" else total
        for name, (total, count) in expected(spoken, model, sorted(folder.glob("*.wav"))).items()
    }
    submitted = (tmp_path / "out" / "swuggy-dev" / "submission" / "lexical" / "dev.txt").read_text()
    said = dict(line.split(" ") for line in submitted.splitlines())  # as ZeroSpeech's tools read it
    assert {name: float(score) for name, score in said.items()} == pytest.approx(wanted, abs=1e-4)
    points = [np.mean([wanted[f"f{4 * p + 2 * v + 1}"] > wanted[f"f{4 * p + 2 * v}"] for v in (0, 1)]) for p in (0, 1)]
    assert result.scores["accuracy"].value == pytest.approx(np.mean(points))
    assert result.scores["accuracy"].items == 2
    assert result.parts["vocabulary"]["out"].value == points[0] and result.parts["vocabulary"]["in"].value == points[1]


def test_a_pair_with_an_unreadable_side_is_left_out_whole(spoken, model, tmp_path):
    folder = write_sblimp(tmp_path / "sLM21", 3, "test")
    (folder / "f2.wav").write_bytes(b"")
    asked = Options(
        tasks=("sblimp",), model=model, out=tmp_path / "out", max_left_out=0.5,
        data=Data(zerospeech=tmp_path / "sLM21", split="test"), tools=Tools(codec=str(spoken.root / "codec")),
    )  # fmt: skip
    [result] = ran(asked)
    assert result.left_out == {"empty file": 1} and result.scores["accuracy"].items == 2
    assert result.parts["type"]["agreement"].items == 2


def test_stories_compare_the_mean_over_units(spoken, model, tmp_path):
    folder = tmp_path / "tsc"
    for number in range(3):
        for at, side in enumerate(("correct", "wrong")):
            write_sound(folder / f"{number}_{side}.wav", 10 * number + at, 0.5 + 0.4 * at)
    asked = Options(
        tasks=("tsc",), model=model, out=tmp_path / "out", data=Data(tsc=folder),
        tools=Tools(codec=str(spoken.root / "codec")),
    )  # fmt: skip
    [result] = ran(asked)
    wanted = {name: total / count for name, (total, count) in expected(spoken, model, list(folder.iterdir())).items()}
    records = read_records(tmp_path / "out" / "tsc")
    for number, record in enumerate(records):
        assert record["right"] == pytest.approx(wanted[f"{number}_correct"], abs=1e-5)
        assert record["wrong"] == pytest.approx(wanted[f"{number}_wrong"], abs=1e-5)
    assert result.scores["accuracy"].value == np.mean([record["right"] > record["wrong"] for record in records])


def test_stories_are_found_by_table_or_name_and_else_refused(tmp_path):
    for name in ("7_right.wav", "7_incorrect.wav", "12_pos.flac", "12_neg.flac", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [(one.id, one.right.name, one.wrong.name) for one in find_stories(tmp_path)] == [
        ("7", "7_right.wav", "7_incorrect.wav"), ("12", "12_pos.flac", "12_neg.flac"),
    ]  # fmt: skip
    (tmp_path / "12_neg.flac").unlink()
    with pytest.raises(DataError, match="story 12 has one side only"):
        find_stories(tmp_path)
    (tmp_path / "13_a.wav").write_bytes(b"x")
    with pytest.raises(DataError, match="does not say whether it is right or wrong"):
        find_stories(tmp_path)
    (tmp_path / "pairs.csv").write_text("id,right,wrong\na,13_a.wav,12_pos.flac\n")
    assert [(one.id, one.right.name) for one in find_stories(tmp_path)] == [("a", "13_a.wav")]
    (tmp_path / "pairs.csv").write_text("id,right,wrong\na,../out.wav,12_pos.flac\n")
    with pytest.raises(DataError, match="leads out of"):
        find_stories(tmp_path)


def test_nll_is_the_loss_of_training_by_tag(spoken, model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    tools: dict[str, Any] = dict(tokens=spoken.tokens, templates=load_templates("chat"))
    tools["tokenizer"] = load_tokenizer(spoken.root / "tokenizer")
    inputs = BuildInputs(manifests=(spoken.manifest,), units=(open_units(spoken.root / "units"),), **tools)
    build(inputs, BuildOptions(task="tts"), tmp_path / "tts")
    [result] = ran(Options(tasks=("nll",), model=model, out=tmp_path / "out", data=Data(dataset=(tmp_path / "tts",))))
    network = AutoModelForCausalLM.from_pretrained(model)
    nats = {0: [], 1: []}
    for document in spoken.documents("tts"):
        ids, tags, trained = document.ids(), document.tags(), document.is_trained()
        with torch.no_grad():
            logp = network(torch.from_numpy(ids.astype(np.int64))[None]).logits.double().log_softmax(-1)[0]
        for at in range(1, len(ids)):
            if trained[at]:
                nats[int(tags[at])].append(-float(logp[at - 1, int(ids[at])]))
    every = nats[0] + nats[1]
    assert nats[0] and nats[1]  # EOS is text, the answer is audio
    assert result.task == "nll/tts/tts" and result.scores["nll"].total == len(every)
    assert result.scores["nll"].value == pytest.approx(np.mean(every), abs=1e-5)
    assert result.scores["perplexity"].value == pytest.approx(math.exp(np.mean(every)), rel=1e-4)
    assert result.parts["nll by tag"]["audio"].value == pytest.approx(np.mean(nats[1]), abs=1e-5)
    assert result.parts["nll by tag"]["text"].value == pytest.approx(np.mean(nats[0]), abs=1e-5)


def test_a_table_that_is_missing_is_named(spoken, model, tmp_path):
    asked = Options(
        tasks=("swuggy",), model=model, out=tmp_path / "out", data=Data(zerospeech=tmp_path / "none"),
        tools=Tools(codec=str(spoken.root / "codec")),
    )  # fmt: skip
    assert "none/lexical/dev/gold.csv: cannot be read" in refused(asked)

"""MoST-C with layers of its speech encoder learning: they begin as the HuBERT of the data has them, are saved, go on
after a kill, and go out to transformers and come back. A text model may begin to hear.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.config import Facts, RunConfig, build, load_recipe, replace
from megatron_most.convert import open_ours
from megatron_most.errors import ConfigError
from megatron_most.speech import FrameIdentity, FrameSettings, open_frames, read_layers
from tests.convert.folders import back, into_ours, read_all
from tests.convert.most_twins import apart
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech
from tests.phases import kill_when_saved, losses, refusal, run, run_until
from tests.phases import recipe as of_units
from tests.speech_models import save_tiny_hubert

STEPS, RATE = 4, 1e-3
ALONE = Facts(world_size=1, device="cpu", core_version=(0, 16))
LAYERS = {"model.wave_size": 32, "model.wave_layers": [2, 3], "model.wave_heads": 2, "model.wave_inner_size": 64}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("most-c")
    make_tokenizer(root / "tokenizer")
    hubert = str(save_tiny_hubert(root / "hubert", "25hz"))
    inputs = frame_inputs(make_speech(root / "corpus"), root / "tokenizer", kind="hubert", model=hubert, layer=1)
    build_frames(inputs, root / "asr")
    return root


def recipe(corpus: Path, folder: Path, **changes: Any) -> RunConfig:
    named = {
        "name": "test", "tokens.backbone": "file", "tokens.file": str(corpus / "tokenizer" / "token_map.json"),
        "data.asr.weight": 1.0, "data.asr.train": [str(corpus / "asr")],
        "data.audio_roots": [str(corpus / "corpus" / "audio")], "data.frames_model": str(corpus / "hubert"),
        "data.window": 24, "train.steps": STEPS, "train.sequence_length": 128, "train.global_batch_size": 4,
        "train.micro_batch_size": 2, "train.learning_rate": RATE, "train.schedule": "constant",
        "checkpoint.folder": str(folder), "checkpoint.every": 2, "model.num_layers": 2,
        "telemetry.tensorboard": False, **LAYERS,
    }  # fmt: skip
    return replace(load_recipe("most-c-tiny"), {**named, **changes})


def encoder(corpus: Path) -> tuple[FrameIdentity, dict[str, torch.Tensor]]:
    """Its identity at layer 1, and layers 2 and 3."""
    folder = str(corpus / "hubert")
    identity = open_frames(FrameSettings(kind="hubert", model=folder, layer=1)).identity
    return identity, read_layers(identity, [2, 3], model=folder).tensors


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(recipe(corpus, folder))
    return folder


def test_they_begin_as_the_encoder_has_them_and_all_of_them_move(corpus: Path, trained: Path) -> None:
    ours, (_, first) = open_ours(trained), encoder(corpus)
    assert {f"wave.encoder.{name}" for name in first} == {name for name in ours.weights if "wave.encoder" in name}
    for name, before in first.items():
        moved = float((ours.read("weight", f"wave.encoder.{name}") - before).abs().max())
        least = 0.0 if name.endswith("k_proj.bias") else RATE / 10  # a softmax takes that bias away
        assert least <= moved < 1.5 * STEPS * RATE, name  # Adam's steps are of the rate's size
    assert losses(trained)[STEPS - 1] < losses(trained)[0]


def test_a_killed_run_goes_on_to_the_same_losses(corpus: Path, trained: Path, tmp_path: Path) -> None:
    saved = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert run_until(recipe(corpus, tmp_path / "run"), 3, partial(kill_when_saved, saved)) == -signal.SIGKILL
    run(recipe(corpus, tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(trained)


def test_they_go_out_to_transformers_under_the_releases_names_and_come_back(trained: Path, tmp_path: Path) -> None:
    ours = open_ours(trained)
    exported = tmp_path / "hf"
    apart(partial(back, trained, exported, gate=True))  # which compares logits of both
    found = read_all(exported)
    at = "model.audio_wave_processor.hubert_model.encoder.layers."
    for theirs, name in (("1.fc1.weight", "2.fc1.weight"), ("2.self_attn_layer_norm.bias", "3.attention_norm.bias")):
        assert torch.equal(found[at + theirs], ours.read("weight", f"wave.encoder.{name}"))
    apart(partial(into_ours, exported, tmp_path / "again", gate=True))
    again = open_ours(tmp_path / "again")
    assert again.plan().config.model.wave_layers == (2, 3) and again.weights.keys() == ours.weights.keys()
    for name in ours.weights:
        assert torch.equal(again.read("weight", name), ours.read("weight", name)), name


def test_a_model_of_text_and_units_begins_to_hear(corpus: Path, data: Path, tmp_path: Path) -> None:
    """All else is what it was; the projector is new, and the layers are the encoder's."""
    run(of_units(data, tmp_path / "units", **{"train.steps": 1, "train.validate_every": 0}))
    changes = {"checkpoint.start_from": str(tmp_path / "units"), "train.steps": 1, "train.learning_rate": 0.0}
    run(recipe(corpus, tmp_path / "run", **changes))
    before, after = open_ours(tmp_path / "units"), open_ours(tmp_path / "run")
    new = after.weights.keys() - before.weights.keys()
    assert before.weights.keys() < after.weights.keys() and all(name.startswith("wave.") for name in new)
    for name in before.weights:
        assert torch.equal(after.read("weight", name), before.read("weight", name)), name
    for name, wanted in encoder(corpus)[1].items():
        assert torch.equal(after.read("weight", f"wave.encoder.{name}"), wanted), name
    assert float(after.read("weight", "wave.proj.weight").std()) > 1e-3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.wave_layers": [3]}, r"model.wave_layers = \(3,\): .* of layer 1 .*name the layers from 2 on"),
        ({"model.wave_heads": 4}, "model.wave_heads = 4: the encoder of the data has 2; set it to 2"),
        ({"model.wave_inner_size": 60}, "model.wave_inner_size = 60: the encoder of the data has 64"),
        ({"model.wave_layers": [2, 3, 4]}, "the model has layers 1 to 3"),
    ],
    ids=["first", "heads", "inner size", "too many"],
)
def test_layers_that_are_not_those_after_the_datas_are_refused(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(refusal(recipe(corpus, tmp_path, **changes)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model.wave_layers": [2, 4]}, "model.wave_layers"),
        ({"model.wave_layers": [0, 1]}, "model.wave_layers"),
        ({"model.wave_layers": [3, 2]}, "model.wave_layers"),
        ({"model.wave_heads": 5}, "model.wave_heads"),
        ({"model.wave_layers": []}, "model.wave_heads"),
        ({"model.wave_size": 0}, "model.wave_layers"),
    ],
)
def test_what_makes_no_layers_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(replace(load_recipe("most-c-tiny"), {**LAYERS, **changes}), ALONE)
    assert caught.value.field == field

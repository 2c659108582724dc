"""HiFi-GAN over units: transformers' own forward, public checkpoints against an oracle, pieces against the whole."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_most.errors import DataError
from megatron_most.speech import (
    CodecIdentity,
    HifiGanShape,
    HifiGanVocoder,
    import_hifigan,
    load_vocoder,
    make_model,
    save_vocoder,
)
from tests.oracles import unit_hifigan as oracle

CODEC = CodecIdentity("test", "0" * 64, 20, 16000, 0.04)
SHAPE = HifiGanShape(
    num_units=20, num_speakers=3, unit_width=8, speaker_width=4, channels=32, kernels=(3, 7), dilations=((1, 3), (1, 3))
)
UNITS = np.random.default_rng(0).integers(0, 20, 60)


def vocoder(shape: HifiGanShape = SHAPE) -> HifiGanVocoder:
    torch.manual_seed(0)
    model = make_model(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.15)
        model.dur_predictor.proj.bias += 1.3
    return HifiGanVocoder(CODEC, shape, model)


def save_public(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    torch.save({"generator": tensors}, folder / "g.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "g.pt", folder / "config.json"


def test_it_speaks_as_transformers_own_forward_for_each_speaker() -> None:
    made, waves = vocoder(), []
    for speaker in range(3):
        ids = [torch.tensor(rows) for rows in ([UNITS.tolist()], [[speaker]], [[0]])]
        with torch.no_grad():
            own = made.model(*ids)[0][0].numpy()
        waves.append(made.speak(UNITS, speaker=speaker))
        assert np.allclose(waves[-1], own, atol=1e-6) and np.abs(own).max() > 1e-3
    assert np.abs(waves[0] - waves[1]).max() > 1e-3  # the speaker is heard


def test_durations_given_are_kept_and_those_predicted_are_not_all_one() -> None:
    made = vocoder()
    durations = np.arange(len(UNITS)) % 3 + 1
    assert len(made.speak(UNITS, durations)) == durations.sum() * 640
    predicted = made.predict_durations(UNITS.astype(np.int64))
    assert len(made.speak(UNITS)) == predicted.sum() * 640 and len(set(predicted.tolist())) > 1
    assert np.array_equal(made.speak(UNITS), made.speak(UNITS, predicted))


def test_pieces_of_a_stream_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = vocoder()
    whole = made.speak(UNITS, speaker=1)
    pieces = list(made.stream(iter(UNITS.tolist()), speaker=1))
    assert len(pieces) > 3 and len(pieces[0]) == 25 * 640
    joined = np.concatenate(pieces)
    assert joined.shape == whole.shape and np.abs(joined - whole).max() < 1e-5 * np.abs(whole).max()  # sums reordered
    # With less overlap than a sample's reach they do not: the bound above can fail.
    monkeypatch.setattr(HifiGanShape, "reach", 2)
    assert (
        np.abs(np.concatenate(list(made.stream(UNITS.tolist(), speaker=1))) - whole).max() > 1e-4 * np.abs(whole).max()
    )


def test_a_piece_comes_before_the_units_end() -> None:
    def units():
        for n in range(10_000):
            yield n % 20
            assert n < 200, "no piece after 200 units"

    assert len(next(vocoder().stream(units()))) == 25 * 640


@pytest.mark.parametrize("new_norm", [False, True], ids=["weight_g", "parametrizations"])
@pytest.mark.parametrize(("speakers", "styles"), [(0, 0), (4, 0), (4, 3)], ids=["one", "speakers", "styles"])
def test_a_public_checkpoint_speaks_as_its_own_layout_says(
    tmp_path: Path, speakers: int, styles: int, new_norm: bool
) -> None:
    config = {**oracle.CONFIG, "multispkr": "_" if speakers else None, "multistyle": "_" if styles else None}
    tensors = oracle.random_checkpoint(config, speakers, styles, new_norm)
    weights, settings = save_public(tmp_path / "public", config, tensors)
    style = 2 if styles else 0
    imported = import_hifigan(weights, settings, CODEC, style=style)
    assert imported.num_speakers == max(1, speakers)
    save_vocoder(imported, tmp_path / "ours")
    loaded = load_vocoder(tmp_path / "ours", codec=CODEC)
    for speaker in range(max(1, speakers)):
        who = {"speaker": speaker if speakers else None, "style": style if styles else None}
        for durations in (None, np.arange(len(UNITS)) % 4 + 1):
            wanted = oracle.speak(tensors, config, UNITS, durations, **who).numpy()
            made = loaded.speak(UNITS, durations, speaker)
            assert made.shape == wanted.shape and np.abs(wanted).max() > 1e-2
            assert np.abs(made - wanted).max() < 1e-5 * np.abs(wanted).max()  # fp32, sums in another order


def test_a_public_checkpoint_without_durations_wants_them(tmp_path: Path) -> None:
    config = {**oracle.CONFIG, "dur_predictor_params": None}
    tensors = oracle.random_checkpoint(config)
    imported = import_hifigan(*save_public(tmp_path, config, tensors), CODEC)
    assert len(imported.speak(UNITS, np.ones(60, int))) == 60 * 640
    with pytest.raises(DataError, match="no duration predictor: give durations"):
        imported.speak(UNITS)


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["dict.weight"][3, 3] = float("nan")


@pytest.mark.parametrize(
    ("settings", "harm", "says"),
    [
        ({"f0": True}, None, "f0 is set: this model also takes a pitch"),
        ({"embedder_params": {"a": 1}}, None, "vectors of speakers"),
        ({"embedding_dim": 12}, None, "a duration predictor of"),
        ({"num_embeddings": 21}, None, "unit_embedding.weight is .20, 8., config.json makes it .21, 8."),
        ({"resblock_kernel_sizes": [3, 11]}, None, "published with these weights"),
        ({"resblock_kernel_sizes": [3]}, None, "one row of dilations for each kernel"),
        ({"upsample_rates": [5, 4, 4, 2, 2]}, None, "320 samples a frame .* 640; give rates whose product"),
        ({"upsample_initial_channel": None}, None, "config.json: not the config.json of a unit HiFi-GAN"),
        ({}, with_nan, "dict.weight holds NaN"),
        ({}, lambda t: t.pop("conv_post.weight_v"), "conv_post.weight_g without conv_post.weight_v"),
        ({}, lambda t: t.pop("ups.1.bias"), "hifi_gan.upsampler.1.bias is missing"),
        ({}, lambda t: t.update(mpd=torch.ones(1)), "mpd: no such tensor"),
        ({}, lambda t: t.clear(), "KeyError|missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, settings: dict, harm: Any, says: str) -> None:
    tensors = oracle.random_checkpoint(oracle.CONFIG)
    if harm:
        harm(tensors)
    with pytest.raises(DataError, match=says):
        import_hifigan(*save_public(tmp_path, {**oracle.CONFIG, **settings}, tensors), CODEC)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_that_is_cut_off_or_runs_code_is_refused(tmp_path: Path) -> None:
    weights, config = save_public(tmp_path / "p", oracle.CONFIG, oracle.random_checkpoint(oracle.CONFIG))
    whole = weights.read_bytes()
    bomb = Bomb(tmp_path / "mark")
    torch.save({"generator": bomb}, tmp_path / "bomb.pt")
    for data in (
        whole[: len(whole) // 2],
        b"",
        b"RIFF" + bytes(20),
        b"hello world",
        b"<html>",
        pickle.dumps(bomb),
        (tmp_path / "bomb.pt").read_bytes(),
    ):
        weights.write_bytes(data)
        with pytest.raises(DataError, match="is it whole"):
            import_hifigan(weights, config, CODEC)
    assert not bomb.mark.exists()
    torch.save({"mpd": {}}, weights)
    with pytest.raises(DataError, match="no tensors under `generator`"):
        import_hifigan(weights, config, CODEC)
    weights.unlink()
    with pytest.raises(DataError, match="give the published weights"):
        import_hifigan(weights, config, CODEC)
    config.write_text("[")
    with pytest.raises(DataError, match="config.json: not readable"):
        import_hifigan(weights, config, CODEC)


def test_a_shape_that_cannot_be_is_refused() -> None:
    for wrong, says in (
        ({"upsample_kernels": (11, 8, 8, 8)}, "one kernel for each upsampling rate"),
        ({"upsample_kernels": (10, 8, 8, 8, 4)}, "difference must be even"),
        ({"kernels": (4, 7)}, "residual blocks have odd ones"),
        ({"channels": 16}, "nothing is left"),
        ({"num_speakers": 0}, "1 or more"),
    ):
        with pytest.raises(DataError, match=says):
            HifiGanShape(**{**vars(SHAPE), **wrong})
    with pytest.raises(DataError, match="20 units for the codec other.*which has 30"):
        HifiGanVocoder(CodecIdentity("other", "1" * 64, 30, 16000, 0.04), SHAPE, make_model(SHAPE))

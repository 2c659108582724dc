"""Units of HuBERT: batches never change one, and a codec's folder brings them back or is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_most.errors import DataError
from megatron_most.runtime import Device, find_device, num_devices
from megatron_most.speech import HubertCodec, HubertFeatures, Quantiser, fit_hubert_codec, load_codec, save_codec
from tests.speech_models import VARIANTS, own_hidden_states, random_waves, save_tiny_hubert

CPU = Device("cpu")
ALONE_S = 0.001


def alone_and_together(folder: Path, device: Device = CPU) -> tuple[HubertFeatures, HubertFeatures]:
    alone = HubertFeatures(folder, 2, device=device, precision="fp32", batch_s=ALONE_S)
    return alone, HubertFeatures(folder, 2, device=device, precision="fp32", batch_s=1000.0)


def between(alone: HubertFeatures, together: HubertFeatures, waves: list[np.ndarray]) -> Quantiser:
    """Two units, whose border lies where rounding moves a frame across it when its wave joins a batch."""
    one, many = np.concatenate(alone(waves)), np.concatenate(together(waves))
    direction = np.random.default_rng(0).standard_normal(one.shape[1]).astype(np.float32)
    here, there = one.astype(np.float64) @ direction, many.astype(np.float64) @ direction
    frame = np.abs(here - there).argmax()
    weight = np.stack([np.zeros_like(direction), direction])
    return Quantiser.from_linear(weight, np.array([0, -(here[frame] + there[frame]) / 2], np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_200_waves_have_the_same_units_alone_and_in_batches(tmp_path: Path, variant: str) -> None:
    waves = random_waves(200, seed=1)
    alone, together = alone_and_together(save_tiny_hubert(tmp_path, variant))
    codec = fit_hubert_codec(waves, together, 50, seed=0)
    units = codec.encode(waves)
    assert units == HubertCodec(alone, codec.quantiser).encode(waves)
    sixteen = HubertFeatures(tmp_path, 2, device=CPU, precision="fp32", batch_s=16 * 0.8)
    assert len(next(iter(sixteen.batches(waves))).rows) >= 16
    assert units == HubertCodec(sixteen, codec.quantiser).encode(waves)
    assert len(set(np.concatenate([one.units for one in units]))) == 50  # not one unit for all
    assert [one.num_frames for one in units] == [together.num_frames(len(wave)) for wave in waves]


def test_frames_between_two_units_are_settled_alone(tmp_path: Path) -> None:
    waves = random_waves(60, seed=2)
    alone, together = alone_and_together(save_tiny_hubert(tmp_path, "group"))
    quantiser = between(alone, together, waves)
    codec = HubertCodec(together, quantiser)
    units = codec.encode(waves)
    assert units == HubertCodec(alone, quantiser).encode(waves)
    assert 0 < codec.num_alone < 10
    # Without it rounding would have decided: the case is real.
    plain = [quantiser.assign(one)[0] for one in together(waves)]
    assert any(not np.array_equal(a, b.per_frame()) for a, b in zip(plain, units, strict=True))


def test_units_are_the_nearest_centroids_of_transformers_own_features(tmp_path: Path) -> None:
    waves = random_waves(5, seed=3)
    folder = save_tiny_hubert(tmp_path, "group")
    codec = fit_hubert_codec(waves, HubertFeatures(folder, 2, device=CPU), 10)
    for own, units in zip(own_hidden_states(folder, waves), codec.encode(waves), strict=True):
        distances = ((own[2].astype(np.float64)[:, None] - codec.quantiser.weight_KD[None]) ** 2).sum(axis=2)
        assert np.array_equal(units.per_frame(), distances.argmin(axis=1))


def test_fitting_is_the_same_for_one_seed_and_leaves_short_waves_out(tmp_path: Path) -> None:
    features = HubertFeatures(save_tiny_hubert(tmp_path, "group"), 2, device=CPU)
    waves = random_waves(30)
    first = fit_hubert_codec(iter(waves), features, 12, seed=3, group=7)
    again = fit_hubert_codec([np.zeros(100, np.float32), *waves], features, 12, seed=3, group=7)
    assert first.identity == again.identity and first.identity.name == "hubert-50hz-l2-12"
    assert first.identity.hash != fit_hubert_codec(waves, features, 12, seed=4, group=7).identity.hash


def test_a_codec_comes_back_from_its_folder_while_its_model_is_the_same(tmp_path: Path) -> None:
    model = save_tiny_hubert(tmp_path / "model", "25hz")
    waves = random_waves(8, seed=4)
    codec = fit_hubert_codec(waves, HubertFeatures(model, 2, device=CPU), 20, name="mine")
    folder = save_codec(codec, tmp_path / "codec")
    again = load_codec(folder, device=CPU)
    assert again.identity == codec.identity and again.identity.frame_s == 0.04
    assert again.encode(waves) == codec.encode(waves)

    moved = Path(shutil.move(model, tmp_path / "moved"))
    with pytest.raises(DataError, match="neither a folder nor found"):
        load_codec(folder, device=CPU)
    assert load_codec(folder, model=moved, device=CPU).encode(waves) == codec.encode(waves)

    whole = bytearray((moved / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (moved / "model.safetensors").write_bytes(whole)
    with pytest.raises(DataError, match="centroids, model or settings have changed"):
        load_codec(folder, model=moved, device=CPU)


def test_a_model_beside_the_codec_is_found_wherever_both_are_moved(tmp_path: Path) -> None:
    waves = random_waves(4)
    codec = fit_hubert_codec(waves, HubertFeatures(save_tiny_hubert(tmp_path / "m", "group"), 1, device=CPU), 8)
    folder = save_codec(codec, tmp_path / "codec")
    shutil.move(tmp_path / "m", folder / "model")
    content = json.loads((folder / "codec.json").read_text())
    content["settings"]["model"] = "model"
    (folder / "codec.json").write_text(json.dumps(content))
    elsewhere = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert load_codec(elsewhere, device=CPU).encode(waves) == codec.encode(waves)


def test_the_hash_changes_with_layer_normalisation_weights_and_quantiser(tmp_path: Path) -> None:
    folder = save_tiny_hubert(tmp_path / "a", "group")
    other = save_tiny_hubert(tmp_path / "b", "group", num_layers=4)
    eye = Quantiser.from_centroids(np.eye(32, dtype=np.float32))
    linear = Quantiser.from_linear(np.eye(32, dtype=np.float32), np.zeros(32, np.float32))
    hashes = [
        HubertCodec(HubertFeatures(folder, 2, device=CPU), eye).identity.hash,
        HubertCodec(HubertFeatures(folder, 1, device=CPU), eye).identity.hash,
        HubertCodec(HubertFeatures(folder, 2, device=CPU, normalise=True), eye).identity.hash,
        HubertCodec(HubertFeatures(other, 2, device=CPU), eye).identity.hash,
        HubertCodec(HubertFeatures(folder, 2, device=CPU), linear).identity.hash,
    ]
    assert len(set(hashes)) == 5
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert HubertCodec(HubertFeatures(copy, 2, device=CPU, batch_s=1.0), eye).identity.hash == hashes[0]


def test_a_preset_takes_a_local_model_and_local_centroids_of_its_own_size(tmp_path: Path) -> None:
    model = save_tiny_hubert(tmp_path / "model", "25hz", num_layers=11)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "centroids.npy", rng.standard_normal((500, 32)).astype(np.float32))
    np.save(tmp_path / "few.npy", rng.standard_normal((100, 32)).astype(np.float32))
    codec = load_codec("mhubert-25hz-500", centroids=tmp_path / "centroids.npy", model=model, device=CPU)
    identity = codec.identity
    assert (identity.name, identity.num_units, identity.frame_s) == ("mhubert-25hz-500", 500, 0.04)
    assert codec.encode(random_waves(2))[0].frame_s == 0.04
    with pytest.raises(DataError, match="100 units of 0.04 s"):
        load_codec("mhubert-25hz-500", centroids=tmp_path / "few.npy", model=model, device=CPU)


def test_a_quantiser_of_another_width_is_refused(tmp_path: Path) -> None:
    features = HubertFeatures(save_tiny_hubert(tmp_path, "group"), 1, device=CPU)
    with pytest.raises(DataError, match="takes features of 8"):
        HubertCodec(features, Quantiser.from_centroids(np.eye(8, dtype=np.float32)))


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_code_inside_a_models_weights_is_never_run(tmp_path: Path) -> None:
    folder = save_tiny_hubert(tmp_path / "model", "group")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(DataError, match="not a readable HubertModel"):
        HubertFeatures(folder, 1, device=CPU)
    assert not (tmp_path / "mark").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "mark").exists()  # it was live


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_too_batches_never_change_a_unit_in_fp32(tmp_path: Path, variant: str) -> None:
    if not num_devices():
        pytest.skip("needs a gpu")
    waves = random_waves(200, seed=1)
    alone, together = alone_and_together(save_tiny_hubert(tmp_path, variant), find_device("gpu"))
    for quantiser in (fit_hubert_codec(waves, together, 50).quantiser, between(alone, together, waves)):
        codec = HubertCodec(together, quantiser)
        units = codec.encode(waves)
        assert units == HubertCodec(alone, quantiser).encode(waves)
        assert units == codec.encode(waves)  # and a second run gives the same

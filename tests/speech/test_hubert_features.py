"""A layer of HuBERT is transformers' own for one wave, and the same wave gives the same in any batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import Device, find_device, num_devices
from megatron_most.speech import HubertFeatures
from megatron_most.speech.hubert import NOISE
from tests.speech_models import VARIANTS, own_hidden_states, random_waves, save_tiny_hubert

CPU = Device("cpu")
ALONE_S = 0.001  # a batch this short holds one wave


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_tiny_hubert(tmp_path_factory.mktemp("hubert"), request.param)


def test_every_layer_is_that_of_transformers_on_single_waves(model: tuple[str, Path]) -> None:
    waves = random_waves(6)
    own = own_hidden_states(model[1], waves)
    for layer in (1, 2, 3):
        found = HubertFeatures(model[1], layer, device=CPU)(waves)
        for features, wanted in zip(found, own, strict=True):
            assert features.dtype == np.float32 and features.shape == wanted[layer].shape
            assert np.abs(features - wanted[layer]).max() < 1e-5  # fp32, sums in another order


def test_a_wave_has_the_same_features_alone_and_in_a_padded_batch(model: tuple[str, Path]) -> None:
    waves = random_waves(80)
    alone = HubertFeatures(model[1], 3, device=CPU, batch_s=ALONE_S)(waves)
    for batch_s in (10.0, 1000.0):
        together = HubertFeatures(model[1], 3, device=CPU, batch_s=batch_s)(waves)
        assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) < 1e-5
        apart = [
            np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1) for a, b in zip(alone, together, strict=True)
        ]
        assert max(one.max() for one in apart) < NOISE / 2


class Padded(HubertFeatures):
    """As it would be without the care for the first norm: all convolutions see the padded batch."""

    def _forward(self, waves: list[torch.Tensor], num_frames: list[int]) -> torch.Tensor:
        first, *others = self._model.feature_extractor.conv_layers
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        whole = first(padded[:, None])
        self._model.feature_extractor.conv_layers = torch.nn.ModuleList([_Given(whole), *others])
        try:
            return super()._forward(waves, num_frames)
        finally:
            self._model.feature_extractor.conv_layers = torch.nn.ModuleList([first, *others])


class _Given(torch.nn.Module):
    """Hands out the rows of a tensor, one a call."""

    def __init__(self, whole: torch.Tensor) -> None:
        super().__init__()
        self.rows = iter(whole)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return next(self.rows)[None]


def test_without_care_for_the_first_norm_padding_would_change_features(tmp_path: Path) -> None:
    """The danger is real: the comparison above fails on a plain padded forward."""
    waves = random_waves(16)
    folder = save_tiny_hubert(tmp_path, "group")
    alone = Padded(folder, 3, device=CPU, batch_s=ALONE_S)(waves)
    right = HubertFeatures(folder, 3, device=CPU, batch_s=ALONE_S)(waves)
    assert all(np.array_equal(a, b) for a, b in zip(alone, right, strict=True))
    together = Padded(folder, 3, device=CPU, batch_s=1000.0)(waves)
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) > 0.1


def test_results_come_in_the_order_given_whatever_that_is(tmp_path: Path) -> None:
    features = HubertFeatures(save_tiny_hubert(tmp_path, "group"), 2, device=CPU)
    waves = random_waves(20)
    found = features(waves)
    assert [len(one) for one in found] == [features.num_frames(len(wave)) for wave in waves]
    backwards = features(waves[::-1])[::-1]
    assert max(np.abs(a - b).max() for a, b in zip(found, backwards, strict=True)) < 1e-5
    assert features([]) == []


def test_batches_hold_like_lengths_and_stay_within_their_seconds(tmp_path: Path) -> None:
    waves = random_waves(60)
    features = HubertFeatures(save_tiny_hubert(tmp_path, "group"), 1, device=CPU, batch_s=4.0)
    batches = list(features.batches(waves))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(60))
    assert max(len(batch.rows) for batch in batches) > 4
    for batch in batches:
        longest = max(len(waves[row]) for row in batch.rows)
        assert len(batch.rows) == 1 or longest * len(batch.rows) <= 4.0 * 16000
        assert batch.num_frames == [features.num_frames(len(waves[row])) for row in batch.rows]
        assert len(batch.features_ND) == sum(batch.num_frames)


def test_layers_above_are_not_kept(tmp_path: Path) -> None:
    folder = save_tiny_hubert(tmp_path, "group")
    assert [len(HubertFeatures(folder, layer, device=CPU)._model.encoder.layers) for layer in (1, 3)] == [1, 3]
    for layer in (0, 4, -1, True, 1.0):
        with pytest.raises(ConfigError, match="layers 1 to 3"):
            HubertFeatures(folder, layer, device=CPU)  # type: ignore[arg-type]


def test_frames_follow_the_strides_of_the_model(tmp_path: Path) -> None:
    slow = HubertFeatures(save_tiny_hubert(tmp_path / "a", "25hz"), 1, device=CPU)
    fast = HubertFeatures(save_tiny_hubert(tmp_path / "b", "group"), 1, device=CPU)
    assert (slow.frame_s, slow.min_samples, slow.num_frames(160000)) == (0.04, 720, 249)
    assert (fast.frame_s, fast.min_samples, fast.num_frames(160000)) == (0.02, 400, 499)
    assert (slow.num_frames(720), slow.num_frames(719)) == (1, 0)
    with pytest.raises(DataError, match="720 samples"):
        slow([np.zeros(16000, np.float32), np.zeros(719, np.float32)])
    with pytest.raises(DataError, match="one axis"):
        slow([np.zeros((2, 16000), np.float32)])


def test_waves_are_normalised_as_the_model_says_unless_told_otherwise(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    folder = save_tiny_hubert(tmp_path, "layer")
    wave = 0.1 + random_waves(1)[0]
    as_it_is = HubertFeatures(folder, 2, device=CPU)([wave])[0]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=16000)
    extractor.save_pretrained(folder)
    normalised = HubertFeatures(folder, 2, device=CPU)
    assert normalised.normalise
    wanted = own_hidden_states(folder, extractor(wave, sampling_rate=16000)["input_values"])[0][2]
    assert np.abs(normalised([wave])[0] - wanted).max() < 1e-4  # mean and variance, rounded in another order
    assert np.abs(wanted - as_it_is).max() > 1e-3
    assert np.array_equal(HubertFeatures(folder, 2, device=CPU, normalise=False)([wave])[0], as_it_is)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": "yes"}')
    with pytest.raises(DataError, match="do_normalize 'yes'"):
        HubertFeatures(folder, 2, device=CPU)


def test_a_checkpoint_in_torchs_own_format_gives_the_same_features(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save_tiny_hubert(tmp_path, "group")
    waves = random_waves(3)
    wanted = HubertFeatures(folder, 2, device=CPU)(waves)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = HubertFeatures(folder, 2, device=CPU)(waves)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def edit_weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_missing_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    whole = save_tiny_hubert(tmp_path / "whole", "group")
    name = "encoder.layers.1.attention.q_proj.weight"
    for number, change in enumerate((lambda t: t.pop(name), lambda t: t.update({name: torch.zeros(5, 5)}))):
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        edit_weights(folder, change)
        with pytest.raises(DataError, match="HubertModel"):
            HubertFeatures(folder, 2, device=CPU)


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="config.json: cannot be read: No such file .*; give a folder of a transformers Hub"
    ):
        HubertFeatures(tmp_path, 1, device=CPU)
    with pytest.raises(DataError, match="neither a folder nor found on the hub"):
        HubertFeatures(tmp_path / "none", 1, device=CPU)
    folder = save_tiny_hubert(tmp_path / "a", "group")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="is the download whole"):
        HubertFeatures(folder, 1, device=CPU)
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a readable HubertModel"):
        HubertFeatures(folder, 1, device=CPU)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DataError, match="HubertModel"):
        HubertFeatures(folder, 1, device=CPU)


def test_bf16_is_near_fp32_and_comes_back_as_float32(model: tuple[str, Path]) -> None:
    waves = random_waves(10)
    exact = HubertFeatures(model[1], 3, device=CPU)
    assert exact.precision == "fp32"  # what auto is on a CPU
    rough = HubertFeatures(model[1], 3, device=CPU, precision="bf16")
    for a, b in zip(exact(waves), rough(waves), strict=True):
        assert b.dtype == np.float32 and a.shape == b.shape
        assert 1e-5 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.1  # 8 bits, through 10 layers
    with pytest.raises(ConfigError, match="precision"):
        HubertFeatures(model[1], 3, device=CPU, precision="fp16")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_on_a_gpu_are_those_of_the_cpu(tmp_path: Path, variant: str) -> None:
    if not num_devices():
        pytest.skip("needs a gpu")
    waves = random_waves(40)
    folder = save_tiny_hubert(tmp_path, variant)
    wanted = HubertFeatures(folder, 3, device=CPU)(waves)
    exact = HubertFeatures(folder, 3, device=find_device("gpu"), precision="fp32")(waves)
    assert max(np.abs(a - b).max() for a, b in zip(exact, wanted, strict=True)) < 1e-4  # TF32 would be 100 times off
    rough = HubertFeatures(folder, 3, device=find_device("gpu"))
    assert rough.precision == "bf16"
    assert max(np.abs(a - b).mean() for a, b in zip(rough(waves), wanted, strict=True)) < 0.05

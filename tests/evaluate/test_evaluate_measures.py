"""Speaker similarity and UTMOS, with random models in the published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_most.errors import DataError
from megatron_most.evaluate.measures import SpeakerSimilarity, Utmos
from tests.data_files import sound


@pytest.fixture(scope="module")
def verifier(tmp_path_factory) -> Path:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    folder = tmp_path_factory.mktemp("measures") / "wavlm"
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(16, 16),
        conv_kernel=(10, 8), conv_stride=(8, 8), num_feat_extract_layers=2, tdnn_dim=(16, 16), tdnn_kernel=(3, 1),
        tdnn_dilation=(1, 1), xvector_output_dim=8, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_similarity_is_the_cosine_of_the_models_own_vectors(verifier):
    from transformers import WavLMForXVector

    said, real = sound(0.6, 1), sound(0.7, 2)
    measure = SpeakerSimilarity(verifier)
    assert measure(said, said, 16000) == pytest.approx(1.0, abs=1e-5)
    network = WavLMForXVector.from_pretrained(verifier).eval()
    with torch.no_grad():
        vectors = [
            network(torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]).embeddings[0]
            for wave in (said, real)
        ]
    wanted = float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))
    assert measure(said, real, 16000) == pytest.approx(wanted, abs=1e-4) and wanted < 0.9999
    assert "wavlm" in measure.identity


class Opinion(torch.nn.Module):
    def forward(self, waves: torch.Tensor, rate: int) -> torch.Tensor:
        return waves.abs().mean(-1) + rate / 16000.0


def test_utmos_is_asked_at_16_khz(tmp_path):
    torch.jit.script(Opinion()).save(str(tmp_path / "utmos.pt"))
    wave = sound(0.5, 3, rate=8000)
    assert Utmos(tmp_path / "utmos.pt")(wave, wave, 8000) == pytest.approx(1.0 + float(np.abs(wave).mean()), abs=0.1)


class OpinionOfSamples(torch.nn.Module):
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        assert samples.dtype == torch.int16
        return samples.double().abs().mean(-1) / 32767.0 + 3.0


def test_utmos_of_16_bit_samples_is_asked_with_them(tmp_path):
    torch.jit.script(OpinionOfSamples()).save(str(tmp_path / "utmos.jit"))
    wave = sound(0.5, 3)
    said = Utmos(tmp_path / "utmos.jit")(wave, wave, 16000)
    assert said == pytest.approx(3.0 + float(np.abs(wave).mean()), abs=1e-3)


class OpinionOfThree(torch.nn.Module):
    def forward(self, waves: torch.Tensor, rate: int, more: int) -> torch.Tensor:
        return waves.mean(-1)


def test_models_that_are_none_are_refused(tmp_path):
    torch.jit.script(OpinionOfThree()).save(str(tmp_path / "three.pt"))
    with pytest.raises(DataError, match="takes 3 arguments"):
        Utmos(tmp_path / "three.pt")
    (tmp_path / "x.pt").write_bytes(b"no model")
    with pytest.raises(DataError, match="cannot be read as TorchScript"):
        Utmos(tmp_path / "x.pt")
    with pytest.raises(DataError, match="x-vector head"):
        SpeakerSimilarity(tmp_path)

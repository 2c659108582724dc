"""How a model hears: by units or by frames, as it has learnt, and by no other codec or source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_most.converse import Opened, open_ears
from megatron_most.data import MadeWith
from megatron_most.errors import DataError
from megatron_most.speech import FrameSettings, load_codec, open_frames
from megatron_most.vocab import AUDIO
from tests.data_files import make_codec, sound

MFCC = open_frames(FrameSettings(kind="mfcc", stack=2))


def opened(made_with: MadeWith, frames_tag: int | None) -> Opened:
    model: Any = SimpleNamespace(frames_tag=frames_tag)
    return Opened(Path("run"), model, made_with)


def test_a_model_of_units_hears_by_its_codec_alone(tmp_path: Path) -> None:
    codec = load_codec(make_codec(tmp_path / "codec", 12))
    of_units = opened(MadeWith(codec=codec.identity), None)
    assert open_ears(of_units, None) is None
    ears, wave = open_ears(of_units, codec), sound(1.0, 3)
    assert ears is not None and ears.facts() == {"codec": codec.identity.key}
    assert ears(wave) == tuple(codec.encode([wave])[0].units.tolist())
    other = load_codec(make_codec(tmp_path / "other", 8))
    with pytest.raises(DataError, match="the same units would be other sounds"):
        open_ears(of_units, other)


def test_a_model_of_frames_hears_by_their_source_and_needs_no_codec() -> None:
    ears, wave = open_ears(opened(MadeWith(frames=MFCC.identity), AUDIO), None), sound(1.0, 3)
    assert ears is not None and ears.facts() == {"frames": MFCC.identity.key}
    heard = ears(wave)
    assert isinstance(heard, np.ndarray) and heard.shape == (MFCC.num_frames(len(wave)), 78)
    assert np.array_equal(heard, MFCC([wave])[0])


@pytest.mark.parametrize(
    ("made_with", "complaint"),
    [
        (MadeWith(), "its folder does not say of which source"),
        (MadeWith(frames=replace(MFCC.identity, hash="e" * 64)), "the data has frames of"),
        (MadeWith(frames=replace(MFCC.identity, kind="hubert", model="/gone", layer=3)), "with --codec-model"),
    ],
    ids=["nothing said", "another source", "a model that has moved"],
)
def test_a_source_that_is_not_the_models_is_refused(made_with: MadeWith, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        open_ears(opened(made_with, AUDIO), None)

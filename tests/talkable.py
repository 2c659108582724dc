"""A model that can be talked to: trained for four steps, with its data, its codec, voices and a sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import soundfile

from megatron_most.speech import load_codec
from megatron_most.speech.codebook_fit import fit_codebook
from megatron_most.speech.vocoder_files import save_vocoder
from tests.data_files import sound
from tests.phases import make_blend, recipe, run


def make_talkable(root: Path) -> Path:
    """run/, its data/, vocoder/, one of another codec, and hello.wav."""
    data = make_blend(root / "data")
    run(recipe(data, root / "run", **{"train.steps": 4, "train.validate_every": 0}))
    soundfile.write(root / "hello.wav", sound(1.5, 7), 16000)
    codec = load_codec(data / "codec")
    waves = [sound(3, seed) for seed in range(4)]
    spoken = [(wave, units, 0) for wave, units in zip(waves, codec.encode(waves), strict=True)]
    save_vocoder(fit_codebook(spoken, codec.identity), root / "vocoder")
    other = fit_codebook(spoken, replace(codec.identity, hash="e" * 64))
    save_vocoder(other, root / "other vocoder")
    return root

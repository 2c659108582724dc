"""What augmentation is for, by the bias report: synthetic speech that is augmented is nearer to real speech, in the
respects that it touches, and no nearer in those that it does not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from megatron_most.config import AugmentConfig
from megatron_most.data.augment import augment_manifest
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.speech import load_codec
from megatron_most.synthesize.bias import BiasOptions, compare
from tests.data_files import RATE, cut, make_codec, sound, text, write_manifest

COUNT = 60
MILD = AugmentConfig(speed=1.0, speed_range=(0.8, 1.25), noise=1.0, noise_db=(5.0, 25.0), noise_slope=(0.0, 0.0))


def recorded(folder: Path, seed: int, is_real: bool) -> Manifest:
    """Clean, of one pace and one length; or with a room's noise, at every pace, as people speak."""
    draw, rows = np.random.default_rng(seed), []
    (folder / "audio").mkdir(parents=True)
    for n in range(COUNT):
        wave = sound(1.5, 1000 * seed + n)
        if is_real:
            at = np.arange(0, len(wave), draw.uniform(0.8, 1.25))
            wave = np.interp(at, np.arange(len(wave)), wave).astype(np.float32)
            level = float(np.sqrt(np.square(wave).mean())) * 10 ** (-draw.uniform(5, 25) / 20)
            wave = (wave + draw.normal(scale=level, size=len(wave))).clip(-1, 1)
        soundfile.write(folder / "audio" / f"{n}.wav", wave, RATE)
        seconds = len(wave) / RATE
        said = {"text": text(n), "speaker": f"{folder.name}-{n % 5}"}
        rows.append(cut(f"{folder.name}-{n}", f"{n}.wav", 0, seconds, seconds, **said))
    return write_manifest(folder / "manifest", rows, folder / "audio")


def test_augmented_speech_is_nearer_to_real_speech_than_plain_synthetic_speech_is(tmp_path: Path) -> None:
    real, synthetic = recorded(tmp_path / "real", 1, True), recorded(tmp_path / "made", 2, False)
    augment_manifest(synthetic, tmp_path / "augmented", MILD, copies=1)
    augmented = open_manifest(tmp_path / "augmented")
    codec = load_codec(make_codec(tmp_path / "codec"))
    sides = {}
    for name, manifest in (("real", real), ("plain", synthetic), ("augmented", augmented)):
        sides[name] = extract_units(
            manifest, codec, tmp_path / f"units-{name}", (0, 1), ExtractOptions(), manifest.audio_root
        )
    found = {}
    for name, manifest in (("plain", synthetic), ("augmented", augmented)):
        report = compare([manifest.folder], [real.folder], [sides[name]], [sides["real"]], BiasOptions(topics=2))
        found[name] = {one.name: one for one in report.findings}
    for respect in ("seconds", "units", "unit pairs"):
        before, after = found["plain"][respect], found["augmented"][respect]
        assert before.is_biased and after.divergence < 0.7 * before.divergence, (respect, before, after)
    assert found["plain"]["words"].divergence == found["augmented"]["words"].divergence  # texts are the same

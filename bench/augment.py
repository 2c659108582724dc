"""How fast speech is augmented on one core, as ratios to real time: the default set, and each effect when it is drawn.

    .venv/bin/python bench/augment.py [--minutes 30]          # or: make bench

CPU seconds of one process that does nothing else, on made-up speech of 2 to 16 s, so that other work on the machine
does not change the ratios. Ends with code 1 where the default set is below 200 times real time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from race import HEAD, Row

from megatron_most.config import AugmentConfig, load_recipe
from megatron_most.config.augment import EFFECTS
from megatron_most.runtime import set_threads
from megatron_most.speech import Augmenter, open_augmentation

RATE = 16000
WANTED = 200.0
NEEDS_FILES = ("voices",)


def made_up(minutes: float, seed: int = 0) -> list[np.ndarray]:
    """Syllables of changing pitch and loudness between pauses."""
    draw, found, left = np.random.default_rng(seed), [], 60 * minutes
    while left > 0:
        seconds = float(draw.uniform(2, 16))
        steps, count = int(seconds * 5) + 1, int(seconds * RATE)
        pitch = np.repeat(draw.uniform(90, 250, steps), RATE // 5)[:count]
        loud = np.repeat(draw.uniform(0, 0.5, steps) * (draw.random(steps) > 0.2), RATE // 5)[:count]
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        wave = sum(np.sin(n * phase) / n for n in range(1, 12)) * loud / 3 + draw.normal(scale=1e-3, size=count)
        found.append(wave.astype(np.float32))
        left -= seconds
    return found


def times_real_time(config: AugmentConfig, waves: Sequence[np.ndarray]) -> float:
    """Seconds of sound for each second of CPU."""
    augmenter = Augmenter(open_augmentation(config)[0])
    augmenter(waves[0], ("warm up",), RATE)
    began = time.process_time()
    for number, wave in enumerate(waves):
        augmenter(wave, (f"u-{number}", 1), RATE)
    return sum(map(len, waves)) / RATE / (time.process_time() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of sound for the default set; each effect a fifth")
    chosen = parser.parse_args()
    set_threads(1)
    waves = made_up(chosen.minutes)
    found = times_real_time(load_recipe("parts/augment").data.augment, waves)
    print(HEAD)
    wanted = f"≥ {WANTED:g}"
    print(
        Row(
            part="the default set", ours=f"{found:.0f}x real time", ratio=found, wanted=wanted, ok=found >= WANTED
        ).to_markdown()
    )
    for name in EFFECTS:
        if name not in NEEDS_FILES:
            alone = times_real_time(AugmentConfig(**{name: 1.0}), waves[: max(2, len(waves) // 5)])
            print(Row(part=f"{name}, always", ours=f"{alone:.0f}x real time", ratio=alone).to_markdown())
    return int(found < WANTED)


if __name__ == "__main__":
    raise SystemExit(main())

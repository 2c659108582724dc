"""A small made-up corpus for tests of the data pipeline: sound files, a manifest, a codec, a tokenizer."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.tokenizer import fit_tokenizer, token_map_for
from megatron_most.speech import fit_mfcc_codec, save_codec
from megatron_most.vocab import TokenMap

RATE = 16000
WORDS = "the quick brown fox jumps over a lazy dog while seven old owls watch from the barn".split()


def sound(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Tones and noises that change every tenth of a second, so that units change too."""
    draw = np.random.default_rng(seed)
    count = round(seconds * rate)
    steps = count * 10 // rate + 1
    pitch = np.repeat(draw.uniform(100, 2000, steps), rate // 10)[:count]
    loud = np.repeat(draw.uniform(0.05, 0.4, steps), rate // 10)[:count]
    noisy = np.repeat(draw.random(steps) < 0.3, rate // 10)[:count]
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    return (loud * np.where(noisy, draw.normal(size=count), tone)).clip(-1, 1).astype(np.float32)


def text(seed: int) -> str:
    draw = np.random.default_rng(seed)
    return " ".join(draw.choice(WORDS, size=int(draw.integers(3, 12)))) + "."


def cut(id: str, audio: str, start: float, duration: float, whole: float, **said: Any) -> dict[str, Any]:
    """A MonoCut dictionary of a 16 kHz file."""
    recording = audio.rsplit(".", 1)[0]
    supervision = {"id": id, "recording_id": recording, "start": 0, "duration": duration, "channel": 0, **said}
    return {
        "id": id,
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision],
        "recording": {
            "id": recording,
            "sources": [{"type": "file", "channels": [0], "source": audio}],
            "sampling_rate": RATE,
            "num_samples": round(whole * RATE),
            "duration": whole,
        },
        "type": "MonoCut",
    }


def write_manifest(folder: Path, cuts: list[dict[str, Any]], audio_root: Path, **changes: Any) -> Manifest:
    about: dict[str, Any] = dict(corpus="test", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(folder, kind="speech", audio_root=str(audio_root), **{**about, **changes}) as out:
        for row in cuts:
            out.add_cut(row)
    return open_manifest(folder)


def make_corpus(root: Path, recordings: int = 4, cuts: int = 12, seed: int = 0) -> Manifest:
    """Long recordings, each cut into many utterances of 0.5 to 2 seconds."""
    audio = root / "audio"
    audio.mkdir(parents=True)
    rows = []
    draw = np.random.default_rng(seed)
    for r in range(recordings):
        lengths = draw.uniform(0.5, 2.0, cuts).round(3)
        whole = round(float(lengths.sum()) + 0.1, 3)
        soundfile.write(audio / f"r{r}.flac", sound(whole, seed + r), RATE)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).round(3)
        for c, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            said = {"text": text(100 * r + c), "speaker": f"speaker-{r}", "language": "en"}
            rows.append(cut(f"r{r}-c{c}", f"r{r}.flac", start, length, whole, **said))
    return write_manifest(root / "manifest", rows, audio)


def make_codec(folder: Path, num_units: int = 16) -> Path:
    return save_codec(fit_mfcc_codec([sound(20, seed) for seed in (900, 901)], num_units), folder)


def make_tokenizer(folder: Path, num_units: int = 16) -> TokenMap:
    """Trained on the corpus' own words; writes token_map.json beside it."""
    fit_tokenizer([text(seed) for seed in range(200)] + ["User: Assistant: speech text"], 300, folder)
    tokens = token_map_for(folder, "own", num_units)
    tokens.save(folder / "token_map.json")
    return tokens


def content(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder, by its name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def kill_often(body: Callable[[], object], out: Path, seed: int, kills: int = 22) -> int:
    """Run `body`, a job that makes `out`, in processes killed at random moments, each after it has come a little
    further; at last let it end. How often it was killed before it was done.
    """
    journal = out.with_name(f"{out.name}.part") / ".journal.jsonl"
    draw, done = random.Random(seed), 0
    while not out.exists():
        before = journal.stat().st_size if journal.exists() else 0
        process = multiprocessing.get_context("fork").Process(target=body)
        process.start()
        while process.is_alive() and done < kills:
            if journal.exists() and journal.stat().st_size > before:
                time.sleep(draw.uniform(0, 0.05))
                process.kill()
                break
            time.sleep(0.001)
        process.join()
        done += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
    return done

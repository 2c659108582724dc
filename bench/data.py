"""Speed of the data pipeline, on one core, as ratios against the plain loop that one would write instead.

    .venv/bin/python bench/data.py [--part text] [--scale ci] [--json]          # or: make bench

Ours and the peer's take turns on the same input, and what they make is compared bit by bit; a ratio is the median over
the rounds of the peer's CPU seconds by ours (waiting for the disk does not count; ours waits for it, peers do not). The
process is bound to one core. `--scale full` takes ten minutes and ends with code 1 where a wanted ratio is missed;
`ci` only shows that all parts run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import peers
from data_inputs import SCALES, Inputs, sound_manifest, write_cuts

from megatron_most.data import Blend, Position, Reader, Steps, open_task
from megatron_most.data.build import CHUNK_ROWS, BuildInputs, BuildOptions, build
from megatron_most.data.corpora import LibriHeavy, write_manifest
from megatron_most.data.dataset import open_dataset
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.indexed import encode_documents, write_index
from megatron_most.data.manifest import ROWS
from megatron_most.data.tasks import TaskContext, make_documents
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.runtime import find_device, get_logger, run_command, set_threads

ROW_LENGTH = 2048
say = get_logger(__name__).info


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; a part without `ok` is told, not judged."""

    part: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    wanted: str = ""
    ok: bool | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each round; in the JSON only."""

    def to_markdown(self) -> str:
        verdict = "" if self.ok is None else "ok" if self.ok else "MISSED"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return "| " + " | ".join((self.part, self.ours, self.peer, ratio, self.wanted, verdict)) + " |"


Contender = Callable[[], Callable[[], object]]
"""Sets the stage anew for a round, which is not timed, and returns what is."""


def race(
    part: str,
    ours: Contender,
    peer: Contender,
    rounds: int,
    amount: tuple[float, str],
    wanted: float | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Row:
    """Both by turns. `amount`: how much is done in a round, as a rate's numerator."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds):
        for name, contender in (("ours", ours), ("peer", peer)):
            timed = contender()
            gc.collect()
            start = clock()
            timed()
            times[name].append(clock() - start)
        say("%s: round %d of %d, %.3g s and %.3g s", part, number + 1, rounds, times["ours"][-1], times["peer"][-1])
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["peer"], strict=True))
    mine, other = (f"{amount[0] / statistics.median(kept):.3g} {amount[1]}/s" for kept in times.values())
    judged = {} if wanted is None else {"wanted": f"≥ {wanted:g}", "ok": ratio >= wanted}
    return Row(part=part, ours=mine, peer=other, ratio=ratio, seconds=times, **judged)


def require_equal(part: str, *paths: Path) -> None:
    first, *rest = (path.read_bytes() for path in paths)
    assert all(data == first for data in rest), f"{part}: what was made differs: {', '.join(map(str, paths))}"


def text(inputs: Inputs) -> Iterator[Row]:
    """Texts to documents."""
    tokens, rows = inputs.tokens, inputs.text_manifest.folder / ROWS
    megabytes = sum(len(text.encode()) for text in inputs.texts) / 1e6
    out, prefix = fresh(inputs.folder / "ours"), inputs.folder / "peer"

    def ours() -> Callable[[], object]:
        made_of, folder = inputs.build_inputs("text-lm"), next(out)
        return lambda: build(made_of, BuildOptions(task="text-lm"), folder)

    def peer() -> Callable[[], object]:
        tokenizer = peers.open_tokenizer(inputs.tokenizer_file)
        return lambda: peers.build_texts(rows, tokenizer, tokens, prefix)

    yield race("text-lm: rows to .bin and .idx", ours, peer, inputs.scale.rounds, (megabytes, "MB"), 1.0)
    for name in (".bin", ".idx"):
        require_equal("text", inputs.folder / f"peer{name}", inputs.folder / f"ours-0/tokens{name}")

    parsed = list(inputs.text_manifest.rows())
    templates = load_templates("chat")

    def ours_alone() -> Callable[[], object]:
        context = TaskContext(token_map=tokens, tokenizer=load_tokenizer(inputs.tokenizer_file), templates=templates)

        def run() -> None:
            for at in range(0, len(parsed), 512):
                encode_documents(make_documents("text-lm", parsed[at : at + 512], context)[0], np.int32)

        return run

    def peer_alone() -> Callable[[], object]:
        tokenizer = peers.open_tokenizer(inputs.tokenizer_file)
        return lambda: [np.array(tokenizer.encode(one, add_special_tokens=False).ids) for one in inputs.texts]

    yield race("text-lm: tokenising alone", ours_alone, peer_alone, inputs.scale.rounds, (megabytes, "MB"))


def units(inputs: Inputs) -> Iterator[Row]:
    """Units to documents."""
    tokens, strings, scale = inputs.tokens, inputs.unit_strings, inputs.scale
    hours = inputs.unit_set.seconds / 3600
    out, prefix = fresh(inputs.folder / "ours-units"), inputs.folder / "peer-units"
    made_of = inputs.build_inputs("audio-lm")
    tokenizer = peers.open_tokenizer(inputs.tokenizer_file, tokens)

    def ours() -> Callable[[], object]:
        folder = next(out)
        return lambda: build(made_of, BuildOptions(task="audio-lm"), folder)

    def peer() -> Callable[[], object]:
        return lambda: peers.build_units(strings, tokenizer, tokens, prefix)

    def ours_alone() -> Callable[[], object]:
        folder = next(out)
        folder.mkdir()
        return lambda: build_documents(made_of, rows, folder)

    rows = list(inputs.speech_manifest.rows())
    amount = (hours, "h")
    yield race("audio-lm: units to .bin and .idx", ours_alone, peer, scale.rounds, amount, 10.0)
    yield race("audio-lm: the whole build, with manifest and hashes", ours, peer, scale.rounds, amount)
    for name in (".bin", ".idx"):
        made = [inputs.folder / f"ours-units-{number}/tokens{name}" for number in (0, scale.rounds)]
        require_equal("units", inputs.folder / f"peer-units{name}", *made)


def build_documents(made_of: BuildInputs, rows: list[Any], folder: Path) -> None:
    """What `build` does with units, in chunks of as many rows, without what it does with manifests."""
    context = TaskContext(token_map=made_of.tokens, tokenizer=made_of.tokenizer, templates=made_of.templates)
    [units] = made_of.units
    names = {"tokens": "tokens.bin", "lengths": ".lengths", "modes": ".modes", "counts": ".counts"}
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / file, "wb")) for name, file in names.items()}
        for first in range(0, len(rows), CHUNK_ROWS):
            chunk = [(row, units.find(at)) for at, row in enumerate(rows[first : first + CHUNK_ROWS], first)]
            encoded = encode_documents(make_documents("audio-lm", chunk, context)[0], np.int32)
            for name, file in files.items():
                file.write(getattr(encoded, name))
    write_index(folder / "tokens.idx", *(folder / names[name] for name in ("lengths", "modes", "counts")), np.int32)


def read(inputs: Inputs) -> Iterator[Row]:
    """Documents in random order."""
    for task in ("text-lm", "asr"):
        folder = inputs.dataset(task)
        documents = open_dataset(folder)[1]
        dataset, bounds = peers.open_indexed(folder / "tokens")
        order = np.random.default_rng(0).integers(0, len(documents), inputs.scale.reads).tolist()
        for index in order[:1000]:
            document = documents.document(index)
            parts, modes = dataset[bounds[index] : bounds[index + 1]]
            assert np.array_equal(document.ids, np.concatenate(parts)), f"document {index} differs"
            lengths = [len(part) for part in parts]
            assert np.array_equal(document.tags, np.repeat(modes & 127, lengths)), f"document {index}: other tags"
            assert np.array_equal(document.is_trained, np.repeat(modes < 0, lengths)), f"document {index}: other labels"

        def ours(documents: Any = documents, order: Any = order) -> Callable[[], object]:
            def run() -> None:
                for index in order:
                    documents.document(index)

            return run

        rows = []
        for way in (peers.read_slices, peers.read_sequences):

            def peer(way: Any = way, dataset: Any = dataset, bounds: Any = bounds, order: Any = order) -> Any:
                return lambda: way(dataset, bounds, order)

            amount = (len(order), "documents")
            rows.append(race(f"reading {task} documents", ours, peer, inputs.scale.rounds, amount, 1.0))
        yield min(rows, key=lambda row: row.ratio or 0.0)  # against the faster way to ask Core


def hubert(inputs: Inputs) -> Iterator[Row]:
    """Sound files to units."""
    import torch
    from transformers import HubertConfig, HubertModel

    from megatron_most.speech import HubertCodec, HubertFeatures, Quantiser

    scale, folder, layer = inputs.scale, inputs.folder / "model", inputs.scale.layer
    torch.manual_seed(0)
    whole = HubertModel(HubertConfig(**scale.hubert)).eval()
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if weight.ndim == 2 and name.startswith("encoder"):
                weight.mul_(4.0)  # frames of a model just born are too much alike
    whole.save_pretrained(folder)
    device = find_device()
    kinds = ["cpu", "gpu"] if device.kind == "gpu" else ["cpu"]
    for kind in kinds:
        where = find_device("cpu") if kind == "cpu" else device
        manifest, paths = sound_manifest(inputs.folder / kind, scale.waves * (1 if kind == "cpu" else 32))
        seconds = manifest.header.seconds
        model = whole.to(where.torch_device)
        features = HubertFeatures(folder, layer, normalise=False, device=where, precision="fp32")
        seen = np.concatenate(features([_wave(path) for path in paths[:: max(1, len(paths) // 8)]]))
        draw = np.random.default_rng(0)
        centroids = seen[draw.choice(len(seen), min(500, len(seen) // 4), replace=False)]
        centroids = centroids + 0.05 * seen.std(0) * draw.standard_normal(centroids.shape)
        codec = HubertCodec(features, Quantiser.from_centroids(centroids.astype(np.float32)))
        nearest = [
            torch.from_numpy(array.astype(np.float32)).to(where.torch_device)
            for array in (codec.quantiser.weight_KD, codec.quantiser.bias_K)
        ]
        cut = HubertModel.from_pretrained(folder, num_hidden_layers=layer).eval().to(where.torch_device)
        out, found = fresh(inputs.folder / f"units-{kind}"), {}
        threads = 1 if kind == "cpu" else 0

        def ours(out: Any = out, manifest: Any = manifest, codec: Any = codec, threads: int = threads) -> Any:
            target = next(out)
            options = ExtractOptions(decode_threads=threads)
            return lambda: extract_units(manifest, codec, target, (0, 1), options, manifest.audio_root)

        loops = {
            f"the whole model, layer {layer} of {len(whole.encoder.layers)} taken": (model, layer),
            "a model cut off there": (cut, None),
        }
        for label, (taken, which) in loops.items():
            loop = peers.hubert_loop(taken, which, *nearest)

            def peer(loop: Any = loop, label: str = label, paths: Any = paths, found: Any = found) -> Any:
                return lambda: found.__setitem__(label, loop(paths))

            if kind == "cpu":
                rounds, clock, wanted = min(3, scale.rounds), time.process_time, 1.0
            else:
                rounds, clock, wanted = scale.rounds, time.perf_counter, 2.0
            part = f"hubert units on the {kind}, against {label}"
            yield race(part, ours, peer, rounds, (seconds, "x"), wanted, clock)
            made = open_unit_sequences(inputs.folder / f"units-{kind}-0")
            same = [np.array_equal(a, b) for a, b in zip(made, found[label], strict=True)]
            say("%s: units of %d of %d files are equal", part, sum(same), len(same))
            assert all(same) or kind == "gpu", "the units differ"


def packing(inputs: Inputs) -> Iterator[Row]:
    """How full the rows are."""
    for tasks, wanted in (("asr",), 0.98), (("asr", "tts", "text-lm"), None):
        reader = open_reader(inputs, tasks)
        rows = [row for window in range(4) for row in reader.window_rows(window)]
        filled = sum(row.filled for row in rows) / (len(rows) * ROW_LENGTH)
        pieces = [piece.stop - piece.start - 1 for row in rows for piece in row.pieces]
        plain = peers.next_fit(np.random.default_rng(0).permutation(pieces).tolist(), ROW_LENGTH)
        yield Row(
            part=f"packing {' '.join(tasks)} into rows of {ROW_LENGTH}, documents of {np.mean(pieces):.0f} places",
            ours=f"{filled:.2%}",
            peer=f"{plain:.2%} in order",
            ratio=filled / plain,
            wanted="" if wanted is None else f"≥ {wanted:.0%}",
            ok=None if wanted is None else filled >= wanted,
        )


def reader(inputs: Inputs) -> Iterator[Row]:
    """A step's batches."""
    with Steps(open_reader(inputs, ("asr", "tts", "text-lm")), Position(), rows=512, ahead=False) as steps:
        next(steps)
        times, filled = [], []
        for _ in range(inputs.scale.steps):
            start = time.process_time()
            step = next(steps)
            times.append(time.process_time() - start)
            filled.append(step.filled(ROW_LENGTH))
    took = statistics.median(times)
    rate = 512 * ROW_LENGTH / took / 1e6
    words = f"{took * 1000:.0f} ms, {rate:.0f} M places/s"
    yield Row(part=f"a step of 512 rows of {ROW_LENGTH}, blended", ours=words, seconds={"ours": times})


def manifest(inputs: Inputs) -> Iterator[Row]:
    """LibriHeavy's cuts to a manifest."""
    scale = inputs.scale
    for name, count in (("few", scale.raced_cuts), ("many", scale.cuts)):
        folder = inputs.folder / name
        folder.mkdir()
        say("manifest: writing a list of %d cuts", count)
        write_cuts(folder / "cuts.jsonl.gz", folder / "audio", count)
    few, out = inputs.folder / "few", fresh(inputs.folder / "few" / "ours")

    def ours() -> Callable[[], object]:
        target = next(out)
        return lambda: write_manifest(libriheavy(few, target))

    def peer() -> Callable[[], object]:
        import lhotse  # noqa: F401 - its import is not timed

        return lambda: peers.copy_cuts(few / "cuts.jsonl.gz", few / "peer.jsonl.gz")

    yield race("manifest, against Lhotse's copy", ours, peer, min(3, scale.rounds), (scale.raced_cuts, "cuts"))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:  # a new process: nothing of ours in it
        rows, seconds, peak = child.submit(manifest_alone, inputs.folder / "many").result()
    assert rows == scale.cuts, f"{rows} rows of {scale.cuts} cuts"
    yield Row(
        part=f"manifest of {scale.cuts:,} cuts: peak memory",
        ours=f"{peak:.0f} MB at {rows / seconds:.3g} cuts/s",
        wanted="< 500 MB",
        ok=peak < 500,
    )


def manifest_alone(folder: Path) -> tuple[int, float, float]:
    """Rows, CPU seconds and peak MB of this process. Not by `getrusage`: its peak counts the parent's pages as well."""
    start = time.process_time()
    header = write_manifest(libriheavy(folder, folder / "ours"))
    seconds = time.process_time() - start
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return header.rows, seconds, int(peak.split()[1]) * 1024 / 1e6


def libriheavy(folder: Path, out: Path) -> LibriHeavy:
    return LibriHeavy(cuts=(folder / "cuts.jsonl.gz",), audio_root=folder / "audio", out=out)


def fresh(path: Path) -> Iterator[Path]:
    """path-0, path-1, ...: a finished job is not done twice."""
    number = 0
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def open_reader(inputs: Inputs, tasks: tuple[str, ...]) -> Reader:
    weights = {"asr": 0.4, "tts": 0.4, "text-lm": 0.2}
    specs = [open_task([inputs.dataset(task)], inputs.tokens, weight=weights[task]) for task in tasks]
    return Reader(Blend(specs), row_length=ROW_LENGTH, seed=1, token_map=inputs.tokens)


def open_unit_sequences(folder: Path) -> list[np.ndarray]:
    from megatron_most.data.unit_set import open_units

    [shard] = open_units(folder).shards
    return [shard.sequence(index).units for index in range(len(shard))]


def _wave(path: Path) -> np.ndarray:
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


PARTS: dict[str, Callable[[Inputs], Iterator[Row]]] = {
    part.__name__: part for part in (text, units, read, packing, reader, hubert, manifest)
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--part", choices=[*PARTS], action="append", help="only these; all parts if not given")
    parser.add_argument("--scale", choices=[*SCALES], default="full")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    set_threads(1)
    missed = 0
    if not chosen.json:
        print("| part | ours | peer | ratio | wanted | verdict |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        inputs = Inputs(Path(folder), SCALES[chosen.scale])
        for name in chosen.part or PARTS:
            for row in PARTS[name](inputs):
                print(json.dumps({"name": name, **asdict(row)}) if chosen.json else row.to_markdown(), flush=True)
                missed += row.ok is False
    return int(missed > 0 and chosen.scale == "full")


if __name__ == "__main__":
    run_command(main)

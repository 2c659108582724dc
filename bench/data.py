"""Speed of the data pipeline, on one core, as ratios against the plain loop that one would write instead.

    .venv/bin/python bench/data.py [--part text] [--scale ci] [--json]          # or: make bench

Ours and the peer's take turns on the same input, and what they make is compared bit by bit; a ratio is the median over
the rounds of the peer's CPU seconds by ours, of all threads; on a GPU, of the seconds on the clock. Waiting for the
disk is not in it: ours brings all it made to the disk, the peers do not. `--scale full` takes ten minutes and ends with
code 1 where a wanted ratio is missed; `ci` only shows that all parts run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import peers
from data_inputs import SCALES, Inputs, write_cuts
from race import HEAD, Row, fresh, race, require_equal, say

from megatron_most.data import Blend, Position, Reader, Steps, open_task
from megatron_most.data.build import CHUNK_ROWS, build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.corpora import LibriHeavy, write_manifest
from megatron_most.data.index_writer import encode_documents, write_index
from megatron_most.data.indexed import IndexedDocuments
from megatron_most.data.manifest import ROWS
from megatron_most.data.tasks import TaskContext, make_documents
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.runtime import run_command, set_threads

ROW_LENGTH = 2048


def text(inputs: Inputs) -> Iterator[Row]:
    """Texts to documents."""
    rows, prefix = inputs.text_manifest.folder / ROWS, inputs.folder / "peer"
    out, tokenizer = fresh(inputs.folder / "ours"), peers.open_tokenizer(inputs.tokenizer_file)
    amount = (sum(len(text.encode()) for text in inputs.texts) / 1e6, "MB")

    def ours() -> Callable[[], object]:
        made_of, folder = inputs.build_inputs("text-lm", load_tokenizer(inputs.tokenizer_file)), next(out)
        return lambda: build(made_of, BuildOptions(task="text-lm"), folder)

    def peer() -> Callable[[], object]:
        return lambda: peers.build_texts(rows, tokenizer, inputs.tokens, prefix)

    part = "text-lm: rows to .bin and .idx"
    yield race(part, ours, peer, rounds=inputs.scale.rounds, amount=amount, wanted=1.0)
    for name in (".bin", ".idx"):
        require_equal(inputs.folder / f"peer{name}", inputs.folder / f"ours-0/tokens{name}")

    def ours_alone() -> Callable[[], object]:
        fresh_one = load_tokenizer(inputs.tokenizer_file)  # it remembers words
        chunks = [inputs.texts[at : at + CHUNK_ROWS] for at in range(0, len(inputs.texts), CHUNK_ROWS)]
        return lambda: [fresh_one.encode_batch(chunk) for chunk in chunks]

    def peer_alone() -> Callable[[], object]:
        return lambda: [np.array(tokenizer.encode(text, add_special_tokens=False).ids) for text in inputs.texts]

    yield race("text-lm: tokenising alone", ours_alone, peer_alone, rounds=inputs.scale.rounds, amount=amount)


def units(inputs: Inputs) -> Iterator[Row]:
    """Units to documents, and the strings that spell them."""
    out, prefix, scale = fresh(inputs.folder / "ours-units"), inputs.folder / "peer-units", inputs.scale
    tokenizer, strings = peers.open_tokenizer(inputs.tokenizer_file, inputs.tokens), inputs.unit_strings
    made_of, rows = inputs.build_inputs("audio-lm", inputs.tokenizer), list(inputs.speech_manifest.rows())
    amount = (inputs.unit_set.seconds / 3600, "h")

    def ours() -> Callable[[], object]:
        folder = next(out)
        folder.mkdir()
        return lambda: build_documents(made_of, rows, folder)

    def ours_whole() -> Callable[[], object]:
        folder = next(out)
        return lambda: build(made_of, BuildOptions(task="audio-lm"), folder)

    def peer() -> Callable[[], object]:
        return lambda: peers.build_units(strings, tokenizer, inputs.tokens, prefix)

    yield race("audio-lm: units to .bin and .idx", ours, peer, rounds=scale.rounds, amount=amount, wanted=10.0)
    part = "audio-lm: the same with cuts read, a journal and hashes"
    yield race(part, ours_whole, peer, rounds=scale.rounds, amount=amount)
    for name in (".bin", ".idx"):
        made = [inputs.folder / f"ours-units-{number}/tokens{name}" for number in (0, scale.rounds)]
        require_equal(inputs.folder / f"peer-units{name}", *made)


def build_documents(made_of: BuildInputs, rows: list[Any], folder: Path) -> None:
    """What `build` does with units, without what it does with the rows of a manifest."""
    [unit_set] = made_of.units
    context = TaskContext(token_map=made_of.tokens, tokenizer=made_of.tokenizer, templates=made_of.templates)
    names = {"tokens": "tokens.bin", "lengths": ".lengths", "modes": ".modes", "counts": ".counts"}
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / file, "wb")) for name, file in names.items()}
        for first in range(0, len(rows), CHUNK_ROWS):
            chunk = [(row, unit_set.find(at)) for at, row in enumerate(rows[first : first + CHUNK_ROWS], first)]
            encoded = encode_documents(make_documents("audio-lm", chunk, context)[0], np.int32)
            for name, file in files.items():
                file.write(getattr(encoded, name))
    write_index(folder / "tokens.idx", *(folder / names[name] for name in ("lengths", "modes", "counts")), np.int32)


def read(inputs: Inputs) -> Iterator[Row]:
    """Documents in random order."""
    folders = {f"{task} documents": inputs.dataset(task) for task in ("text-lm", "asr")}
    folders["short uint16 texts"] = inputs.short_texts
    for what, folder in folders.items():
        ways = (peers.read_slices, peers.read_sequences)
        rows = [read_documents(inputs, folder, f"reading {what}", way) for way in ways]
        yield min(rows, key=lambda row: row.ratio or 0.0)  # against the faster way to ask Core


def read_documents(inputs: Inputs, folder: Path, part: str, way: Callable[..., None]) -> Row:
    documents = IndexedDocuments(folder)
    dataset, bounds = peers.open_indexed(folder / "tokens")
    order = np.random.default_rng(0).integers(0, len(documents), inputs.scale.reads).tolist()
    for index in order[:1000]:
        document = documents.document(index)
        parts, modes = dataset[bounds[index] : bounds[index + 1]]
        lengths = [len(part) for part in parts]
        assert np.array_equal(document.ids, np.concatenate(parts)), f"document {index} differs"
        assert np.array_equal(document.tags, np.repeat(modes & 127, lengths)), f"document {index}: other tags"
        assert np.array_equal(document.is_trained, np.repeat(modes < 0, lengths)), f"document {index}: other labels"

    def read_ours() -> None:
        for index in order:
            documents.document(index)

    return race(
        part,
        lambda: read_ours,
        lambda: lambda: way(dataset, bounds, order),
        rounds=inputs.scale.rounds,
        amount=(len(order), "documents"),
        wanted=1.0,
    )


def packing(inputs: Inputs) -> Iterator[Row]:
    """How full the rows are."""
    for tasks, wanted in (("asr",), 0.98), (("asr", "tts", "text-lm"), None):
        stream = open_reader(inputs, tasks)
        rows = [row for window in range(4) for row in stream.window_rows(window)]
        filled = sum(row.filled for row in rows) / (len(rows) * ROW_LENGTH)
        sizes = [piece.stop - piece.start - 1 for row in rows for piece in row.pieces]
        in_order = peers.next_fit(np.random.default_rng(0).permutation(sizes).tolist(), ROW_LENGTH)
        yield Row(
            part=f"packing {', '.join(tasks)} into rows of {ROW_LENGTH}: documents of {np.mean(sizes):.0f} places",
            ours=f"{filled:.2%} filled",
            peer=f"{in_order:.2%} in their order",
            ratio=filled / in_order,
            wanted="" if wanted is None else f"≥ {wanted:.0%}",
            ok=None if wanted is None else filled >= wanted,
        )


def reader(inputs: Inputs) -> Iterator[Row]:
    """A step's batches."""
    times = []
    with Steps(open_reader(inputs, ("asr", "tts", "text-lm")), Position(), rows=512, ahead=False) as steps:
        next(steps)
        for _ in range(inputs.scale.steps):
            start = time.process_time()
            next(steps)
            times.append(time.process_time() - start)
    took = statistics.median(times)
    words = f"{took * 1000:.0f} ms, {512 * ROW_LENGTH / took / 1e6:.1f} M places/s"
    yield Row(part=f"reading a step of 512 rows of {ROW_LENGTH}, blended", ours=words, seconds={"ours": times})


def open_reader(inputs: Inputs, tasks: tuple[str, ...]) -> Reader:
    weights = {"asr": 0.4, "tts": 0.4, "text-lm": 0.2}
    specs = [open_task([inputs.dataset(task)], inputs.tokens, weight=weights[task]) for task in tasks]
    return Reader(Blend(specs), row_length=ROW_LENGTH, seed=1, token_map=inputs.tokens)


def hubert(inputs: Inputs) -> Iterator[Row]:
    import data_hubert  # late: children that are spawned for other parts read this file too

    return data_hubert.hubert(inputs)


def manifest(inputs: Inputs) -> Iterator[Row]:
    """LibriHeavy's cuts to a manifest."""
    scale, few, many = inputs.scale, inputs.folder / "few", inputs.folder / "many"
    write_cuts(few, scale.raced_cuts)
    out = fresh(few / "ours")

    def ours() -> Callable[[], object]:
        target = next(out)
        return lambda: write_manifest(libriheavy(few, target))

    def peer() -> Callable[[], object]:
        import lhotse  # noqa: F401 - its import is not timed

        return lambda: peers.copy_cuts(few / "cuts.jsonl.gz", few / "peer.jsonl.gz")

    part, amount = "manifest of cuts, against Lhotse's copy of them", (scale.raced_cuts, "cuts")
    yield race(part, ours, peer, rounds=scale.rounds, amount=amount)
    say("writing a list of %d cuts", scale.cuts)
    write_cuts(many, scale.cuts)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:  # a new process: nothing of ours in it
        rows, seconds, peak = child.submit(manifest_alone, many).result()
    assert rows == scale.cuts, f"{rows} rows of {scale.cuts} cuts"
    yield Row(
        part=f"manifest of {scale.cuts:,} cuts: peak memory",
        ours=f"{peak:.0f} MB, {rows / seconds:,.0f} cuts/s",
        wanted="< 500 MB",
        ok=peak < 500,
        seconds={"ours": [seconds]},
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


PARTS: dict[str, Callable[[Inputs], Iterator[Row]]] = {
    part.__name__: part for part in (text, units, read, packing, reader, hubert, manifest)
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--part", choices=[*PARTS], action="append", help="these only; may be given again")
    parser.add_argument("--scale", choices=[*SCALES], default="full")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    set_threads(1)
    peers.import_core()
    missed = 0
    if not chosen.json:
        print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        inputs = Inputs(Path(folder), SCALES[chosen.scale])
        for name in chosen.part or PARTS:
            for row in PARTS[name](inputs):
                print(json.dumps({"name": name, **asdict(row)}) if chosen.json else row.to_markdown(), flush=True)
                missed += row.ok is False
    return int(missed > 0 and chosen.scale == "full")


if __name__ == "__main__":
    run_command(main)

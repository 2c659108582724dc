"""Drills of damaged files: a run stopped after two checkpoints is harmed in the newer one and started again."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from megatron_most.checkpoint import Record, Shelf, read_record, record, shelf, verify_files
from megatron_most.runtime import sha256_file
from tests.drills.bench import EVERY, STOPPED, Bench, Drill, NotInjected, Outcome, Run, injected, require
from tests.drills.child import Child, replace_everywhere

SHARD = "weights-00000.safetensors"
Harm = Callable[[Run], str]
"""Does it, and gives the proof."""


def go_on(harm: Harm, bench: Bench, goes_back_to: int, says: tuple[str, ...]) -> Outcome:
    """Harm the stopped run, start it again, and have it go on after the step `goes_back_to`."""
    whole, run = bench.whole(), bench.stopped()
    proof = harm(run)
    ended = run.finish()
    again = run.require_unbroken(whole, allowed=STOPPED - goes_back_to)
    said = ended.line(*says)
    ended.line("going on", f"step {goes_back_to}")
    return Outcome(proof, said, again)


def flip(path: Path, at: int, bits: int) -> str:
    before, data = sha256_file(path), bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)
    after = sha256_file(path)
    injected(before != after, f"{path} is as it was")
    return f"byte {at} of {path.parent.name}/{path.name} flipped: sha256 {before[:8]} -> {after[:8]}"


def flip_shard(run: Run) -> str:
    """The exponent of a number of the last norm: it would still be a number."""
    for path in sorted(run.step(STOPPED).glob("weights-*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for key, entry in json.loads(data[8 : 8 + length]).items():
            if "final_layernorm" in key:
                return flip(path, 8 + length + entry["data_offsets"][0] + 3, 0x02)
    raise NotInjected("there is no norm")


def flip_manifest(run: Run) -> str:
    """The place in the data, which would still be a place."""
    path = run.step(STOPPED) / record.MANIFEST
    found = re.search(rb'"row":\d*(\d)', path.read_bytes())
    injected(found, "the manifest names no row")
    assert found is not None
    return flip(path, found.start(1), 0x01)


def flip_latest(run: Run) -> str:
    path = run.checkpoints / "latest"
    found = re.search(rb'"step": (\d)', path.read_bytes())
    injected(found, "latest names no step")
    assert found is not None
    return flip(path, found.start(1), 0x01)


def truncate(run: Run) -> str:
    path = run.step(STOPPED) / SHARD
    before = path.stat().st_size
    os.truncate(path, before - 1000)
    return f"{path.parent.name}/{path.name}: {before} -> {path.stat().st_size} bytes"


def remove(run: Run) -> str:
    path = run.step(STOPPED) / SHARD
    path.unlink()
    return f"{path.parent.name}/{path.name} removed: there is {sorted(p.name for p in path.parent.iterdir())}"


def files_are_not_proven(child: Child) -> None:
    replace_everywhere(verify_files, lambda *args: None)


def manifest_is_not_proven(child: Child) -> None:
    replace_everywhere(record.read_manifest, lambda folder: (folder / record.MANIFEST).read_bytes())
    replace_everywhere(shelf._await_view, lambda folder, wanted: None)


def latest_decides(child: Child) -> None:
    def find(here: Shelf, verify: Any) -> tuple[Path, Record] | None:
        step = json.loads((here.folder / "latest").read_bytes())["step"]
        return here.path(step), read_record(here.path(step))

    Shelf.find_newest = find  # type: ignore[method-assign]


# A bomb


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def lay_bombs(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.stopped()
    live, mark = run.folder / "live", run.folder / "exploded"
    newest = run.step(STOPPED)
    process = get_context("fork").Process(target=pickle.loads, args=(pickle.dumps(Bomb(live)),))
    process.start()
    process.join()
    injected(live.exists(), "the bomb is a dud")
    bomb = pickle.dumps(Bomb(mark))
    places = [newest / "optimizer.pt", newest / "data.pkl", newest / SHARD, run.checkpoints / "latest"]
    for place in places:
        place.write_bytes(bomb)
    proof = f"{len(places)} pickles that run code (one was tried), among them {SHARD} and latest"
    ended = run.finish()
    require(not mark.exists(), "the bomb went off")
    said = ended.line("is not whole", SHARD)
    again = run.require_unbroken(whole, allowed=EVERY)
    return Outcome(proof, f"none was run; {said}", again)


def folders_are_unpickled(child: Child) -> None:
    """As a trainer does that keeps its optimizer in a .pt file."""
    read = record.read_manifest

    def careless(folder: Path) -> bytes:
        for path in folder.glob("*.pt"):
            pickle.loads(path.read_bytes())
        return read(folder)

    replace_everywhere(read, careless)


NOT_WHOLE = (f"step-{STOPPED:08d} is not whole", "trying the one before")
DRILLS = (
    Drill(
        name="truncated-shard",
        about="a weight file loses its last 1000 bytes",
        protection="files are proven before they are used",
        off=files_are_not_proven,
        body=lambda bench: go_on(truncate, bench, EVERY, (*NOT_WHOLE, "bytes where")),
    ),
    Drill(
        name="flipped-shard",
        about="one byte of a weight file is another",
        protection="files are proven before they are used",
        off=files_are_not_proven,
        body=lambda bench: go_on(flip_shard, bench, EVERY, (*NOT_WHOLE, "sha256")),
    ),
    Drill(
        name="missing-shard",
        about="a weight file is gone",
        protection="files are proven before they are used",
        off=files_are_not_proven,
        body=lambda bench: go_on(remove, bench, EVERY, (*NOT_WHOLE, "missing")),
    ),
    Drill(
        name="flipped-manifest",
        about="one byte of the manifest is another, and it still reads well",
        protection="the manifest is proven by its sum",
        off=manifest_is_not_proven,
        body=lambda bench: go_on(flip_manifest, bench, EVERY, (*NOT_WHOLE, "sha256")),
    ),
    Drill(
        name="flipped-latest",
        about="one byte of `latest` is another, and it names another step",
        protection="the checkpoints themselves decide which is the newest",
        off=latest_decides,
        body=lambda bench: go_on(flip_latest, bench, STOPPED, ("latest: names step", "taking the newest whole one")),
    ),
    Drill(
        name="pickle-bomb",
        about="files in a checkpoint that run code when unpickled",
        protection="nothing is unpickled",
        off=folders_are_unpickled,
        body=lay_bombs,
    ),
)

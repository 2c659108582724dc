"""Drills of changes between two attempts: other ranks are fine, another run is refused by name."""

from __future__ import annotations

import shutil

from megatron_most.config import resume
from megatron_most.data import Position, Reader, ReaderState
from megatron_most.runtime import sha256_file
from megatron_most.train import data_files
from tests.datasets import sign_again
from tests.drills.bench import STOPPED, Bench, Drill, Outcome, Run, injected, require
from tests.drills.child import Child, replace_everywhere

TOLERANCE = 5e-5  # fp32, sums in another order


def change_world_size(bench: Bench) -> Outcome:
    whole, run = bench.whole(2), bench.stopped()
    run.finish(1)
    again = run.require_unbroken(whole, allowed=0, rel=TOLERANCE)
    injected(len(run.trace(0, rank=1)) > 0 and not run.trace(1, rank=1), "both attempts had as many ranks")
    return Outcome("2 ranks, then 1", f"the same documents in each step, losses within {TOLERANCE:g}", again)


def place_is_counted_by_rank(child: Child) -> None:
    """As by a loader that counts its own samples."""
    check = Reader.check_state

    def careless(reader: Reader, state: ReaderState) -> Position:
        place = check(reader, state)
        return Position(place.window, place.row // 2)

    Reader.check_state = careless  # type: ignore[method-assign]


def change_data(bench: Bench) -> Outcome:
    """A token of the dataset is another: first under the old description, then under one that was made for it."""
    whole, run = bench.whole(), bench.stopped()
    other = bench.folder / f"{run.folder.name}.data"
    shutil.copytree(bench.data, other)
    tokens = other / "tokens.bin"
    before, data = sha256_file(tokens), bytearray(tokens.read_bytes())
    data[100] ^= 1
    tokens.write_bytes(data)
    injected(sha256_file(tokens) != before, "the data is as it was")
    said = refusal(run, "sha256", "tokens.bin", data__asr__train=[str(other)])
    sign_again(other)
    refusal(run, "fingerprint of dataset 0 of task asr", data__asr__train=[str(other)])
    tokens.unlink()  # the real one may have moved, though: its content counts
    shutil.rmtree(other)
    shutil.copytree(bench.data, other)
    run.finish(data__asr__train=[str(other)])
    again = run.require_unbroken(whole, allowed=0)
    return Outcome(
        "one bit of byte 100 of tokens.bin; then dataset.json made to fit it", f"code 2 twice: {said}", again
    )


def any_data_will_do(child: Child) -> None:
    replace_everywhere(data_files.prove_changed, lambda *args, **named: None)
    Reader.check_state = lambda reader, state: state.position  # type: ignore[method-assign]


def change_a_field(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.stopped()
    said = refusal(run, "train.learning_rate = 0.001, but the run", train__learning_rate=1e-3)
    run.finish()
    return Outcome("train.learning_rate 0.005 -> 0.001", f"code 2: {said}", run.require_unbroken(whole, allowed=0))


def any_recipe_will_do(child: Child) -> None:
    replace_everywhere(resume.require_same_run, lambda stored, config, taken: None)


def refusal(run: Run, *words: str, **changes: object) -> str:
    """The line by which the run refuses to go on, without a step."""
    ended = run.go(2, **changes)
    require(ended.codes == [2, 2], f"it ended with {ended.codes}: {ended.last_lines()}")
    require(not run.trace(run.attempts - 1), "it has taken steps")
    require(run.step(STOPPED).exists(), "its checkpoint is gone")
    return ended.line(*words)


DRILLS = (
    Drill(
        name="world-size",
        about="a run of 2 ranks goes on as one of 1",
        protection="the place in the data is one of the global stream",
        off=place_is_counted_by_rank,
        body=change_world_size,
    ),
    Drill(
        name="changed-data",
        about="a data file changes under a stopped run",
        protection="data is proven by its hash",
        off=any_data_will_do,
        body=change_data,
    ),
    Drill(
        name="changed-field",
        about="a field of the recipe changes that makes it another run",
        protection="the recipe is compared with the run's",
        off=any_recipe_will_do,
        body=change_a_field,
    ),
)

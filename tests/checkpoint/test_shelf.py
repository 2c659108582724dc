"""What is saved is what was there at the snapshot, one attempt at a time, and failures are heard by every rank."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import LocalTensors, Saver, Shelf, TakenOver, TensorReader, read_record, verify_files
from megatron_most.checkpoint import draft as drafts
from megatron_most.checkpoint import save as saving
from megatron_most.checkpoint import shelf as shelves
from megatron_most.errors import CheckpointError
from megatron_most.runtime import Claim, Ranks, claim
from tests.checkpoint.small import (
    die_before,
    ended,
    in_child,
    left_over,
    make_saver,
    newest,
    piece,
    save,
    save_all,
    small_pieces,
    state,
    whole_steps,
)
from tests.harness import run_ranks

STRIDE = 4
claims = sys.modules["megatron_most.runtime.claim"]


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing here cuts the power, and a killed process loses nothing that it has written. The real fsync."""
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return real


def latest(folder: Path) -> int:
    return json.loads((folder / "latest").read_text())["step"]


def test_the_newest_are_kept_and_latest_names_the_last(tmp_path: Path) -> None:
    saver = make_saver(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(saver, step)
        assert latest(tmp_path) == step and newest(tmp_path) == (step, 0)
    assert saver.shelf.steps() == [4, 3] and whole_steps(tmp_path) == {4: 0, 3: 0}
    assert not left_over(tmp_path) and not saver.is_busy


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_disk: Any
) -> None:
    """A power cut can lose a file whose name was on the disk before its content."""
    synced: list[Path] = []
    rename, at_rename = Path.rename, []

    def sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fast_disk(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        if target.name.startswith("step-"):
            inside = {re.sub(r"^\.(.*)\.\w{8}\.tmp$", r"\1", at.name) for at in synced if at.parent == path}
            at_rename.append((inside, {at.name for at in path.iterdir()}, synced[-1] == path, len(synced)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", renamed)
    save_all(tmp_path, 1)
    [(inside, there, is_folder_last, count)] = at_rename
    assert len(there) == 5 and there <= inside and is_folder_last
    assert synced[count] == tmp_path and ".latest" in synced[count + 1].name


def test_zero_keeps_all(tmp_path: Path) -> None:
    assert save_all(tmp_path, 1, 2, 3, 4, keep=0).steps() == [4, 3, 2, 1]


def test_what_changes_after_the_snapshot_is_not_written(tmp_path: Path) -> None:
    saver, tensors, training = make_saver(tmp_path), list(state(5)), {"step": 5, "by": 0, "deep": [1]}
    texts = {"recipe.toml": "step = 5\n"}
    snapshot = saver.snapshot(5, tensors, training, texts)
    for _, _, tensor in tensors:
        tensor.zero_()
    training["deep"][0] = training["step"] = 6  # type: ignore[index]
    texts["recipe.toml"] = ""
    saver.write(snapshot)
    saver.wait()
    assert newest(tmp_path) == (5, 0)
    assert read_record(saver.shelf.path(5)).training == {"step": 5, "by": 0, "deep": [1]}


def test_a_tensor_that_is_missing_or_misshapen_is_never_saved(tmp_path: Path) -> None:
    saver = make_saver(tmp_path)
    for left_out in small_pieces():
        kept = [entry for entry in state(1) if entry[1] != left_out]
        with pytest.raises(CheckpointError, match=f"^{left_out}: not among the tensors to save"):
            saver.snapshot(1, kept, {}, {})
    for kind, shape in itertools.product(("weight", "exp_avg"), ((8,), (16, 3), (4, 3), (8, 1), ())):
        wrong = [(k, n, torch.ones(shape) if (k, n) == (kind, "fc1.weight") else t) for k, n, t in state(1)]
        with pytest.raises(CheckpointError, match=f"^{kind} of fc1.weight: shape"):
            saver.snapshot(1, wrong, {}, {})
    for training in ({"loss": float("nan")}, {"set": {1}}):
        with pytest.raises(CheckpointError, match="cannot be stored as JSON"):
            saver.snapshot(1, state(1), training, {})
    for name in ("../a", "a/b", "", ".note-00000.json", "manifest.json", "weights-00000.safetensors"):
        with pytest.raises(CheckpointError, match="not the name of a file"):
            saver.snapshot(1, state(1), {}, {name: ""})


def test_training_goes_on_while_a_large_tensor_is_written(tmp_path: Path) -> None:
    """A writer that held the interpreter would let no tick pass."""
    saver = Saver(Shelf(tmp_path), {"large": [piece("large", (1 << 24,))]}, None, keep=0, versions={})
    snapshot = saver.snapshot(1, [("weight", "large", torch.ones(1 << 24))], {}, {})
    saver.write(snapshot)
    ticks = [time.monotonic()]
    while saver.is_busy:
        time.sleep(0.001)
        ticks.append(time.monotonic())
    saver.wait()
    assert max(b - a for a, b in itertools.pairwise(ticks)) < 0.5 * (ticks[-1] - ticks[0])


# A run that went back


def test_a_run_that_went_back_takes_the_place_of_what_was_saved_later(tmp_path: Path) -> None:
    for keep in (1, 2):
        folder = tmp_path / str(keep)
        save_all(folder, 10, 20, 30)
        saver = make_saver(folder, keep=keep)
        save(saver, 15, by=1)  # 20 and 30 were those of another course
        assert newest(folder) == (15, 1) and saver.shelf.steps() == [15, 10][:keep] and latest(folder) == 15
        save(saver, 15, by=2)
        save(saver, 20, by=2)
        assert newest(folder) == (20, 2) and not left_over(folder)
        assert whole_steps(folder) == dict([(20, 2), (15, 2)][:keep])


def test_a_damaged_newest_one_is_not_kept_for_the_good_that_follow(tmp_path: Path) -> None:
    shelf = save_all(tmp_path, 10, 20)
    (shelf.path(20) / "manifest.json").unlink()
    assert newest(tmp_path) == (10, 0)
    save(make_saver(tmp_path, keep=1), 15, by=1)
    assert newest(tmp_path) == (15, 1) and shelf.steps() == [15]


def test_a_checkpoint_that_cannot_take_its_name_leaves_the_others_theirs(tmp_path: Path) -> None:
    shelf = save_all(tmp_path, 1, 2, 3)
    with pytest.raises(FileNotFoundError):
        shelf.publish(tmp_path / ".step-lost", 2, "")
    assert whole_steps(tmp_path) == {1: 0, 2: 0, 3: 0} and not left_over(tmp_path) and latest(tmp_path) == 3


# Who may write


@contextlib.contextmanager
def attempt(folder: Path) -> Iterator[Claim]:
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder) as own:
        Shelf(folder).clear_drafts()
        yield own


def test_an_attempt_whose_claim_was_taken_over_saves_nothing(tmp_path: Path) -> None:
    with attempt(tmp_path) as own:
        saver = make_saver(tmp_path, own)
        save(saver, 1)
        (tmp_path / ".claim-000002").write_text("{}")
        with pytest.raises(TakenOver, match="another process has taken this folder over"):
            save(saver, 2)
        assert newest(tmp_path) == (1, 0) and not left_over(tmp_path)


def test_an_attempt_that_is_taken_over_while_it_writes_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(tmp_path) as own:
        saver = make_saver(tmp_path, own)
        save(saver, 1)
        written = drafts.Draft.write_share

        def slowly(self: Any, *args: Any) -> None:
            written(self, *args)
            (tmp_path / ".claim-000002").write_text("{}")

        monkeypatch.setattr(drafts.Draft, "write_share", slowly)
        with pytest.raises(TakenOver, match="another process has taken this folder over"):
            save(saver, 2)
        assert newest(tmp_path) == (1, 0) and not left_over(tmp_path)


def test_an_older_attempt_is_refused_by_the_checkpoints_too(tmp_path: Path) -> None:
    """A claim's number may be free again after clean ends; what a newer attempt saved still stands in the way."""
    old = make_saver(tmp_path, Claim(tmp_path, 1))
    (tmp_path / ".claim-000001").write_text("{}")
    save(old, 1)
    new = make_saver(tmp_path, Claim(tmp_path, 1))
    save(new, 2, by=1)
    for step in (1, 2, 3):
        with pytest.raises(TakenOver, match="attempt 2 of this run has saved here, so attempt 1 saves nothing more"):
            save(old, step)
    assert newest(tmp_path) == (2, 1) and whole_steps(tmp_path) == {1: 0, 2: 1} and not left_over(tmp_path)


def test_an_attempt_that_slept_between_its_last_look_and_its_rename_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the draft that a newer attempt has taken away can stop it then."""
    old, settle = make_saver(tmp_path), Shelf._settle
    save(old, 1)

    def sleep(shelf: Shelf) -> None:
        monkeypatch.setattr(Shelf, "_settle", settle)
        Shelf(tmp_path).clear_drafts()
        new = make_saver(tmp_path)
        for step in (1, 2):
            save(new, step, by=7)

    monkeypatch.setattr(Shelf, "_settle", sleep)
    with pytest.raises(CheckpointError, match="gone: another rank has failed, or a newer attempt has begun"):
        save(old, 1, by=1)
    assert whole_steps(tmp_path) == {1: 7, 2: 7} and newest(tmp_path) == (2, 7) and not left_over(tmp_path)


def test_an_attempt_that_slept_after_its_rename_leaves_latest_and_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_saver(tmp_path, keep=1), make_saver(tmp_path)
    sync = shelves.sync_folder

    def sleep(folder: Path) -> None:
        sync(folder)
        if folder == tmp_path:
            monkeypatch.setattr(shelves, "sync_folder", sync)
            save(new, 2, by=1)
            save(new, 3, by=1)

    monkeypatch.setattr(shelves, "sync_folder", sleep)
    with pytest.raises(TakenOver, match="step 3 of a newer attempt has come before step 1 of this one"):
        save(old, 1)
    assert latest(tmp_path) == 3 and set(whole_steps(tmp_path)) == {1, 2, 3}


def test_an_attempt_that_stops_anywhere_and_wakes_after_a_newer_one_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a node does that was thought dead. It stops before a touch of the folder, every fourth in turn."""
    monkeypatch.setattr(claims, "DEAD_AFTER_S", 0.02)
    here = claims.this_process()

    def old(folder: Path, number: int) -> None:
        claims.this_process = lambda: {**here, "boot": "another machine"}
        claims.BEAT_S = 1000.0
        with attempt(folder) as own:
            saver = make_saver(folder, own, keep=2)
            save(saver, 10)
            die_before(folder, number, signal.SIGSTOP)
            save(saver, 10, by=1)  # replaces its own
            save(saver, 20, by=1)

    outcomes, number = [], 3
    while True:
        folder = tmp_path / str(number)
        with ended(in_child(lambda folder=folder, number=number: old(folder, number))) as process:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            with attempt(folder) as own:
                first, _ = newest(folder)
                saver = make_saver(folder, own, keep=2)
                save(saver, first, by=7)
                save(saver, first + 10, by=7)
                os.kill(process.pid, signal.SIGCONT)
                _, status = os.waitpid(process.pid, 0)
                outcomes.append(os.waitstatus_to_exitcode(status))
                assert outcomes[-1] == 3 or first == 20, number  # it was told so when it woke, or was just ready
                assert newest(folder) == (first + 10, 7), number
                assert whole_steps(folder)[first] == 7 and latest(folder) <= first + 10, number
        number += STRIDE
    assert len(outcomes) > 8


# Failures that every rank hears of


def two_ranks(folder: Path, ranks: Ranks) -> Saver:
    """Each rank holds half of one tensor and shares another."""
    pieces = {"half": [piece("half", (8000,), (4000 * ranks.rank,), (4000,))], "both": [piece("both", (4, 4))]}
    return Saver(Shelf(folder), pieces, None, keep=0, versions={})


def tensors(step: int) -> list[tuple[str, str, torch.Tensor]]:
    return [("weight", "half", torch.full((4000,), float(step))), ("weight", "both", torch.full((4, 4), float(step)))]


def attempt_save(saver: Saver, step: int) -> str:
    started = time.monotonic()
    try:
        saver.write(saver.snapshot(step, tensors(step), {}, {}))
        saver.wait()
    except CheckpointError as error:
        return str(error)
    assert time.monotonic() - started < 20
    return ""


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files of this process cannot grow past `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_on_a_full_disk(ranks: Ranks, folder: Path, full: int, room: int) -> list[str]:
    saver = two_ranks(folder, ranks)
    said = [attempt_save(saver, 1)]
    with small_disk(room) if ranks.rank == full else contextlib.nullcontext():
        said.append(attempt_save(saver, 2))
    said.append(str(left_over(folder)))
    ranks.barrier()
    said.append(attempt_save(saver, 2))
    return said


@pytest.mark.parametrize(("full", "room"), [(0, 9000), (1, 9000), (0, 0), (1, 0)])
def test_both_ranks_hear_of_one_ranks_full_disk_and_the_next_save_works(tmp_path: Path, full: int, room: int) -> None:
    """With no room at all the failing rank cannot even leave a note, and yet all hear it."""
    folder = tmp_path / "checkpoints"
    first, second = run_ranks(save_on_a_full_disk, 2, folder, full, room, meet="tcp", timeout=60)
    assert first == second and first[0] == first[3] == "" and first[2] == "[]"
    assert first[1].startswith(f"rank {full}: ") and "File too large" in first[1] and "make room" in first[1]
    assert Shelf(folder).steps() == [2, 1]
    for step in (1, 2):
        record = read_record(Shelf(folder).path(step))
        verify_files(Shelf(folder).path(step), record)
        reader = TensorReader(Shelf(folder).path(step), record)
        for local in ("half", "both"):
            whole = record.tensors["weight"][local].shape
            read = LocalTensors(reader, {local: [piece(local, whole)]}).read("weight", local, whole)
            assert read is not None and torch.equal(read, torch.full(whole, float(step)))


@pytest.mark.parametrize("room", [0, 200, 1500])
def test_a_full_disk_is_one_clear_error_and_touches_nothing(tmp_path: Path, room: int) -> None:
    """No room for a shard; for the note; for the manifest."""
    save_all(tmp_path, 1)

    def limited() -> None:
        saver = make_saver(tmp_path)
        with small_disk(room):
            saver.write(saver.snapshot(2, state(2), {"step": 2, "by": 0}, {"recipe.toml": "step = 2\n"}))
            with pytest.raises(CheckpointError, match="not saved: File too large; what was saved before is whole"):
                saver.write(saver.snapshot(3, state(3), {}, {}))
            assert whole_steps(tmp_path) == {1: 0} and not left_over(tmp_path)
        save(saver, 3)

    with ended(in_child(limited)) as process:
        process.join()
        assert process.exitcode == 0
    assert whole_steps(tmp_path) == {1: 0, 3: 0}


def save_beside_a_rank_that_breaks(ranks: Ranks, folder: Path) -> str:
    drafts.WAIT_S = 60.0

    def broken(*args: Any) -> None:
        raise RuntimeError("no such luck")

    if ranks.rank == 1:
        drafts.write_tensors = broken  # type: ignore[assignment]
    return attempt_save(two_ranks(folder, ranks), 1)


def test_both_ranks_hear_of_any_failure_of_one(tmp_path: Path) -> None:
    said = run_ranks(save_beside_a_rank_that_breaks, 2, tmp_path / "checkpoints", timeout=60)
    assert said[0] == said[1] and re.fullmatch("rank 1: .*not saved: RuntimeError: no such luck", said[0])


def save_to(ranks: Ranks, folder: Path) -> str:
    return attempt_save(two_ranks(folder, ranks), 1)


def test_both_ranks_hear_that_a_draft_cannot_be_begun(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    said = run_ranks(save_to, 2, tmp_path / "checkpoints", timeout=60)
    assert said[0] == said[1] and re.match("rank 0: .*not saved: (File exists|Not a directory)", said[0])


def save_beside_a_rank_that_is_silent(ranks: Ranks, folder: Path) -> str:
    drafts.WAIT_S = 0.5
    if ranks.rank == 1:
        drafts.Draft.write_share = lambda *args: None  # type: ignore[method-assign]
    return attempt_save(two_ranks(folder, ranks), 1)


def test_a_rank_that_never_writes_its_part_is_named_after_the_time_limit(tmp_path: Path) -> None:
    said = run_ranks(save_beside_a_rank_that_is_silent, 2, tmp_path / "checkpoints", timeout=60)
    assert said[0] == said[1] and "rank 1 has not written its part within 0.5 s" in said[0]
    assert not left_over(tmp_path / "checkpoints") and Shelf(tmp_path / "checkpoints").steps() == []


def wait_for_a_slow_rank_0(ranks: Ranks, folder: Path) -> bool:
    """Whether this rank met the others in a collective before rank 0 had ended."""
    saver = two_ranks(folder, ranks)
    if ranks.rank == 0:
        publish = Saver._publish
        Saver._publish = lambda *args: (time.sleep(0.7), publish(*args))[1]  # type: ignore[method-assign, func-returns-value]
    met, agree = [], saving.agree
    saver.write(saver.snapshot(1, tensors(1), {}, {}))
    saving.agree = lambda error: (met.append(saver.shelf.steps()), agree(error))[1]
    saver.wait()
    return met[0] == [1]


def test_ranks_wait_for_rank_0_outside_of_a_collective(tmp_path: Path) -> None:
    assert run_ranks(wait_for_a_slow_rank_0, 2, tmp_path / "checkpoints", timeout=60) == [True, True]


def find_with_one_blind_rank(ranks: Ranks, folder: Path) -> tuple[int, int]:
    """Rank 1 does not see step 4 at first; rank 0 finds a shard of step 4 damaged, rank 1 one of step 2; the manifest
    of step 3 is damaged for both.
    """
    if ranks.rank == 1:
        folders = Shelf._folders
        Shelf._folders = lambda shelf: {s: f for s, f in folders(shelf).items() if s != 4}  # type: ignore[method-assign]
    seen = []

    def verify(path: Path, record: Any) -> None:
        seen.append(record.step)
        if (ranks.rank, record.step) in ((0, 4), (1, 2)):
            raise CheckpointError(f"{path}: damaged")

    found = Shelf(folder).find_newest(verify)
    assert found is not None
    return found[1].step, len(seen)


def test_ranks_that_see_different_damage_load_the_same_checkpoint(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3, 4)
    (tmp_path / "step-00000003" / "manifest.json").write_text("{}")
    assert run_ranks(find_with_one_blind_rank, 2, tmp_path, timeout=60) == [(1, 3), (1, 3)]


def mixed_dtypes(ranks: Ranks, folder: Path) -> str:
    saver = two_ranks(folder, ranks)
    dtype = torch.float32 if ranks.rank else torch.float64
    given = [(kind, name, tensor.to(dtype) if name == "half" else tensor) for kind, name, tensor in tensors(1)]
    saver.write(saver.snapshot(1, given, {}, {}))
    try:
        saver.wait()
    except CheckpointError as error:
        return str(error)
    return ""


def half_of_a_moment(ranks: Ranks, folder: Path) -> str:
    saver = two_ranks(folder, ranks)
    moment = [("exp_avg", "half", torch.ones(4000))] if ranks.rank == 0 else []
    saver.write(saver.snapshot(1, [*tensors(1), *moment], {}, {}))
    try:
        saver.wait()
    except CheckpointError as error:
        return str(error)
    return ""


def test_shares_that_do_not_make_up_a_tensor_are_not_saved(tmp_path: Path) -> None:
    for body, message in (
        (mixed_dtypes, "weight of half: float32 on one rank, float64 on another"),
        (half_of_a_moment, "exp_avg of half: the 1 pieces of it, with 4000 numbers, do not fill its shape [8000]"),
    ):
        said = run_ranks(body, 2, tmp_path / "checkpoints", timeout=60)
        assert said[0] == said[1] and message in said[0]
    assert Shelf(tmp_path / "checkpoints").steps() == []


def test_a_note_left_by_an_earlier_writing_is_never_used(tmp_path: Path) -> None:
    """The same step of the same attempt, written again after it went back."""
    saver = make_saver(tmp_path)
    folders = []
    make = Path.mkdir

    def noted(path: Path, *args: Any, **words: Any) -> None:
        folders.append(path.name)
        make(path, *args, **words)

    Path.mkdir = noted  # type: ignore[method-assign]
    try:
        save(saver, 1)
        save(saver, 1, by=1)
        save(make_saver(tmp_path), 1, by=2)
    finally:
        Path.mkdir = make  # type: ignore[method-assign]
    drafts_made = [name for name in folders if name.startswith(".step")]
    assert len(drafts_made) == len(set(drafts_made)) == 3 and newest(tmp_path) == (1, 2)


def test_a_thread_that_fails_in_any_way_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no such luck")

    threads = threading.active_count()
    save_all(tmp_path, 1)
    monkeypatch.setattr(drafts, "write_tensors", broken)
    with pytest.raises(CheckpointError, match="not saved: RuntimeError: no such luck"):
        save(make_saver(tmp_path), 2)
    assert newest(tmp_path) == (1, 0) and not left_over(tmp_path) and threading.active_count() == threads

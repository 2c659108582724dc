"""Merged shards are the bytes of one build; what does not belong together, or does not fit the disk, is refused."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.data.dataset import load_info
from megatron_most.data.document import DocumentRuns, Run
from megatron_most.data.merge import merge
from megatron_most.data.verify import verify
from megatron_most.errors import DataError
from megatron_most.runtime import Journal
from megatron_most.vocab import tiny_token_map
from tests.datasets import CODEC, SOURCE, random_documents, write_dataset

FORK = multiprocessing.get_context("fork")
DOCUMENTS = random_documents(60)
REJECTS = ["too long", "missing text", "too long", "not a number"]


def write_shards(folder: Path, cuts: tuple[int, ...] = (0, 25, 26, 60), **changes: Any) -> list[Path]:
    """Neighbouring documents in each shard, as `build` deals them."""
    count = len(cuts) - 1
    return [
        write_dataset(
            folder / f"{number:05d}-of-{count:05d}",
            DOCUMENTS[cuts[number] : cuts[number + 1]],
            shard=(number, count),
            rejects=[REJECTS[:2], REJECTS[2:3], REJECTS[3:]][number] if count == 3 else [],
            **changes,
        )
        for number in range(count)
    ]


def content(folder: Path) -> dict[str, Any]:
    """All bytes but those of job.json, and of dataset.json all that does not come of them."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    info = json.loads(found["dataset.json"])
    assert found.pop("job.json") and info["files"].pop("job.json") and info.pop("seal")
    return {**found, "dataset.json": json.dumps(info)}


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return write_shards(tmp_path / "shards")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_merged_shards_are_the_bytes_of_one_build(tmp_path: Path, shards: list[Path], order: tuple[int, ...]) -> None:
    whole = write_dataset(tmp_path / "whole", DOCUMENTS, rejects=REJECTS)
    before = [content(shard) for shard in shards]
    merge([shards[number] for number in order], tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)  # README.md too
    assert [content(shard) for shard in shards] == before
    verify(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shards", "whole"]


def test_a_merge_that_is_done_is_not_done_again(tmp_path: Path, shards: list[Path]) -> None:
    merge(shards, tmp_path / "out")
    stamp = (tmp_path / "out" / "tokens.bin").stat().st_mtime_ns
    merge(list(reversed(shards)), tmp_path / "out")
    assert (tmp_path / "out" / "tokens.bin").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="out: begun with shards"):
        merge(write_shards(tmp_path / "others", cuts=(0, 30, 60)), tmp_path / "out")


def test_blocks_smaller_than_a_file_make_no_difference(
    tmp_path: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(shards, tmp_path / "at-once")
    monkeypatch.setattr("megatron_most.data.merge._BLOCK", 7)
    merge(shards, tmp_path / "in-blocks")
    assert content(tmp_path / "in-blocks") == content(tmp_path / "at-once")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, shards: list[Path]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="out"):
        merge(shards, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


# What does not belong together.

OTHER_TOKENS = tiny_token_map(num_units=23)
DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"task": "tts"}, "task = 'tts', but 'asr'"),
    ({"codec": dataclasses.replace(CODEC, hash="0" * 64)}, "codec = CodecIdentity"),
    ({"codec": None}, "codec = None"),
    ({"templates": ("release", "f" * 64)}, "templates = "),
    ({"templates": ("chat", "0" * 64)}, "templates = "),
    ({"tokenizer": None}, "tokenizer = None"),
    ({"tokens": OTHER_TOKENS}, "another token map: num_units"),
    ({"overlaps": {}}, r"evaluation sets looked for = \[\]"),
    ({"provenance": ()}, "provenance = "),
    ({"provenance": (dataclasses.replace(SOURCE, manifest_sha256="0" * 64),)}, "provenance = "),
    ({"options": {"shard": [1, 3], "part": "valid", "hold_out": 0.0}}, "options.part = 'valid', but 'all'"),
    ({"options": {"shard": [1, 3], "part": "all"}}, "options.hold_out = None"),
    ({"options": {"shard": [1, 4], "part": "all", "hold_out": 0.0}}, "one of 4 shards, but .* is one of 3"),
    ({"options": {"shard": [0, 3], "part": "all", "hold_out": 0.0}}, "shard 0 of 3, but so is .*00000-of-00003"),
    ({"options": {"shard": [3, 3], "part": "all", "hold_out": 0.0}}, "not a shard of several"),
    ({"options": {"shard": [0, 1], "part": "all", "hold_out": 0.0}}, "not a shard of several"),
    ({"options": {"part": "all", "hold_out": 0.0}}, "options.shard = None: not a shard"),
]


@pytest.mark.parametrize(("changes", "message"), DIFFERENT, ids=[message for _, message in DIFFERENT])
def test_a_shard_that_differs_is_refused_by_name(
    tmp_path: Path, shards: list[Path], changes: dict[str, Any], message: str
) -> None:
    shutil.rmtree(shards[1])
    write_dataset(shards[1], DOCUMENTS[25:26], shard=(1, 3), rejects=REJECTS[2:3], **changes)
    with pytest.raises(DataError, match=message) as error:
        merge(shards, tmp_path / "out")
    assert "00001-of-00003" in str(error.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda s: [], "no shards given"),
        (lambda s: s[:2], "shard 2 of 3 is missing"),
        (lambda s: s[1:], "shard 0 of 3 is missing"),
        (lambda s: [s[0]], r"shard 1 of 3 is missing \(2 in all\)"),
        (lambda s: [*s, s[1]], "shard 1 of 3, but so is"),
        (lambda s: [*s, s[0].parent], "no dataset here"),
    ],
)
def test_a_set_with_holes_or_twins_is_refused(
    tmp_path: Path, shards: list[Path], choose: Callable[[list[Path]], list[Path]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        merge(choose(shards), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_document_in_two_shards_is_refused_by_its_id(tmp_path: Path, shards: list[Path]) -> None:
    shutil.rmtree(shards[1])
    twin = DocumentRuns(DOCUMENTS[3].id, DOCUMENTS[25].runs)
    write_dataset(shards[1], [twin], shard=(1, 3), rejects=REJECTS[2:3])
    with pytest.raises(DataError, match="document 'tiny/0/3': in .*00000-of-00003 and in .*00001-of-00003 .1 ids"):
        merge(shards, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx", "ids.txt", "rejects.jsonl"])
def test_a_shard_with_a_flipped_bit_is_refused(tmp_path: Path, shards: list[Path], name: str) -> None:
    whole = (shards[2] / name).read_bytes()
    at = len(whole) - 2 if name == "tokens.idx" else 3  # a mode: the index still fits itself
    (shards[2] / name).write_bytes(
        whole[:at] + bytes([whole[at] ^ 0x80 if at > 3 else whole[at] ^ 1]) + whole[at + 1 :]
    )
    with pytest.raises(DataError, match=f"00002-of-00003/{name}: damaged"):
        merge(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (shards[2] / name).write_bytes(whole)
    merge(shards, tmp_path / "out")  # goes on with the third
    verify(tmp_path / "out")


# Killed, and out of disk.


def merge_and_die(shards: list[Path], out: Path, commits: int, method: str) -> None:
    def die(self: Journal, *args: Any) -> None:
        nonlocal commits
        commits -= 1
        if commits < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *args)

    real = getattr(Journal, method)
    setattr(Journal, method, die)
    merge(shards, out)


@pytest.mark.parametrize(("method", "after"), [("commit", 0), ("commit", 1), ("commit", 2), ("write", 7), ("seal", 0)])
def test_a_merge_killed_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, shards: list[Path], method: str, after: int
) -> None:
    merge(shards, tmp_path / "unbroken")
    child = FORK.Process(target=merge_and_die, args=(shards, tmp_path / "out", after, method))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and (tmp_path / "out.part").exists()
    merge(shards, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "unbroken")
    assert not (tmp_path / "out.part").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB that can be enlarged."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs a tmpfs of its own, which this user may not mount; the limit on file sizes is tried below")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_clear_error_and_room_lets_it_go_on(tmp_path: Path, small_disk: Path) -> None:
    documents = random_documents(6000)
    shards = [
        write_dataset(tmp_path / "shards" / str(number), documents[number::3], shard=(number, 3)) for number in range(3)
    ]
    assert 200_000 < sum((shard / "tokens.bin").stat().st_size for shard in shards)
    with pytest.raises(DataError, match="out.part: cannot be written: No space left on device; make room") as error:
        merge(shards, small_disk / "out")
    assert "\n" not in str(error.value)
    assert not (small_disk / "out").exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    merge(shards, small_disk / "out")
    assert content(small_disk / "out") == content(merge(shards, tmp_path / "elsewhere"))


def merge_with_limit(shards: list[Path], out: Path, size: int, pipe: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        merge(shards, out)
    except DataError as error:
        pipe.send(str(error))


# One-token documents: the index is the largest file, so a limit below its size lets all the copying through.
@pytest.mark.parametrize("name", ["ids.txt", "tokens.idx"])
def test_a_file_that_cannot_grow_is_one_clear_error(tmp_path: Path, name: str) -> None:
    documents = [DocumentRuns(f"tiny/{n}", (Run(np.array([n % 30], np.int32), 0, True),)) for n in range(600)]
    shards = [write_dataset(tmp_path / str(n), documents[n * 300 :][:300], shard=(n, 2)) for n in range(2)]
    whole = merge(shards, tmp_path / "whole")
    sizes = {path.name: path.stat().st_size for path in whole.iterdir()}
    assert sorted(sizes, key=lambda each: sizes[each])[-2:] == ["ids.txt", "tokens.idx"]
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=merge_with_limit, args=(shards, tmp_path / "out", sizes[name] - 1, theirs))
    child.start()
    assert ours.poll(60)
    message = ours.recv()
    child.join()
    assert "out.part: cannot be written: File too large; make room" in message and "\n" not in message
    assert not (tmp_path / "out").exists()
    merge(shards, tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


def test_counts_are_added_and_provenance_is_kept_once(tmp_path: Path, shards: list[Path]) -> None:
    infos = [load_info(shard) for shard in shards]
    info = load_info(merge(shards, tmp_path / "out"))
    assert info.documents == 60 == sum(each.documents for each in infos)
    assert info.longest == max(each.longest for each in infos)
    assert info.rejects == {"too long": 2, "missing text": 1, "not a number": 1}
    assert info.provenance == (SOURCE,)
    assert info.options["shard"] == [0, 1]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").open()]
    assert reasons == REJECTS

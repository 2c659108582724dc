"""Shards laid end to end are the whole; an array submitted in part, or a folder dealt otherwise, is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.shards import find_shard, shard_folder, shard_rows, shard_spans
from megatron_most.errors import DataError
from tests.data_files import cut, write_manifest


def slurm(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


PARTS = {
    "--array=17": slurm(ID=17, MIN=17, MAX=17, COUNT=1, STEP=1),
    "--array=2-3": slurm(ID=2, MIN=2, MAX=3, COUNT=2, STEP=1),
    "--array=0-6:2": slurm(ID=2, MIN=0, MAX=6, COUNT=4, STEP=2),
    "--array=1,5": slurm(ID=5, MIN=1, MAX=5, COUNT=2),
    "--array=0:5": slurm(ID=0, MIN=0, MAX=0, COUNT=1, STEP=5),
}


@pytest.mark.parametrize("env", PARTS.values(), ids=PARTS)
def test_an_array_submitted_in_part_is_refused_and_told_what_to_give(env: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"give --shard I/N.*--shard \$SLURM_ARRAY_TASK_ID/N.*the whole array again"):
        find_shard("auto", env)
    assert find_shard("17/64", env) == (17, 64)


@pytest.mark.parametrize("least", [0, 1])
def test_a_whole_array_counts_from_0_or_from_1(least: int) -> None:
    for step in ({}, {"STEP": 1}):
        env = slurm(ID=least + 3, MIN=least, MAX=least + 7, COUNT=8, **step)
        assert find_shard("auto", env) == (3, 8)


def test_one_folder_holds_shards_of_one_count(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shard_folder(out, (3, 64)) == out / "00003-of-00064"
    for entry in ("00017-of-00064", "00002-of-00064.part"):  # finished, and begun
        (out / entry).mkdir(parents=True)
        assert shard_folder(out, (5, 64)) == out / "00005-of-00064"
        # --array=1 of an array from 0 looks like a whole one that counts from 1
        for shard, named in (((0, 1), "the whole in one"), ((0, 3), "shard 0 of 3"), ((63, 65), "shard 63 of 65")):
            said = f"{re.escape(str(out / entry))}: is one of 64 shards, but this would be {named}; .*--shard I/N"
            with pytest.raises(DataError, match=said):
                shard_folder(out, shard)
        (out / entry).rmdir()
    (out / "00002-of-something").mkdir()
    assert shard_folder(out, (0, 1)) == out


@pytest.mark.parametrize("name", ["out", "out.part"])
def test_shards_do_not_go_into_a_set_made_in_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "job.json").write_text("{}")
    assert shard_folder(tmp_path / "out", (0, 1)) == tmp_path / "out"
    with pytest.raises(DataError, match=f"{name}: is made in one, but this would be shard 0 of 2"):
        shard_folder(tmp_path / "out", (0, 2))


def speech(folder: Path, sizes: list[int]) -> Manifest:
    """Recordings of so many cuts each."""
    rows = [
        cut(f"{folder.name}{r}-{c}", f"{folder.name}{r}.wav", c, 1, 99) for r, n in enumerate(sizes) for c in range(n)
    ]
    return write_manifest(folder, rows, folder)


def texts(folder: Path, count: int) -> Manifest:
    about = dict(corpus=folder.name, split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(folder, kind="text", **about) as out:  # type: ignore[arg-type]
        for number in range(count):
            out.add_text(f"{folder.name}-{number}", "words")
    return open_manifest(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_of_several_manifests_run_through_them_in_order(tmp_path: Path, count: int) -> None:
    spoken = [speech(tmp_path / "a", [3, 1, 8, 2]), speech(tmp_path / "b", [1]), speech(tmp_path / "c", [5, 5, 9])]
    written = [texts(tmp_path / "t", 11), texts(tmp_path / "u", 6)]
    for manifests in (spoken, written):
        whole = [(m, row) for m, manifest in enumerate(manifests) for row in range(manifest.header.rows)]
        shards = [shard_spans(manifests, (number, count)) for number in range(count)]
        dealt = [[(m, row) for m, (a, b) in enumerate(spans) for row in range(a, b)] for spans in shards]
        assert [row for rows in dealt for row in rows] == whole
        if manifests is written and count <= 7:
            sizes = [len(rows) for rows in dealt]
            assert max(sizes) - min(sizes) <= 1
    rows = list(spoken[0].rows())
    for number in range(1, count):
        first, _ = shard_rows(spoken[0], (number, count))
        assert first in (0, len(rows)) or rows[first].recording != rows[first - 1].recording  # type: ignore[union-attr]

"""A checkpoint's files cut anew for another layout. Any layout reads any cut, so this is for locality alone.

Moments, training state and all small files come along. Every tensor is hashed in the old files and in the new, as one
whole, before the new folder gets its name.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from megatron_most.checkpoint import DTYPES, KINDS, Record, StoredPiece, TensorReader
from megatron_most.convert.families import FAMILIES
from megatron_most.convert.hashes import hash_tensor, hash_together
from megatron_most.convert.import_job import JOB
from megatron_most.convert.importer import file_name, key_of
from megatron_most.convert.options import Layout
from megatron_most.convert.ours import Ours
from megatron_most.convert.shares import Place, shares
from megatron_most.convert.tables import link
from megatron_most.convert.writing import OutFile, Sums, describe_work, require_apart, write_folder
from megatron_most.errors import CheckpointError
from megatron_most.runtime import get_logger, sha256_file

_log = get_logger(__name__)


@dataclass(frozen=True)
class Reshard:
    """A cut that has been checked."""

    ours: Ours
    files: list[OutFile]
    pieces: dict[str, dict[str, list[StoredPiece]]]
    layout: Layout

    def __str__(self) -> str:
        return f"{self.ours.folder}, step {self.ours.record.step}: {describe_work(self.files)}"


def prepare_reshard(ours: Ours, layout: Layout) -> Reshard:
    plan = ours.plan({f"layout.{name}": value for name, value in vars(layout).items()})
    links = link(FAMILIES["most"].table, plan)  # its rows are all that a model of ours can have
    ours.require_all_of(links, set())
    reshard = Reshard(ours, [], {kind: {} for kind in ours.record.tensors}, layout)
    for number, share in enumerate(shares(links, plan)):
        for stem, kinds in (("weights", KINDS[:1]), ("moments", KINDS[1:])):
            boxes: dict[str, tuple[str, Place]] = {}
            for kind in kinds:
                stored = ours.record.tensors.get(kind, {})
                for name, start, shape in (place for place in share if place[0] in stored):
                    key = key_of(kind, name, start, shape, stored[name].shape)
                    boxes[key] = kind, (name, start, shape)
                    piece = StoredPiece(file_name(stem, number), key, start, shape)
                    reshard.pieces[kind].setdefault(name, []).append(piece)
            if boxes:
                reshard.files.append(_file(ours, file_name(stem, number), boxes))
    return reshard


def run_reshard(reshard: Reshard, out: Path) -> bool:
    """Write it; False where it is there already."""
    require_apart(out, reshard.ours.folder)
    job = {
        "what": "reshard",
        "source": sha256_file(reshard.ours.folder / "manifest.json"),
        "layout": vars(reshard.layout),
    }
    return write_folder(out, job, reshard.files, partial(_finish, reshard), "reshard")


def _file(ours: Ours, name: str, boxes: dict[str, tuple[str, Place]]) -> OutFile:
    def read(key: str) -> torch.Tensor:
        kind, (tensor, start, shape) = boxes[key]
        return ours.read_box(kind, tensor, start, shape)

    types = {key: DTYPES[ours.record.tensors[kind][place[0]].dtype] for key, (kind, place) in boxes.items()}
    return OutFile(name, {key: (types[key], place[2]) for key, (_, place) in boxes.items()}, read)


def _finish(reshard: Reshard, folder: Path, sums: Sums) -> None:
    ours = reshard.ours
    of_tensors = {piece.file for named in ours.record.tensors.values() for t in named.values() for piece in t.pieces}
    for name in ours.record.files.keys() - of_tensors - {JOB}:
        shutil.copyfile(ours.folder / name, folder / name)
        sums[name] = ours.record.files[name]
    sums[JOB] = (folder / JOB).stat().st_size, sha256_file(folder / JOB)
    tensors = {
        kind: {name: replace(named[name], pieces=tuple(reshard.pieces[kind][name])) for name in named}
        for kind, named in ours.record.tensors.items()
    }
    record = replace(ours.record, tensors=tensors, files=sums)
    _compare(ours, TensorReader(folder, record), record)
    record.save(folder)


def _compare(ours: Ours, new: TensorReader, record: Record) -> None:
    for kind, named in record.tensors.items():
        hashes = {}
        for name in named:
            hashes[name] = hash_tensor(ours.reader, kind, name)
            if hash_tensor(new, kind, name) != hashes[name]:
                raise CheckpointError(f"{new.folder}: {kind} of {name} is not what it was; nothing was kept")
        if hashes:
            _log.info("%s: %d tensors, the same before and after: sha256 %s", kind, len(hashes), hash_together(hashes))

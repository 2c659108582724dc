"""One of our checkpoints, opened: proven, with its recipe, its token map, and a plan of its model on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint import Piece, Record, Shelf, StoredTensor, TensorReader, read_record, verify_files
from megatron_most.config import Plan, RunConfig, load_recipe, replace
from megatron_most.convert.import_job import RECIPE, SOURCE
from megatron_most.convert.settings import read_json
from megatron_most.convert.shares import plan_for
from megatron_most.convert.tables import Link, Shape
from megatron_most.convert.token_maps import FILE as TOKEN_MAP
from megatron_most.errors import CheckpointError
from megatron_most.vocab import TokenMap

ONE_RANK = {f"layout.{name}": 1 for name in ("tensor", "expert", "pipeline", "context")} | {
    "layout.expert_tensor": None,
    "moe.load_file": None,
}
_TABLES = ("config", "upcycle", "partition", "constants")
"""Of SOURCE, where they are there."""


@dataclass(frozen=True)
class Ours:
    """A step's folder."""

    folder: Path
    record: Record
    config: RunConfig
    tokens: TokenMap
    reader: TensorReader = field(repr=False)

    @property
    def weights(self) -> dict[str, StoredTensor]:
        return self.record.tensors["weight"]

    @property
    def source(self) -> dict[str, Any]:
        """What an imported one says it was made from; empty for a trained one."""
        found = read_json(self.folder / SOURCE) if SOURCE in self.record.files else {}
        tables = [found, *(found[name] for name in _TABLES if name in found)] if isinstance(found, dict) else [None]
        if not all(isinstance(table, dict) for table in tables):
            raise CheckpointError(f"{self.folder / SOURCE}: not what an import writes; import the model again")
        return found

    def plan(self, changes: dict[str, Any] | None = None) -> Plan:
        """Of its model on one rank; `changes` are changes of its config."""
        return plan_for(replace(self.config, {**ONE_RANK, **(changes or {})}), self.tokens)

    def read(self, kind: str, name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        """Rows of a whole tensor."""
        whole = self.record.tensors[kind][name].shape
        return self.read_box(kind, name, (first, *[0] * (len(whole) - 1)), (rows or whole[0], *whole[1:]))

    def read_box(self, kind: str, name: str, start: Shape, shape: Shape) -> torch.Tensor:
        whole = self.record.tensors[kind][name].shape
        return self.reader.read(kind, Piece(name, whole, start, shape, "", (0,) * len(whole)))

    def require_all_of(self, links: list[Link], may_be_left: set[str]) -> None:
        """CheckpointError unless the stored weights are those of the links, shape by shape, and what may be left."""
        named = {link.name: link.shape for link in links}
        missing = named.keys() - self.weights.keys()
        left = self.weights.keys() - named.keys() - may_be_left
        for what, names in (("is missing", missing), ("has no place in the model that resolved.toml tells of", left)):
            if names:
                raise CheckpointError(f"{self.folder}: {min(names)} {what}")
        for name, shape in named.items():
            if self.weights[name].shape != shape:
                found = list(self.weights[name].shape)
                raise CheckpointError(f"{self.folder}: {name} has shape {found}, {RECIPE} makes it {list(shape)}")


def find_ours(path: Path) -> tuple[Path, Record] | None:
    """A step's folder as it is, or the newest whole one of a run's; None where neither is there."""
    if (path / "manifest.json").exists():
        return path, read_record(path)
    shelf = Shelf(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    return shelf.find_newest(verify_files)


def open_ours(path: Path | str) -> Ours:
    """CheckpointError where it is not whole: every file is proven by its hash."""
    path = Path(path)
    found = find_ours(path)
    if found is None:
        raise CheckpointError(
            f"{path}: no checkpoint there; give a run's or a step's folder, or one with a config.json"
        )
    folder, record = found
    if folder == path:  # else it was proven while the newest was looked for
        verify_files(folder, record)
    if "weight" not in record.tensors:
        raise CheckpointError(f"{folder}: holds no weights, so there is no model in it")
    for name in (RECIPE, TOKEN_MAP):
        if name not in record.files:
            raise CheckpointError(f"{folder}: holds no {name}, so nothing says what model it is")
    tokens = TokenMap.load(folder / TOKEN_MAP)
    return Ours(folder, record, load_recipe(folder / RECIPE), tokens, TensorReader(folder, record))

"""A Hugging Face model folder, read tensor by tensor: config.json, an index, and safetensors files, nothing else.

All headers are checked before a number is read. Pickles are never opened, and no code of the folder is run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from megatron_most.checkpoint import TensorFile
from megatron_most.config import RunConfig
from megatron_most.convert.settings import Settings, is_text, read_json
from megatron_most.convert.tables import Link
from megatron_most.errors import CheckpointError, DataError
from megatron_most.runtime import confine, get_logger, printable

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ROWS_AT_ONCE = 8192
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
_LONGEST_NAME = 200
"""Of a file, in messages."""
_log = get_logger(__name__)


class HfFolder:
    """A folder, open for reading."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not os.path.isdir(self.folder):  # Path.is_dir raises where the name is too long
            raise CheckpointError(f"{self.folder}: no such folder; give a model's folder, already downloaded")
        self.settings = Settings.load(self.folder / CONFIG)
        self._index: dict[str, str] | None = None
        self.files = {name: TensorFile(_inside(self.folder, name)) for name in sorted(self._file_names())}
        self.where = {key: file for file in self.files.values() for key in file.entries}
        self._check_each_is_in_one_file()
        if more := sorted({path.name for path in self.folder.glob("*.safetensors")} - self.files.keys()):
            others = f" and {len(more) - 1} more" if len(more) > 1 else ""
            _log.info("%s: %s%s: no part of the model by its index, and not read", self.folder, more[0], others)

    @property
    def num_bytes(self) -> int:
        return sum(entry.stop - entry.start for file in self.files.values() for entry in file.entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self.where[name].entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.where[name].entries[name].dtype

    def read(self, name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        return self.where[name].read(name, first, rows)

    def fingerprint(self) -> str:
        """Of config.json, all headers, and when files were last written: what a conversion that goes on must find."""
        digest = hashlib.sha256((self.folder / CONFIG).read_bytes())
        for name, file in self.files.items():
            about = file.path.stat()
            heads = {key: [str(entry.dtype), entry.shape, entry.start] for key, entry in file.entries.items()}
            digest.update(json.dumps([name, about.st_size, about.st_mtime_ns, heads]).encode())
        return digest.hexdigest()

    def require_room(self, config: RunConfig) -> None:
        """CheckpointError where the files hold fewer tensors than such a model has, before each is given its name: two
        numbers of a config.json can ask for more names than there is memory.
        """
        layers, experts = config.model.num_layers, config.moe.num_experts
        with_experts = (layers - len(config.moe.dense_layers)) if experts else 0
        if layers + 3 * experts * with_experts > len(self.where):  # a norm of each layer, three tensors of each expert
            model = f"{layers} layers" + (f", {with_experts} of them with {experts} experts" if experts else "")
            wrong = f"{CONFIG} tells of {model}, but the files hold {len(self.where)} tensors"
            raise CheckpointError(f"{self.folder}: {wrong}: the folder is not whole, or {CONFIG} is of another model")

    def match(self, links: Iterable[Link], aside: Iterable[str], derived: Iterable[str]) -> list[str]:
        """The tensors to be kept aside. CheckpointError unless the others are just those that the links name."""
        wanted = {name: shape for link in links for name, shape in link.parts}
        kept = [
            name for name in self.where if name not in wanted and any(fnmatchcase(name, pattern) for pattern in aside)
        ]
        left_out = {name for name in self.where if any(fnmatchcase(name, pattern) for pattern in derived)}
        there = self.where.keys() - left_out - set(kept)
        for what, names, remedy in (
            ("missing", wanted.keys() - there, "the folder is not whole, or config.json is of another model"),
            ("not known", there - wanted.keys(), "config.json says nothing of it, so it is of another model"),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise CheckpointError(f"{self.folder}: tensor {min(names)}{more}: {what}; {remedy}")
        for name, shape in wanted.items():
            if (found := self.shape(name)) != shape:
                wrong = f"{name} has shape {list(found)}, {CONFIG} makes it {list(shape)}"
                raise CheckpointError(f"{self.where[name].path}: {wrong}")
        return sorted(kept)

    def require_copy(self, name: str, of: str) -> None:
        """CheckpointError unless a tensor is another one over again, looked at in parts."""
        if self.shape(name) != self.shape(of) or self.dtype(name) != self.dtype(of):
            raise CheckpointError(f"{self.where[name].path}: {name} is not {of}, which {CONFIG} ties it to")
        rows = self.shape(name)[0]
        for first in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - first)
            if not torch.equal(self.read(name, first, count), self.read(of, first, count)):
                raise CheckpointError(f"{self.where[name].path}: {name} is not {of}, which {CONFIG} ties it to")

    def _file_names(self) -> set[str]:
        if (self.folder / INDEX).exists():
            self._index = self._read_index()
            return set(self._index.values())
        if (self.folder / SINGLE).exists():
            return {SINGLE}
        if found := sorted(path.name for path in self.folder.glob("*.safetensors")):
            raise CheckpointError(f"{self.folder}: {found[0]}, but neither {SINGLE} nor {INDEX}; fetch the index too")
        for pattern in _PICKLES:
            if found := sorted(path.name for path in self.folder.glob(pattern)):
                raise CheckpointError(
                    f"{self.folder}: only {found[0]}: pickles can run code and are never read; fetch the safetensors "
                    "files, or convert where you trust them: transformers' save_pretrained writes safetensors"
                )
        raise CheckpointError(f"{self.folder}: no {SINGLE} and no {INDEX}; give the folder of a whole model")

    def _read_index(self) -> dict[str, str]:
        path = self.folder / INDEX
        index = read_json(path)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise CheckpointError(f"{path}: cannot be read as an index: it has no weight_map of tensors and files")
        if not files:
            raise CheckpointError(f"{path}: names no tensor")
        return files

    def _check_each_is_in_one_file(self) -> None:
        seen: dict[str, str] = {}
        for name, file in self.files.items():
            for key in file.entries:
                if key in seen:
                    raise CheckpointError(f"{self.folder}: {key} is in {seen[key]} and in {name}; which is meant?")
                seen[key] = name
        for key, name in (self._index or {}).items():
            if seen.get(key) != name:
                there = f"it is in {seen[key]}" if key in seen else "it is not there"
                raise CheckpointError(f"{self.folder}: {INDEX} has {key} in {name}, but {there}")
        if self._index is not None and (unlisted := seen.keys() - self._index.keys()):
            key = min(unlisted)
            raise CheckpointError(f"{self.folder}: {key} is in {seen[key]}, but not in {INDEX}")


def _inside(folder: Path, name: str) -> Path:
    """The path of a file that the index names. In the hub's cache it is a link to the blobs beside the snapshots."""
    shown = printable(repr(name), _LONGEST_NAME)
    if Path(name).name != name or not name.endswith(".safetensors") or not is_text(name):
        raise CheckpointError(f"{folder}: {INDEX} names {shown}, which is no safetensors file of this folder")
    real = folder.resolve()
    root = real.parent.parent if real.parent.name == "snapshots" else real
    try:
        path = confine(root, (real / name).relative_to(root))
    except DataError as error:
        raise CheckpointError(f"{folder}: {INDEX} names a file outside of it: {error}") from error
    if not os.path.isfile(path):  # Path.is_file raises where the name is too long
        raise CheckpointError(f"{folder}: {printable(name, _LONGEST_NAME)} is missing; fetch it again")
    return path

"""What a folder is, and its proof: a manifest, a unit set, a dataset, or the shards of one.

In: a path that a user named. Out: what was proven, in words. A DataError says what is wrong with it; or, where it is
none of these folders, what was found instead and which to name.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_most.data.dataset_info import INFO
from megatron_most.data.frame_files import FEATURES, open_kept
from megatron_most.data.frame_files import HEADER as FRAMES
from megatron_most.data.index_format import BIN
from megatron_most.data.manifest import HEADER as MANIFEST
from megatron_most.data.manifest import ROWS, open_manifest
from megatron_most.data.merge import open_shards
from megatron_most.data.shards import shard_folders
from megatron_most.data.unit_set import ARRAYS, open_units
from megatron_most.data.unit_set import HEADER as UNITS
from megatron_most.data.verify import verify
from megatron_most.errors import DataError

_WANTED = (
    f"verify takes the folder of a manifest ({MANIFEST} in it), of a unit set ({UNITS}), of kept frames ({FRAMES}) or "
    f"of a dataset ({INFO}), or one with all shards of these"
)
_KINDS = {  # its record -> what the folder is, and a file that only this kind has
    MANIFEST: ("a manifest", ROWS),
    UNITS: ("a unit set", next(iter(ARRAYS))),
    INFO: ("a dataset", BIN),
    FRAMES: ("kept frames", FEATURES),
}
_OTHERS = {  # a file -> what a folder with it is; the first that fits
    "manifest.sha256": "a checkpoint of a training run",
    "resolved.toml": "the folder of a training run",
    "codec.json": "a codec",
    "tokenizer.json": "a tokenizer",
    "token_map.json": "a token map",
    ".journal.jsonl": "the unfinished work of a step (run that step again)",
}
_NAMED = 5


def verify_folder(path: Path, *, with_core: bool) -> str:
    """Read all of it. `with_core`: datasets are opened with Megatron-Core too."""
    match _kind(path):
        case "manifest":
            manifest = open_manifest(path)
            manifest.verify()
            count = sum(1 for _ in manifest.rows())
            if count != manifest.header.rows:
                raise DataError(f"{path}: {count} rows where the header says {manifest.header.rows}")
            return f"{count:,} rows"
        case "unit set":
            units = open_units(path)
            for shard in units.shards:
                shard.verify()
            return f"{len(units.shards)} shards, {units.seconds / 3600:.2f} h"
        case "kept frames":
            kept = open_kept(path)
            kept.verify()
            return f"{len(kept.shards)} shards, {kept.num_spans:,} spans, {kept.identity}"
        case "dataset":
            return str(verify(path, with_core=with_core))
        case "dataset in shards":
            shards = open_shards(shard_folders(path))
            for one in shards:
                one.documents.close()
                verify(one.folder, with_core=with_core)
            core = "; Megatron-Core reads the same" if with_core else ""
            return f"{len(shards)} shards, {sum(one.info.documents for one in shards):,} documents{core}"
    raise DataError(f"{path}: {_found(path)}; {_WANTED}")


def _kind(path: Path) -> str | None:
    if (path / INFO).is_file():
        return "dataset"
    if (path / UNITS).is_file():
        return "unit set"
    if (path / FRAMES).is_file():
        return "kept frames"
    if (path / MANIFEST).is_file() and not (path / "manifest.sha256").exists():
        return "manifest"
    shards = shard_folders(path)
    if any((shard / INFO).is_file() for shard in shards):
        return "dataset in shards"
    if any((shard / FRAMES).is_file() for shard in shards):
        return "kept frames"
    return "unit set" if any((shard / UNITS).is_file() for shard in shards) else None


def _found(path: Path) -> str:
    """What there is instead, in words."""
    if not path.exists():
        is_begun = path.with_name(f"{path.name}.part").exists()
        return "unfinished: run the step that makes it again" if is_begun else "no such folder"
    if not path.is_dir():
        return f"a file; name its folder, {path.parent}" if path.name in _KINDS else "a file"
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    for record, (kind, file) in _KINDS.items():
        if file in names and record not in names:
            return f"{kind} without its {record}, so nothing of it can be proven: copy it here again, or make it again"
    if any(name.endswith(".part") for name in names):
        return "unfinished: run the step that makes it again"
    for file, kind in _OTHERS.items():
        if file in names:
            return f"{kind} ({file} is in it)"
    if below := [name for name in names if (path / name).is_dir() and _kind(path / name)]:
        more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        shown = ", ".join(str(path / name) for name in below[:_NAMED])
        return f"none itself, but above {'one' if len(below) == 1 else len(below)}; name {shown}{more}"
    if shards := shard_folders(path):
        return f"shards without their records ({', '.join(shard.name for shard in shards[:_NAMED])})"
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f"a folder with {shown}" if names else "an empty folder"

"""Shards of one build -> the dataset that one process would have built, each byte copied once.

Every file is that of the whole build, however many manifests and shards there are, but job.json, which says that it was
merged, and its line in dataset.json. The shards' own numbers give the order. Tokens are never decoded: files are laid
end to end, hashed on the way against what each shard says of itself, and the index is written anew from the shards'
indexes. Shards that differ in anything but their part of the rows are refused by name. Killed, or out of disk, the same
command goes on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_most.data.dataset import facts_of, find_repeated, open_dataset, save_dataset
from megatron_most.data.dataset_info import DATA, INFO, DatasetInfo
from megatron_most.data.index_writer import join_indexes
from megatron_most.data.indexed import IDS, IDX, IndexedDocuments
from megatron_most.data.spans import FRAME_FILES, SpanTable, join_spans
from megatron_most.errors import DataError
from megatron_most.runtime import Journal, Meter, is_done, open_journal, sha256_file

_BLOCK = 1 << 23
_SAME = ("task", "codec", "tokenizer", "templates", "frames")


@dataclass(frozen=True)
class DatasetShard:
    """One of several, opened."""

    number: int
    folder: Path
    info: DatasetInfo
    documents: IndexedDocuments


def merge(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Join all shards of a set, given in any order. `out` appears when it is whole."""
    out = Path(out)
    shards = open_shards([Path(folder) for folder in folders])
    if not any(shard.info.documents for shard in shards):
        raise DataError(f"{shards[0].folder.parent}: no shard holds a document; look at their rejects.jsonl")
    job = {"what": "merge", "shards": [sha256_file(shard.folder / INFO) for shard in shards]}
    if is_done(out, job):
        return out
    _check_ids(shards)
    names = [name for name in DATA if name != IDX]
    sizes = [sum(shard.info.files[name][0] for name in names) / 1e9 for shard in shards]
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(out, job, names))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        begun = journal.progress["shards"] if journal.progress else 0
        meter = stack.enter_context(Meter(sum(sizes), "merge", _gigabytes, done=sum(sizes[:begun])))
        hashes = {name: hashlib.sha256() for name in names}
        if begun:  # a hash cannot be kept on the disk, so what is there is read again
            for name in names:
                _read(journal.path(name), hashes[name].update)
        for shard in shards[begun:]:
            for name in (IDX, *(FRAME_FILES if shard.info.frames else ())):
                if sha256_file(shard.folder / name) != shard.info.files[name][1]:
                    raise _damaged(shard.folder / name)
            for name in names:
                _copy(journal, name, shard, hashes[name], pool, meter)
            journal.commit({"shards": shard.number + 1})
        journal.seal(lambda part: _finish(part, shards, {name: hashes[name].hexdigest() for name in names}))
    for shard in shards:
        shard.documents.close()
    return out


def open_shards(folders: list[Path]) -> list[DatasetShard]:
    """Every shard of a set, opened; they must be of one build, and none missing."""
    if not folders:
        raise DataError("no shards given; give the folders that `build --shard I/N` wrote")
    found: dict[int, DatasetShard] = {}
    count = 0
    for folder in folders:
        info, documents = open_dataset(folder)
        match info.options.get("shard"):
            case [int(number), int(of)] if 0 <= number < of and of > 1:
                pass
            case other:
                raise DataError(f"{folder / INFO}: options.shard = {other}: not a shard of several; nothing to merge")
        if count and of != count:
            raise DataError(f"{folder}: one of {of} shards, but {folders[0]} is one of {count}; give shards of one set")
        if number in found:
            raise DataError(f"{folder}: shard {number} of {of}, but so is {found[number].folder}; give each shard once")
        count, found[number] = of, DatasetShard(number, folder, info, documents)
    if missing := sorted(set(range(count)) - set(found)):
        named = f"shard {missing[0]} of {count} is missing ({len(missing)} in all)"
        raise DataError(f"{folders[0].parent}: {named}; build it, or name its folder too")
    shards = [found[number] for number in range(count)]
    for shard in shards[1:]:
        _check_same(shards[0], shard)
    return shards


def _check_same(first: DatasetShard, shard: DatasetShard) -> None:
    first.info.tokens.require_same(shard.info.tokens, str(shard.folder))
    for name, ours, theirs in _compared(first.info, shard.info):
        if ours != theirs:
            raise DataError(
                f"{shard.folder}: {name} = {theirs!r}, but {ours!r} in {first.folder}; "
                "merge shards of one build, or build them again alike"
            )


def _compared(first: DatasetInfo, second: DatasetInfo) -> list[tuple[str, Any, Any]]:
    both = [(name, getattr(first, name), getattr(second, name)) for name in _SAME]
    for name in sorted({*first.options, *second.options} - {"shard"}):
        both.append((f"options.{name}", first.options.get(name), second.options.get(name)))
    both.append(("provenance", first.provenance, second.provenance))
    both.append(("evaluation sets looked for", sorted(first.overlaps), sorted(second.overlaps)))
    return both


def _check_ids(shards: Sequence[DatasetShard]) -> None:
    count, ids = find_repeated([shard.folder / IDS for shard in shards])
    if not count:
        return
    line = ids[0].encode() + b"\n"
    where = []
    for shard in shards:
        with open(shard.folder / IDS, "rb") as file:
            where += [str(shard.folder) for each in file if each == line]
    raise DataError(
        f"document {ids[0]!r}: in {' and in '.join(where)} ({count} ids are repeated); shards share no rows: "
        "build them again from one manifest"
    )


def _copy(journal: Journal, name: str, shard: DatasetShard, whole: Any, pool: ThreadPoolExecutor, meter: Meter) -> None:
    """Append one file of a shard. Both hashes, its own and that of the whole, are taken side by side."""
    own = hashlib.sha256()

    def take(block: bytes) -> None:
        hashing = pool.submit(own.update, block)
        journal.write(name, block)
        whole.update(block)
        hashing.result()
        meter.advance(len(block) / 1e9)

    _read(shard.folder / name, take)
    if own.hexdigest() != shard.info.files[name][1]:
        raise _damaged(shard.folder / name)


def _read(path: Path, take: Callable[[bytes], object]) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                take(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; run the same command again") from error


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: damaged: its sha256 is not that of {INFO}; copy or build this shard again")


def _finish(part: Path, shards: Sequence[DatasetShard], hashes: dict[str, str]) -> None:
    join_indexes(part / IDX, [shard.documents for shard in shards])
    infos = [shard.info for shard in shards]
    if infos[0].frames:
        tables = [SpanTable(shard.folder, shard.documents.lengths) for shard in shards]
        join_spans(part, [(table, shard.info.documents) for table, shard in zip(tables, shards, strict=True)])
    hashes = {**hashes, IDX: sha256_file(part / IDX)}
    info = replace(
        infos[0],
        documents=sum(info.documents for info in infos),
        sequences=sum(info.sequences for info in infos),
        tokens_by_tag={tag: sum(info.tokens_by_tag[tag] for info in infos) for tag in infos[0].tokens_by_tag},
        trained_tokens=sum(info.trained_tokens for info in infos),
        longest=max(info.longest for info in infos),
        seconds=sum(round(1e6 * info.seconds) for info in infos) / 1e6,  # whole numbers, as `build` adds them
        untimed_units=sum(info.untimed_units for info in infos),
        files={name: ((part / name).stat().st_size, hashes[name]) for name in DATA}
        | (facts_of(part, FRAME_FILES) if infos[0].frames else {}),
        rejects=_added(info.rejects for info in infos),
        overlaps={name: sum(info.overlaps[name] for info in infos) for name in infos[0].overlaps},
        options={**infos[0].options, "shard": [0, 1]},
    )
    save_dataset(info, part)


def _added(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _gigabytes(done: float, total: float, seconds: float) -> str:
    return f"{done:.2f}/{total:.2f} GB, {done / max(seconds, 1e-9):.2f} GB/s"

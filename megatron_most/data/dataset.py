"""The folder of a dataset, written last and opened: sizes and counts are compared; `verify` reads every byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.card import write_card
from megatron_most.data.dataset_info import ABOUT, CARD, INFO, REMEDY, DatasetInfo, parse_info
from megatron_most.data.indexed import IDX, IndexedDocuments
from megatron_most.errors import DataError
from megatron_most.runtime import sha256_file, write_atomically
from megatron_most.vocab import TokenMap


def save_dataset(info: DatasetInfo, folder: Path) -> None:
    """Write the data card, then `dataset.json` with the hashes of it and of the job; `info` has those of the data."""
    write_atomically(folder / CARD, write_card(info))
    replace(info, files={**info.files, **facts_of(folder, ABOUT)}).save(folder)


def load_info(folder: Path | str) -> DatasetInfo:
    """Read `dataset.json`."""
    path = Path(folder) / INFO
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no dataset here ({INFO} is missing); make one with `build`") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}; {REMEDY}") from error
    return parse_info(data, path)


def facts_of(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """name -> (bytes, sha256) of files as they are."""
    return {name: ((folder / name).stat().st_size, sha256_file(folder / name)) for name in names}


def open_dataset(folder: Path | str) -> tuple[DatasetInfo, IndexedDocuments]:
    """A dataset ready to be read. Its files have the right sizes and fit each other and `dataset.json`."""
    folder = Path(folder)
    info = load_info(folder)
    for name in info.data_files:
        path, (size, _) = folder / name, info.files[name]
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; {REMEDY}") from error
        if found != size:
            raise DataError(f"{path}: {found} bytes, but {INFO} says {size}; {REMEDY}")
    documents = IndexedDocuments(folder, info.fingerprint)
    for name, counted, said in (
        ("documents", len(documents), info.documents),
        ("sequences", documents.num_sequences, info.sequences),
        ("tokens_by_tag", len(documents.tokens), info.num_tokens),
        ("type of the ids", documents.dtype, dtype_for(info.tokens)),
    ):
        if counted != said:
            raise DataError(f"{folder / INFO}: {name}: {said} by this file, {counted} by {IDX}; {REMEDY}")
    return info, documents


def dtype_for(tokens: TokenMap) -> np.dtype[Any]:
    """The type ids are stored in: Core's choice for the size of the vocabulary."""
    return np.dtype(np.uint16 if tokens.vocab_size < 65500 else np.int32)


def find_repeated(paths: Sequence[Path]) -> tuple[int, list[str]]:
    """How many lines of the files were there before, and the first of these, sorted. 8 bytes of memory a line."""

    def lines() -> Iterable[bytes]:
        for path in paths:
            with open(path, "rb") as file:
                yield from file

    hashes = np.sort(np.fromiter((hash(line) for line in lines()), np.int64))
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return 0, []
    counts = Counter(line for line in lines() if hash(line) in suspects)
    repeated = sorted(line for line, count in counts.items() if count > 1)
    names = [line.decode(errors="backslashreplace").rstrip("\n") for line in repeated[:20]]
    return sum(counts[line] - 1 for line in repeated), names

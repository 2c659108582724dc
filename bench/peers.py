"""What bench/data.py measures against: the plain loops that one would write with `tokenizers`, Megatron-Core,
transformers and Lhotse. Each does the least that gives the same result; none is held back.
"""

from __future__ import annotations

import functools
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_most.runtime import find_device, set_threads
from megatron_most.vocab import AUDIO, TEXT, TokenMap

TRAINED = 128  # taken off the mode of a sequence that is trained on


def import_core() -> None:
    """Takes seconds, which are not to be timed."""
    import megatron.core.datasets.indexed_dataset  # noqa: F401


def open_tokenizer(file: Path, tokens: TokenMap | None = None) -> Any:
    """The library's own; with a token map, units and marks are added to it, as the public release does."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    if tokens is None:
        tokenizer.encode_special_tokens = True  # "</s>" in a text is text
        return tokenizer
    tokenizer.add_special_tokens([name for _, name in tokens.new_tokens()])
    for id, name in tokens.new_tokens():
        assert tokenizer.token_to_id(name) == id, f"{name} has another id than in the token map"
    return tokenizer


def build_texts(rows: Path, tokenizer: Any, tokens: TokenMap, prefix: Path) -> None:
    """Rows of a text manifest -> documents, by one `encode` each and Core's builder."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32, multimodal=True)
    with gzip.open(rows, "rb") as file:
        for line in file:
            ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
            builder.add_document([tokens.bos_id, *ids, tokens.eos_id], [len(ids) + 2], [TEXT - TRAINED])
    builder.finalize(f"{prefix}.idx")


def build_units(rows: Path, tokenizer: Any, tokens: TokenMap, prefix: Path) -> None:
    """Lines with unit strings -> documents of speech alone."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    modes = [TEXT - TRAINED, AUDIO - TRAINED, TEXT - TRAINED]
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32, multimodal=True)
    with gzip.open(rows, "rb") as file:
        for line in file:
            ids = tokenizer.encode(json.loads(line)["audio"], add_special_tokens=False).ids
            builder.add_document([tokens.bos_id, *ids, tokens.eos_id], [1, len(ids), 1], modes)
    builder.finalize(f"{prefix}.idx")


def open_indexed(prefix: Path) -> tuple[Any, list[int]]:
    """Core's dataset, and where its documents begin."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix), multimodal=True)
    return dataset, dataset.document_indices.tolist()


def read_slices(dataset: Any, bounds: list[int], order: Sequence[int]) -> None:
    """Documents by one slice each."""
    for index in order:
        dataset[bounds[index] : bounds[index + 1]]


def read_sequences(dataset: Any, bounds: list[int], order: Sequence[int]) -> None:
    """Documents sequence by sequence."""
    for index in order:
        for sequence in range(bounds[index], bounds[index + 1]):
            dataset[sequence]


@functools.cache
def _open_hubert(folder: Path, layers: int | None, kind: Literal["cpu", "gpu"]) -> Any:
    from transformers import HubertModel

    set_threads(1)
    shape = {} if layers is None else {"num_hidden_layers": layers}
    return HubertModel.from_pretrained(folder, **shape).eval().to(find_device(kind).torch_device)


def hubert_units(
    folder: Path, layer: int, is_cut: bool, centroids_KD: Any, kind: Literal["cpu", "gpu"], paths: Sequence[Path]
) -> tuple[float, list[Any]]:
    """Seconds, and the units of each file. One after the other: read, forward, nearest centroid of each frame, repeats
    merged. The model is whole, or `is_cut` behind the layer that is wanted. For a process of its own.
    """
    import soundfile
    import torch

    model = _open_hubert(folder, layer if is_cut else None, kind)
    clock = time.process_time if kind == "cpu" else time.perf_counter
    start = clock()
    centroids_KD = torch.from_numpy(centroids_KD).to(model.device)
    bias_K = -0.5 * centroids_KD.square().sum(1)
    found = []
    with torch.inference_mode():
        for path in paths:
            wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None].to(model.device)
            if is_cut:
                hidden_TD = model(wave).last_hidden_state[0]
            else:
                hidden_TD = model(wave, output_hidden_states=True).hidden_states[layer][0]
            scores_TK = torch.addmm(bias_K, hidden_TD, centroids_KD.T)
            found.append(scores_TK.argmax(1).unique_consecutive().cpu().numpy())
    return clock() - start, found


def copy_cuts(cuts: Path, out: Path) -> None:
    """Lhotse reads a list lazily and writes it again."""
    from lhotse import CutSet, load_manifest_lazy

    with CutSet.open_writer(out, overwrite=True) as writer:
        for cut in load_manifest_lazy(cuts):
            writer.write(cut)


def next_fit(sizes: Sequence[int], row_length: int) -> float:
    """The share of places filled when documents are laid into rows in their order, none cut in two."""
    rows, left = 0, 0
    for size in sizes:
        if size > left:
            rows, left = rows + 1, row_length
        left -= size
    return sum(sizes) / (rows * row_length)

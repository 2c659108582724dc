"""Small datasets on disk, made of random documents, for tests of what reads, joins and proves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.dataset import dtype_for, facts_of, load_info, save_dataset
from megatron_most.data.dataset_info import DATA, DatasetInfo, Source
from megatron_most.data.document import DocumentRuns, Run
from megatron_most.data.index_writer import encode_documents, write_index
from megatron_most.data.seal import SEAL, sealed
from megatron_most.data.tokenizer import TokenizerIdentity
from megatron_most.speech import CodecIdentity
from megatron_most.vocab import AUDIO, TAG_NAMES, TEXT, TokenMap, tiny_token_map

TOKENS = tiny_token_map()
CODEC = CodecIdentity(name="tiny", hash="c" * 64, num_units=22, sample_rate=16000, frame_s=0.04)
SOURCE = Source(
    corpus="tiny", split="train", licence="CC0-1.0", source="made up", language="en", normalisation="none",
    manifest_sha256="d" * 64, rows=100,
)  # fmt: skip


def random_documents(count: int, seed: int = 0, tokens: TokenMap = TOKENS) -> list[DocumentRuns]:
    """Texts, and speech with its marks, by turns; each id has the tag of its run."""
    rng = np.random.default_rng(seed)
    ids_of = {TEXT: np.arange(tokens.bos_id), AUDIO: np.arange(tokens.first_unit_id, tokens.end_audio_id + 1)}
    documents = []
    for number in range(count):
        runs = []
        for place in range(int(rng.integers(1, 5))):
            tag = (TEXT, AUDIO)[place % 2]
            ids = rng.choice(ids_of[tag], int(rng.integers(1, 40))).astype(np.int32)
            runs.append(Run(ids, tag, bool(rng.integers(2))))
        documents.append(DocumentRuns(f"tiny/{seed}/{number}", tuple(runs)).merged())
    return documents


def write_dataset(
    folder: Path,
    documents: Sequence[DocumentRuns],
    *,
    shard: tuple[int, int] = (0, 1),
    rejects: Sequence[str] = (),
    tokens: TokenMap = TOKENS,
    **changes: Any,
) -> Path:
    """A whole dataset, as `build` leaves it. `rejects`: a reason for each rejected row. `changes`: to its info."""
    folder.mkdir(parents=True)
    encoded = encode_documents(documents, dtype_for(tokens))
    raw = {"lengths": encoded.lengths, "modes": encoded.modes, "counts": encoded.counts}
    lines = "".join(json.dumps({"id": f"tiny/{reason}", "reason": reason, "detail": ""}) + "\n" for reason in rejects)
    files = {
        "tokens.bin": encoded.tokens,
        "ids.txt": encoded.ids,
        "rejects.jsonl": lines.encode(),
        "overlaps.jsonl": b"",
    }
    for name, data in {**raw, **files}.items():
        (folder / name).write_bytes(data)
    write_index(folder / "tokens.idx", *(folder / name for name in raw), dtype=dtype_for(tokens))
    for name in raw:
        (folder / name).unlink()
    runs = [run for document in documents for run in document.runs]
    info = DatasetInfo(
        task="asr",
        tokens=tokens,
        codec=CODEC,
        tokenizer=TokenizerIdentity(kind="hf", sha256="e" * 64, vocab_size=tokens.text_size),
        templates=("chat", "f" * 64),
        documents=len(documents),
        sequences=len(runs),
        tokens_by_tag={name: sum(len(run.ids) for run in runs if run.tag == tag) for tag, name in enumerate(TAG_NAMES)},
        trained_tokens=sum(len(run.ids) for run in runs if run.is_trained),
        longest=max((document.length for document in documents), default=0),
        seconds=float(len(documents)),
        untimed_units=0,
        files=facts_of(folder, DATA),
        provenance=(SOURCE,),
        rejects={reason: list(rejects).count(reason) for reason in dict.fromkeys(rejects)},
        overlaps={"test set": 0},
        options={"shard": list(shard), "part": "all", "hold_out": 0.0},
    )
    (folder / "job.json").write_text("{}\n")
    save_dataset(replace(info, **changes), folder)
    return folder


def sign_again(folder: Path) -> None:
    """Let `dataset.json` name the sizes and hashes that the files have now: what hashes cannot find is left to find."""
    info = load_info(folder)
    replace(info, files=facts_of(folder, info.files)).save(folder)


def edit_record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a record says and seal it again: then only what it says can give the change away."""
    values = json.loads(path.read_text())
    del values[SEAL]
    change(values)
    path.write_text(sealed(values))

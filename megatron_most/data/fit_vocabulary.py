"""Fitting a vocabulary: a small tokenizer on the texts of manifests, and the token map that gives units a place in it.

Out: one folder with tokenizer.json, tokenizer_config.json and token_map.json, for a model of one's own. It appears when
it is whole; run again, the work is not done twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_most.data.fit import fill
from megatron_most.data.manifest import Manifest
from megatron_most.data.rows import ChatRow
from megatron_most.data.tokenizer import fit_tokenizer, require_vocab_size, token_map_for
from megatron_most.errors import DataError
from megatron_most.runtime import is_done, open_journal
from megatron_most.vocab import TokenMap

TOKEN_MAP = "token_map.json"


def fit_vocabulary(manifests: Sequence[Manifest], out: Path, *, vocab_size: int, num_units: int) -> TokenMap:
    """Train on all texts: transcripts, documents, and what is written in chats."""
    require_vocab_size(vocab_size)
    if num_units < 1:
        raise DataError(f"--num-units {num_units}: give at least 1")
    hashes = [manifest.header.sha256 for manifest in manifests]
    job = {"what": "tokenizer", "manifests": hashes, "vocab_size": vocab_size, "num_units": num_units}
    if not is_done(out, job):
        for manifest in manifests:
            manifest.verify()
        with open_journal(out, job, ()) as journal:

            def make(folder: Path) -> None:
                fit_tokenizer((text for manifest in manifests for text in _texts(manifest)), vocab_size, folder)
                token_map_for(folder, "own", num_units).save(folder / TOKEN_MAP)

            journal.seal(lambda part: fill(part, make))
    return TokenMap.load(out / TOKEN_MAP)


def _texts(manifest: Manifest) -> Iterator[str]:
    for row in manifest.rows():
        if isinstance(row, ChatRow):
            yield from (part for turn in row.turns for part in turn.parts if isinstance(part, str))
        elif row.text:
            yield row.text

"""The tokenizer of a data set: read, matched with a token map, checked, or trained anew.

`load_tokenizer` gives what encoders.py says. A tokenizer of a known backbone is checked to be that backbone's by the
ids of its BOS and EOS. Of any other, units and marks go after its last token, and its BOS, EOS and pad are named by
tokenizer_config.json beside it, by the sentencepiece model, or by the user (`token-map --eos`): never guessed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.document import Ids
from megatron_most.data.encoders import HFTokenizer, SentencePieceTokenizer, TextTokenizer, TokenizerIdentity
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import cannot_read, ensure_new_folder, read_file, write_atomically
from megatron_most.vocab import TEXT, TokenMap, deepseek_token_map, grow, llama_token_map

__all__ = [
    "TextTokenizer", "TokenizerIdentity", "check_text_ids", "find_tokenizer", "fit_tokenizer", "load_tokenizer",
    "require_vocab_size", "token_map_for",
]  # fmt: skip

Backbone = Literal["deepseek", "llama", "own"]
Role = Literal["bos", "eos", "pad"]
SPECIAL = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|pad|>"}  # of fit_tokenizer
NAMES = {  # of the backbones; an instruct model of Llama ends with another token, which the user names
    "deepseek": {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>"},
    "llama": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
}


def find_tokenizer(path: Path | str) -> Path:
    """The tokenizer's file: the path itself, or tokenizer.json or the only *.model in a folder."""
    path = Path(path)
    if path.is_file() and path.suffix in (".json", ".model"):
        return path
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        models = sorted(path.glob("*.model"))
        if len(models) == 1:
            return models[0]
    raise DataError(f"{path}: no tokenizer; give a tokenizer.json, a sentencepiece *.model, or a folder with one")


def load_tokenizer(path: Path | str) -> HFTokenizer | SentencePieceTokenizer:
    """Read a tokenizer. It then works on one thread: the pipeline runs one process a core."""
    file = find_tokenizer(path)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of a forked process hang
    content = read_file(file, remedy="fetch it again")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        if file.suffix == ".model":
            return SentencePieceTokenizer(content, None, sha256)
        return HFTokenizer(content.decode(), None, sha256)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except Exception as error:  # tokenizers raises Exception itself
        raise DataError(f"{file}: not a readable tokenizer ({error}); fetch it again") from error


@functools.lru_cache(maxsize=4)
def _is_text(token_map: TokenMap) -> NDArray[np.bool_]:
    table = np.array(token_map.tag_table()) == TEXT
    table[[token_map.bos_id, token_map.eos_id, token_map.pad_id]] = False
    return table


def check_text_ids(ids: Ids, token_map: TokenMap) -> None:
    """Raise where an id that came out of text is not a text id of the map, or its BOS, EOS or pad."""
    if not len(ids):
        return
    legal = _is_text(token_map)
    inside = int(ids.min()) >= 0 and int(ids.max()) < len(legal)
    if inside and legal[ids].all():
        return
    odd = next(id for id in ids.tolist() if not 0 <= id < len(legal) or not legal[id])
    if odd in (token_map.bos_id, token_map.eos_id, token_map.pad_id):
        raise RowError("special token in text", f"id {odd}")
    raise DataError(
        f"token id {odd}, made from text: not a text id of the token map of {token_map.backbone} "
        f"({token_map.text_size} text ids); use the tokenizer the map was made for"
    )


def token_map_for(
    tokenizer: Path | str,
    backbone: Backbone,
    num_units: int = 500,
    *,
    multiple: int = 128,
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
) -> TokenMap:
    """The map of a tokenizer's ids, units and marks. bos, eos, pad: tokens by string or id, where not the usual.

    A number is an id: a token that is spelt in digits cannot be named by its string.
    """
    file = find_tokenizer(tokenizer)
    loaded = load_tokenizer(file)

    def id_of(role: Role, name: str | None) -> int:
        if name is None:
            end = ", the EOS token where there is none for padding" if role == "pad" else ""
            raise DataError(f"{file}: names no {role} token; make its map with `token-map --{role} TOKEN`{end}")
        if name.isdecimal() and name.isascii():
            if loaded.token_of(int(name)) is None:
                most = loaded.identity.vocab_size - 1
                raise DataError(f"{file}: has no token of id {name} for --{role}; its ids end at {most}")
            return int(name)
        if (id := loaded.id_of(name)) is None:
            raise DataError(
                f"{file}: has no token {name!r} for {role}; use the tokenizer of that model, or make the map with "
                f"`token-map --{role}` and the token as the tokenizer spells it, or its id"
            )
        return id

    if backbone == "own":
        own = _names_beside(file)
        if isinstance(loaded, SentencePieceTokenizer):
            own = {role: own[role] or loaded.own_name(role) for role in own}
        token_map = grow(
            backbone="own",
            base_vocab_size=loaded.identity.vocab_size,
            bos=id_of("bos", bos or own["bos"]),
            eos=id_of("eos", eos or own["eos"]),
            pad=id_of("pad", pad or own["pad"]),
            num_units=num_units,
            multiple=multiple,
        )
    elif backbone in NAMES:
        ids = {
            "bos": id_of("bos", bos or NAMES[backbone]["bos"]),
            "eos": id_of("eos", eos or NAMES[backbone]["eos"]),
        }
        if backbone == "deepseek":
            token_map = deepseek_token_map(num_units, multiple)
        else:
            token_map = llama_token_map(num_units, multiple, eos=ids["eos"])
        wanted = {"bos": token_map.bos_id, "eos": token_map.eos_id}
        if pad is not None:
            ids["pad"], wanted["pad"] = id_of("pad", pad), token_map.pad_id
        for role, id in ids.items():
            if id != wanted[role]:
                raise DataError(
                    f"{file}: its {role} token has id {id}, {backbone}'s has {wanted[role]}; "
                    "use that backbone's tokenizer, or make the map with `token-map --backbone own`"
                )
    else:
        raise DataError(f"backbone {backbone!r}: not known; use one of {', '.join(NAMES)}, own")
    for id, token in token_map.new_tokens():
        if (found := loaded.id_of(token)) not in (None, id):
            raise DataError(
                f"{file}: holds {token!r} as id {found}, where the token map puts it at {id}; "
                "use the tokenizer without unit tokens"
            )
    return token_map


def _names_beside(file: Path) -> dict[Role, str | None]:
    """BOS, EOS and pad as tokenizer_config.json in the same folder spells them."""
    config: object = {}
    path = file.with_name("tokenizer_config.json")
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise cannot_read(path, error, "fetch it again or remove it") from error
    names: dict[Role, str | None] = {"bos": None, "eos": None, "pad": None}
    for role in names:
        found = config.get(f"{role}_token") if isinstance(config, dict) else None
        found = found.get("content") if isinstance(found, dict) else found
        names[role] = found if isinstance(found, str) else None
    return names


def require_vocab_size(vocab_size: int) -> None:
    """Raise where a fitted tokenizer cannot be so small: it has each byte, and its special tokens."""
    least = 256 + len(SPECIAL)
    if vocab_size < least:
        raise DataError(f"--vocab-size {vocab_size}: bytes and special tokens alone are {least}; give at least that")


def fit_tokenizer(texts: Iterable[str], vocab_size: int, out: Path | str) -> Path:
    """Train a byte-level BPE tokenizer with BOS, EOS and pad into a new folder; returns its tokenizer.json.

    Every text can be written with it. It has fewer than `vocab_size` tokens where the texts give no more merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    require_vocab_size(vocab_size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    folder = ensure_new_folder(out)
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": SPECIAL[role] for role in SPECIAL}}
    write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    return folder / "tokenizer.json"

"""Text to ids: tokenizers from tokenizer.json or a sentencepiece model, as the pipeline may use them on user text.

Nothing is added (no BOS, no EOS), nothing is cut (a file's truncation and padding are switched off), and no string in a
text becomes a special token: "<eos>" or "[Hu7]" come out as ordinary pieces. Where a tokenizer cannot do that, or does
not know a character, the text is refused with a RowError.
Surprising: `encode_special_tokens` of `tokenizers` is lost when a tokenizer is pickled, and it spares added tokens not
marked special; hence the class around it. Added tokens of blanks only stay: they are how some tokenizers write text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.document import Ids
from megatron_most.data.rejects import RowError
from megatron_most.data.words import WordTokenizer, words_are_independent
from megatron_most.errors import DataError


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made a data set's text ids: the file's hash decides."""

    kind: Literal["hf", "sentencepiece"]
    sha256: str
    vocab_size: int
    """The highest id, plus one."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerIdentity:
        found = {name: type(value) for name, value in values.items()}
        if found != {"kind": str, "sha256": str, "vocab_size": int} or values["kind"] not in ("hf", "sentencepiece"):
            raise DataError(f"tokenizer identity {dict(values)!r}: not one that to_dict wrote; make the data again")
        return cls(**values)


class TextTokenizer(Protocol):
    """What the pipeline needs of a tokenizer."""

    identity: TokenizerIdentity

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text by itself. RowError for a text that cannot be told from special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """For people to read: special tokens are shown by name where the tokenizer names them."""


class HFTokenizer:
    """A tokenizer.json, read by the `tokenizers` library."""

    def __init__(self, definition: str, identity: TokenizerIdentity | None, sha256: str = "") -> None:
        import tokenizers

        self._definition = definition
        parsed = json.loads(definition)
        added = parsed.get("added_tokens") or []
        matched = [token for token in added if not token["special"] and not token["content"].isspace()]
        for token in matched:
            token["special"] = True
        if parsed["model"].get("dropout"):
            raise DataError("the tokenizer drops merges at random; set model.dropout to null in its file")
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parsed) if matched else definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.identity = identity or TokenizerIdentity("hf", sha256, size)
        unknown = parsed["model"].get("unk_id")
        if unknown is None and (name := parsed["model"].get("unk_token")) is not None:
            unknown = self._tokenizer.token_to_id(name)
        # by their strings: the library gives some files' added tokens other ids than the file does
        special = [self._tokenizer.token_to_id(token["content"]) for token in added if token["special"]]
        self._refused = _Refused(size, special, unknown)
        words = WordTokenizer(self._encode) if words_are_independent(parsed) else None
        self._encode_batch = words.encode_batch if words else self._encode

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self._definition, self.identity)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return self._encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """The id of a token given by its string."""
        return self._tokenizer.token_to_id(token)

    def token_of(self, id: int) -> str | None:
        """The string of a token given by its id."""
        return self._tokenizer.id_to_token(id) if id < self.identity.vocab_size else None

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            _refuse_half_characters(texts)
            raise
        ids = [np.array(one.ids, np.int32) for one in encoded]
        self._refused.check(ids, texts)
        return ids


class SentencePieceTokenizer:
    """A sentencepiece model. Its user-defined symbols are matched in any text, so such a text is refused."""

    def __init__(self, model: bytes, identity: TokenizerIdentity | None, sha256: str = "") -> None:
        import sentencepiece

        self._model = model
        self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._tokenizer.get_piece_size()
        self.identity = identity or TokenizerIdentity("sentencepiece", sha256, size)
        pieces = enumerate(_pieces(model))
        special = [id for id, (text, type) in pieces if type == _USER_DEFINED and text.strip(" \t\r\n▁")]
        self._refused = _Refused(size, special, self._tokenizer.unk_id())

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self._model, self.identity)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        try:
            encoded = self._tokenizer.encode(list(texts), out_type=int, num_threads=1)
        except TypeError:
            _refuse_half_characters(texts)
            raise
        ids = [np.array(one, np.int32) for one in encoded]
        self._refused.check(ids, texts)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))

    def id_of(self, token: str) -> int | None:
        """The id of a token given by its string."""
        id = self._tokenizer.piece_to_id(token)
        return id if self._tokenizer.id_to_piece(id) == token else None

    def token_of(self, id: int) -> str | None:
        """The string of a token given by its id."""
        return self._tokenizer.id_to_piece(id) if id < self.identity.vocab_size else None

    def own_name(self, role: Literal["bos", "eos", "pad"]) -> str | None:
        """The string of the model's own BOS, EOS or pad."""
        id = {"bos": self._tokenizer.bos_id, "eos": self._tokenizer.eos_id, "pad": self._tokenizer.pad_id}[role]()
        return self._tokenizer.id_to_piece(id) if id >= 0 else None


class _Refused:
    """Ids that text must not give: special tokens and the unknown token."""

    def __init__(self, size: int, special: Sequence[int | None], unknown: int | None) -> None:
        self._table: NDArray[np.bool_] = np.zeros(size, bool)
        self._table[[id for id in special if id is not None]] = True
        self._unknown = unknown
        if unknown is not None:
            self._table[unknown] = True

    def check(self, ids: Sequence[Ids], texts: Sequence[str]) -> None:
        if not ids or not self._table[np.concatenate(ids)].any():
            return
        for found, text in zip(ids, texts, strict=True):
            for odd in found[self._table[found]][:1].tolist():
                reason = "unknown characters" if odd == self._unknown else "special token in text"
                raise RowError(reason, f"id {odd} in {text[:80]!r}")


def _refuse_half_characters(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError("invalid UTF-8", f"half a character at {error.start}") from error


_USER_DEFINED = 4  # sentencepiece's type of a symbol that is matched in any text


def _pieces(model: bytes) -> Iterator[tuple[str, int]]:
    """(string, type) of each piece of a sentencepiece model, whose python interface does not tell the type.

    The model is a protocol buffer: field 1, repeated, is a piece, in which field 1 is the string and field 3 the type.
    """
    for number, piece in _fields(model):
        if number == 1 and isinstance(piece, bytes):
            inside = dict(_fields(piece))
            text, type = inside.get(1), inside.get(3, 1)
            yield (text.decode() if isinstance(text, bytes) else ""), (type if isinstance(type, int) else 1)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if (wire := key & 7) == 0:
            yield key >> 3, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        at += size
        yield key >> 3, message[at - size : at]

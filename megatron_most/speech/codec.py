"""SpeechCodec: waves in, units out; and who it is.

A codec's identity has a hash of all that decides the units (weights, layer, centroids, normalisation, version of the
code that makes features), and travels with every data set. A codec computes in fp32 or in bf16, which is chosen when it
is loaded: the precision is no part of the hash, but of the identity beside it, for a few units in a thousand come out
otherwise. Its folder: codec_files.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.quantiser import Quantiser
from megatron_most.speech.units import UnitSequence

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class CodecIdentity:
    """Which units these are. Data sets with different hashes, or of different precision, do not mix."""

    name: str
    hash: str
    num_units: int
    sample_rate: int
    frame_s: float
    precision: str = "fp32"
    """What they were computed in: fp32 or bf16."""

    def __str__(self) -> str:
        return f"{self.name} ({self.hash[:12]}), computed in {self.precision}"

    @property
    def key(self) -> str:
        """What is compared before data sets mix, as one word: the hash, and the precision where it is not fp32."""
        return self.hash if self.precision == "fp32" else f"{self.hash}/{self.precision}"

    def require_same(self, other: CodecIdentity, here: str, there: str) -> None:
        """DataError where `other`, of the units in `there`, is not this one, of those in `here`."""
        if other == self:
            return
        if replace(other, precision=self.precision) == self:
            raise DataError(
                f"{there}: units computed in {other.precision}, but {here} has them in {self.precision}, and a few "
                "in a thousand come out otherwise; extract both with the same --precision (bf16 or fp32)"
            )
        raise DataError(
            f"{there}: units of codec {other}, but {here} has those of {self}; one dataset has one codec: extract "
            "both with the same"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CodecIdentity:
        """The inverse of `to_dict`; DataError where a field is missing, unknown or of another type."""
        types = {"name": str, "hash": str, "num_units": int, "sample_rate": int, "frame_s": float, "precision": str}
        wrong = sorted(set(values) ^ set(types)) or [k for k, t in types.items() if type(values[k]) is not t]
        if wrong:
            raise DataError(f"codec identity: {', '.join(wrong)}: missing, unknown or of a wrong type")
        return cls(**values)


class SpeechCodec(Protocol):
    """Turns speech into units, each utterance by itself."""

    @property
    def identity(self) -> CodecIdentity: ...

    @property
    def min_samples(self) -> int:
        """Shorter waves have no frame; `encode` refuses them."""
        ...

    def encode(self, waves: Sequence[np.ndarray]) -> list[UnitSequence]:
        """Units of mono float32 waves at `identity.sample_rate`, in the order given."""
        ...


class StorableCodec(SpeechCodec, Protocol):
    """A codec that `save_codec` can keep."""

    @property
    def kind(self) -> str: ...

    @property
    def quantiser(self) -> Quantiser: ...

    def settings(self) -> dict[str, Any]:
        """JSON values from which, with the quantiser, it can be made again."""
        ...


def hash_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, independent of their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

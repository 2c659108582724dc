"""What generation asks of a model, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

from megatron_most.data import Wave
from megatron_most.vocab import TokenMap


class State(Protocol):
    """The rows that are being generated, and what is kept of their past."""

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what rows[i] was, the others go. Only rows from the end move, to places that are left."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this rank chooses, for all that compute with it."""
        ...

    def share(self, numbers: Sequence[int]) -> list[int]:
        """What the rank that leads has; all ranks of the model call it, with as many."""
        ...

    def close(self) -> None:
        """Forget the past; the model is as it was before."""
        ...


Waves = Sequence[Wave | None]
AnyState = TypeVar("AnyState", bound=State)


class Steps(Protocol[AnyState]):
    """What `generate` needs. All ranks that hold the model together call every method with the same arguments."""

    @property
    def tokens(self) -> TokenMap: ...

    @property
    def max_positions(self) -> int: ...

    def open(self, rows: int, length: int) -> AnyState:
        """For so many rows, of about `length` tokens with their answers; more are taken as well."""
        ...

    def step(
        self, state: AnyState, ids_BT: torch.Tensor, tags_BT: torch.Tensor, num_B: torch.Tensor, waves: Waves = ()
    ) -> torch.Tensor:
        """New tokens of every row, the first num_B of each line -> logits after each row's last [B, V], in float32.

        `waves`: the continuous frames among the new tokens of each row, places counted from its first new one; none for
        none in all rows.
        """
        ...


class LanguageModel(Steps[AnyState], Protocol[AnyState]):
    """A whole one, which also scores what is there."""

    @property
    def frames_tag(self) -> int | None:
        """The tag of continuous frames; None: the model takes none."""
        ...

    def logprobs(self, ids: Sequence[Sequence[int]], tags: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Of each row the log probability of every token but the first, given those before it; float32, in nats."""
        ...

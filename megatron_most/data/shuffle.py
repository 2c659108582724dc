"""An endless shuffle in no memory: a pseudo-random permutation of range(n) of which any entry can be asked for alone.

A Feistel network over the smallest power of two >= n: two halves of the bits in turn are xor-ed with a hash of the
other, which can be undone and so is a bijection. Numbers it sends beyond n are sent through again until they land
inside ("cycle walking"), on average less than twice. Only integer arithmetic of our own: no library's generator is
asked, so the same key gives the same order on any machine and with any version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

_ROUNDS = 8
_BLOCK = 1 << 14
"""Indices worked on at once: the arrays of one block stay in the processor's cache."""
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))
_SHIFT = np.uint64(32)


class Permutation:
    """A bijection of range(n); `key` is any mix of whole numbers and strings, such as (seed, task, epoch)."""

    def __init__(self, n: int, *key: int | str) -> None:
        assert n >= 1, f"a permutation of {n} things"
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8 * _ROUNDS).digest()
        self.n = n
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
        bits = (n - 1).bit_length()
        self._high, self._low = bits // 2, bits - bits // 2

    def __len__(self) -> int:
        return self.n

    def __call__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Where each index goes; int64, in the shape it came in."""
        flat = np.array(indices, dtype=np.uint64).ravel()  # a copy; a negative number becomes a huge one
        assert not flat.size or flat.max() < self.n, f"an index outside range({self.n})"
        if self.n > 1:
            for start in range(0, flat.size, _BLOCK):
                block = flat[start : start + _BLOCK]
                self._scramble(block)
                outside = np.flatnonzero(block >= self.n)
                while outside.size:
                    again = block[outside]
                    self._scramble(again)
                    block[outside] = again
                    outside = outside[again >= self.n]
        return flat.astype(np.int64).reshape(np.shape(indices))

    def _scramble(self, x: np.ndarray) -> None:
        """One pass of the network, in place."""
        low_bits = np.uint64(self._low)
        halves = [x >> low_bits, x & np.uint64((1 << self._low) - 1)]
        sizes = (self._high, self._low)
        hashed = np.empty_like(x)
        shifted = np.empty_like(x)
        for round_, key in enumerate(self._keys):
            side = round_ % 2
            if not sizes[side]:
                continue
            np.add(halves[1 - side], key, out=hashed)
            np.multiply(hashed, _MIX[0], out=hashed)
            np.right_shift(hashed, _SHIFT, out=shifted)
            np.bitwise_xor(hashed, shifted, out=hashed)
            np.multiply(hashed, _MIX[1], out=hashed)
            np.right_shift(hashed, np.uint64(64 - sizes[side]), out=hashed)
            np.bitwise_xor(halves[side], hashed, out=halves[side])
        np.left_shift(halves[0], low_bits, out=x)
        np.bitwise_or(x, halves[1], out=x)

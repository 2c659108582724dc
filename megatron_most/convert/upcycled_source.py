"""Boxes of an upcycled model's tensors, made of the dense model's: copies, varied by noise, jitter and drop.

Random numbers belong to a tensor's blocks of rows, each with a seed of its own, and a block is always drawn whole: a
box holds the same numbers wherever it was cut. What a weight becomes, in this order, in float32:

    w * (1 + jitter * u)  ->  + noise * rms(tensor) * n  ->  mean + std * n', where its inner unit is dropped

u even in -1..1, n and n' normal. An expert drops the same units in gate, up and down projection; mean and std are of
the weights that are replaced, in each projection. Then the down projection's factor. In memory are the box and a block.
"""

from __future__ import annotations

import functools
import math

import torch

from megatron_most.config import Plan
from megatron_most.convert.hf_folder import HfFolder
from megatron_most.convert.sources import HfSource, is_finite, seeded
from megatron_most.convert.tables import Link, Run, Shape
from megatron_most.convert.upcycling import SHARE, Upcycling
from megatron_most.errors import CheckpointError

_ROWS = 32
"""Of a block. Another number is other random numbers."""
_NUMBERS_AT_ONCE = 1 << 18


class UpcycledSource(HfSource):
    """Reads boxes of a model whose experts are made of feed-forwards; others as HfSource does."""

    def __init__(
        self, folder: HfFolder, dtype: torch.dtype | None, *, allow_nonfinite: bool, options: Upcycling, plan: Plan
    ) -> None:
        super().__init__(folder, dtype, allow_nonfinite=allow_nonfinite)
        self._options = options
        given = options.router_std
        self._router_std = plan.config.model.init_std if given is None else given
        self._sums = functools.lru_cache(maxsize=8)(self._sums_of_units)  # a layer has three

    def dtype(self, link: Link) -> torch.dtype:
        if _is_router(link):  # made of nothing that is stored: as the matrices beside it
            return self._dtype or self.folder.dtype(f"model.layers.{link.layer}.mlp.gate_proj.weight")
        return super().dtype(link)

    def read(self, link: Link, start: Shape, shape: Shape) -> torch.Tensor:
        if _is_router(link):
            weight = self._router_std * torch.randn(link.shape, generator=self._seeded("router", link))
            return weight[*(slice(s, s + n) for s, n in zip(start, shape, strict=True))].to(self.dtype(link))
        factor = self._factor(link)
        if not factor:
            return torch.zeros(shape, dtype=self.dtype(link))
        if link.expert is None or self._options.is_exact:
            found = super().read(link, start, shape)
            return found if factor == 1 else found.mul_(factor)
        out = torch.empty(shape, dtype=self.dtype(link))
        for run in link.runs:
            low, high = max(start[0], run.row), min(start[0] + shape[0], run.row + run.rows)
            if low < high:
                self._fill(out[low - start[0] : high - start[0]], link, run, low - run.row, start, factor)
        return out

    def _factor(self, link: Link) -> float:
        """What a tensor of the feed-forward is multiplied by."""
        if not link.name.endswith("linear_fc2.weight"):
            return 1.0
        share = SHARE[self._options.shared]
        if link.expert is not None:
            return 1.0 - share
        return share if ".shared_experts." in link.name else 1.0

    def _fill(self, out: torch.Tensor, link: Link, run: Run, first: int, start: Shape, factor: float) -> None:
        """Rows of one part of an expert, from its row `first` on."""
        is_down, last = len(link.parts) == 1, first + len(out)
        name, (rows, width) = link.parts[run.part]
        columns = slice(start[1], start[1] + out.shape[1])
        rms = mean = std = 0.0
        dropped = self._dropped(link, width if is_down else rows)
        if self._options.noise or self._options.drop:
            rms, mean, std = self._statistics(name, is_down, dropped)
        for block in range(first // _ROWS * _ROWS, last, _ROWS):
            low, high = max(first, block), min(last, block + _ROWS)
            inside = slice(low - block, high - block)
            shape = (min(_ROWS, rows - block), width)
            data = super().read(link, (run.row + low, start[1]), (high - low, out.shape[1])).float()
            if self._options.jitter:
                drawn = torch.rand(shape, generator=self._seeded("jitter", link, run.part, block))[inside, columns]
                data *= 1 + self._options.jitter * (2 * drawn - 1)
            if self._options.noise:
                drawn = torch.randn(shape, generator=self._seeded("noise", link, run.part, block))[inside, columns]
                data += self._options.noise * rms * drawn
            if self._options.drop:
                drawn = torch.randn(shape, generator=self._seeded("drop", link, run.part, block))[inside, columns]
                fresh = dropped[None, columns] if is_down else dropped[low:high, None]
                data = torch.where(fresh, mean + std * drawn, data)
            out[low - first : high - first] = made = (factor * data).to(out.dtype)
            if not self._allow_nonfinite and not is_finite(made):
                wrong = (
                    f"what noise, jitter and drop make of {name} is beyond {out.dtype}; use less, or another --dtype"
                )
                raise CheckpointError(f"{self.folder.where[name].path}: {wrong}")

    def _dropped(self, link: Link, units: int) -> torch.Tensor:
        """Which inner units of an expert start afresh; the same for its three projections."""
        chosen = torch.randperm(units, generator=seeded(self._options.seed, "units", link.layer, link.expert))
        return torch.zeros(units, dtype=torch.bool).index_fill(0, chosen[: round(self._options.drop * units)], True)

    def _statistics(self, name: str, is_down: bool, dropped: torch.Tensor) -> tuple[float, float, float]:
        """(rms of the tensor, mean and standard deviation of the weights of dropped units)."""
        sums, squares = self._sums(name, is_down)
        if not bool(torch.isfinite(squares).all()):
            wrong = f"{name} holds NaN or infinite numbers, so no noise can be measured by it"
            raise CheckpointError(f"{self.folder.where[name].path}: {wrong}; upcycle without noise and drop")
        count = math.prod(self.folder.shape(name))
        rms = math.sqrt(float(squares.sum()) / count)
        inside = int(dropped.sum()) * count // len(dropped)
        if not inside:
            return rms, 0.0, 0.0
        mean = float(sums[dropped].sum()) / inside
        return rms, mean, math.sqrt(max(0.0, float(squares[dropped].sum()) / inside - mean * mean))

    def _sums_of_units(self, name: str, is_down: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """For each inner unit the sum of its weights and of their squares, read a few rows at a time."""
        rows, width = self.folder.shape(name)
        found = torch.zeros(2, width if is_down else rows, dtype=torch.float64)
        at_once = max(1, _NUMBERS_AT_ONCE // width)
        for first in range(0, rows, at_once):
            data = self.folder.read(name, first, min(at_once, rows - first)).double()
            both = torch.stack([data.sum(0 if is_down else 1), data.square_().sum(0 if is_down else 1)])
            if is_down:
                found += both
            else:
                found[:, first : first + len(data)] = both
        return found[0], found[1]

    def _seeded(self, what: str, link: Link, *place: int) -> torch.Generator:
        return seeded(self._options.seed, what, link.name, *place)


def _is_router(link: Link) -> bool:
    return link.name.endswith(".mlp.router.weight")

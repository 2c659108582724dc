"""How busy each expert was: what striped placement deals by, kept as JSON in every checkpoint.

    {"format": "megatron-most-expert-load-1", "step": 4000, "groups": {"text": [0, 1], "audio": [2, 3]},
     "layers": {"1": [512, 498, 120, 133]}}

Layers count from 0, experts by published id. Only how the experts of one group compare is used, never what two groups
have beside each other, so it does not matter how much speech there was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError

FORMAT = "megatron-most-expert-load-1"
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ExpertLoad:
    """Tokens of each expert of each layer with experts, over some steps before `step`."""

    step: int
    groups: Mapping[str, tuple[int, ...]]
    layers: Mapping[int, tuple[float, ...]]

    def to_json(self) -> str:
        """The file's content; equal loads give equal bytes."""
        layers = {str(layer): list(load) for layer, load in sorted(self.layers.items())}
        groups = {name: list(experts) for name, experts in self.groups.items()}
        return json.dumps({"format": FORMAT, "step": self.step, "groups": groups, "layers": layers}) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> ExpertLoad:
        """DataError where it is no such file, whole and of plain numbers."""
        remedy = "give the expert_load.json of a checkpoint"
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_MOST_BYTES + 1)
            values: Any = json.loads(raw) if len(raw) <= _MOST_BYTES else None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable table of expert loads ({error}); {remedy}") from error
        wrong = _wrong(values)
        if wrong is not None:
            raise DataError(f"{path}: {wrong}; {remedy}")
        return cls(
            step=values["step"],
            groups={name: tuple(experts) for name, experts in values["groups"].items()},
            layers={int(layer): tuple(load) for layer, load in values["layers"].items()},
        )

    def require_of(self, path: str, groups: Mapping[str, Sequence[int]], layers: Sequence[int]) -> None:
        """Refuse loads of another model: other groups, or other layers with experts."""
        ours = {name: tuple(experts) for name, experts in groups.items()}
        if sorted(ours.values()) != sorted(self.groups.values()):
            raise DataError(
                f"{path}: loads of other expert groups ({_few(self.groups)}), here {_few(ours)}; measure again"
            )
        if list(layers) != sorted(self.layers):
            theirs = ", ".join(map(str, sorted(self.layers)))
            raise DataError(f"{path}: loads of layers {theirs}, but experts are in {', '.join(map(str, layers))}")


def _wrong(values: Any) -> str | None:
    """Why this is no table of loads."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return f"not a table of expert loads in the format {FORMAT}"
    groups, layers, step = values.get("groups"), values.get("layers"), values.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return f"its step is {step!r:.40}"
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, list) for group in groups.values()):
        return "it has no expert groups"
    ids = [expert for group in groups.values() for expert in group]
    if not all(type(expert) is int for expert in ids) or sorted(ids) != list(range(len(ids))):
        return "its groups do not have each expert once"
    if not isinstance(layers, dict) or not layers:
        return "it has no layers"
    for layer, load in layers.items():
        if not layer.isdecimal() or len(layer) > 6 or str(int(layer)) != layer:
            return f"{layer!r:.40} is no layer"
        if not isinstance(load, list) or len(load) != len(ids):
            return f"layer {layer} does not have a number for each of {len(ids)} experts"
        if not all(type(number) in (int, float) and 0 <= number < float("inf") for number in load):
            return f"layer {layer} has a load that is no number from 0 up"
    return None


def _few(groups: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} of {len(experts)}" for name, experts in groups.items())

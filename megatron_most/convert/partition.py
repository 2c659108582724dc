"""Whose a base model's experts become, layer by layer: from how much each is used to an order of a layer's experts.

Groups are runs of ids in any layer (text: 0-31, audio: 32-63), for `moe.groups` is one table for all; but an expert's
number means nothing from one layer to the next. So layers are renumbered on their way in: our expert j of a layer is
made of theirs order[j], and inside a group theirs keep their sequence. Without groups the model computes what it did.
Everything here is a pure function; equal use goes to the lower number, so equal inputs give equal orders.
"""

# E routed experts, G groups, K kinds of prompts ("text", "audio")

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_most.errors import ConfigError
from megatron_most.vocab import TAG_NAMES

Strategy = Literal["index", "alternate", "load", "affinity"]
Order = tuple[int, ...]
"""Theirs, in the sequence of ours."""
Numbers = NDArray[np.float64]
MEASURED: dict[Strategy, Literal["load", "mass"]] = {"load": "load", "affinity": "mass"}
"""What a strategy has to know of each expert: its share of the choices, or its mean probability."""
KIND_OF_TAG = {"text": "text", "audio": "audio"}
"""The kind of prompts that a tag's tokens are looked at in; nobody has prompts for wave markers."""

_SIZE = re.compile(r"\s*([a-z]+(?:\s*\+\s*[a-z]+)*)\s*=\s*([0-9]{1,9})\s*")
_MORE = 1e-12  # of all use: less than that is rounding


def read_sizes(words: Sequence[str], num_experts: int) -> dict[str, int]:
    """ "text=32", "audio=32" -> experts of each group; none: halves for text and audio. ConfigError."""
    given = tuple(words)
    if not given:
        if num_experts % 2:
            wrong = f"{num_experts} experts have no halves"
            raise ConfigError("partition.sizes", given, wrong, "say how many each gets, like text=3 audio=2")
        return {"text": num_experts // 2, "audio": num_experts // 2}
    sizes: dict[str, int] = {}
    for word in given:
        match = _SIZE.fullmatch(word)
        if match is None:
            raise ConfigError("partition.sizes", given, f"cannot read {word!r}", "write them like text=32 audio=32")
        tags = [tag.strip() for tag in match[1].split("+")]
        for tag in tags:
            if tag not in TAG_NAMES:
                wrong = f"there is no modality {tag!r}"
                raise ConfigError("partition.sizes", given, wrong, f"use {', '.join(TAG_NAMES)}")
            if any(tag in name.split("+") for name in sizes) or tags.count(tag) > 1:
                raise ConfigError("partition.sizes", given, f"{tag!r} is named twice", "name each modality once")
        if not int(match[2]):
            raise ConfigError("partition.sizes", given, f"{match[1]} gets no expert", "give each at least one")
        sizes["+".join(tags)] = int(match[2])
    if (total := sum(sizes.values())) != num_experts:
        wrong = f"these are {total} experts, the model has {num_experts}"
        raise ConfigError("partition.sizes", given, wrong, f"make them add up to {num_experts}")
    return sizes


def group_lines(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """As moe.groups has them: runs of ids, in turn."""
    lines, first = [], 0
    for name, size in sizes.items():
        lines.append(f"{name}: {first}-{first + size - 1}" if size > 1 else f"{name}: {first}")
        first += size
    return tuple(lines)


def kinds_of(group: str) -> list[str]:
    """Whose prompts tell how much a group's tokens use an expert."""
    return [KIND_OF_TAG[tag] for tag in group.split("+") if tag in KIND_OF_TAG]


def require_choosable(strategy: Strategy, sizes: Mapping[str, int]) -> None:
    """ConfigError where there is nothing to choose, or nothing to choose by."""
    given = tuple(f"{name}={size}" for name, size in sizes.items())
    if len(sizes) < 2:
        raise ConfigError("partition.sizes", given, "one group has nothing to share out", "give two groups or more")
    if strategy == "affinity" and (len(sizes) > 2 or not all(kinds_of(name) for name in sizes)):
        wrong = "affinity compares how text and how speech use an expert; wave markers have no prompts"
        raise ConfigError("partition.sizes", given, wrong, "give wave to one of two groups, like audio+wave=32")


def order_of(strategy: Strategy, sizes: Mapping[str, int], use: Mapping[str, Numbers]) -> Order:
    """One layer's. `use`: by kind of prompts, of each expert; strategies that are not MEASURED do without."""
    counts, num_experts = list(sizes.values()), sum(sizes.values())
    if strategy == "index":
        return tuple(range(num_experts))
    if strategy == "alternate":
        return _in_groups(alternate(counts), len(counts))
    if strategy == "load":
        return _in_groups(balance(use["text"], counts), len(counts))
    first, second = (np.mean([use[kind] for kind in kinds_of(name)], axis=0) for name in sizes)
    return _in_groups(prefer(first - second, counts), len(counts))


def alternate(counts: Sequence[int]) -> list[int]:
    """Expert -> group, in turns; larger groups come oftener."""
    given, groups = [0] * len(counts), []
    for number in range(sum(counts)):
        behind = [(number + 1) * count / sum(counts) - had for count, had in zip(counts, given, strict=True)]
        group = max(range(len(counts)), key=lambda g: (given[g] < counts[g], behind[g], -g))
        given[group] += 1
        groups.append(group)
    return groups


def balance(load_E: Numbers, counts: Sequence[int]) -> list[int]:
    """Expert -> group, so that each group's load is as its size is.

    Experts are dealt, the busiest first, to the group that lacks most for each of its free places; then two of
    different groups change places while that lowers the sum of squares of what groups have too much. With two groups it
    ends at most (max - min) / 2 from the goal: else a pair was left to change.
    """
    wanted_G = load_E.sum() * np.array(counts) / sum(counts)
    free, sums_G, groups = list(counts), np.zeros(len(counts)), np.full(len(load_E), -1)
    for expert in np.argsort(-load_E, kind="stable"):
        lack = [(wanted_G[g] - sums_G[g]) / free[g] if free[g] else -np.inf for g in range(len(counts))]
        group = int(np.argmax(lack))
        groups[expert] = group
        sums_G[group] += load_E[expert]
        free[group] -= 1
    least = _MORE * float(load_E.sum()) ** 2
    while True:
        excess_G = np.array([load_E[groups == g].sum() for g in range(len(counts))]) - wanted_G
        # Expert a of group g goes to h, b comes: the squares change by 2 d (d + excess_h - excess_g), d = a's less b's.
        less_EE = load_E[:, None] - load_E[None, :]
        gain_EE = -2 * less_EE * (less_EE + excess_G[groups][None, :] - excess_G[groups][:, None])
        gain_EE[groups[:, None] == groups[None, :]] = 0.0
        a, b = np.unravel_index(int(np.argmax(gain_EE)), gain_EE.shape)
        if not gain_EE[a, b] > least:
            return groups.tolist()
        groups[a], groups[b] = groups[b], groups[a]


def prefer(lead_E: Numbers, counts: Sequence[int]) -> list[int]:
    """Expert -> group, of two: the first gets those that lead most. No other choice of as many has a greater sum of
    both groups' own use.
    """
    groups = np.ones(len(lead_E), dtype=int)
    groups[np.argsort(-lead_E, kind="stable")[: counts[0]]] = 0
    return groups.tolist()


def _in_groups(groups: Sequence[int], num_groups: int) -> Order:
    return tuple(expert for group in range(num_groups) for expert, of in enumerate(groups) if of == group)


def ours_by_theirs(order: Sequence[int]) -> list[int]:
    """Their expert -> ours: the inverse."""
    ours = [0] * len(order)
    for number, theirs in enumerate(order):
        ours[theirs] = number
    return ours


def sums_by_group(use_E: Numbers, order: Sequence[int], counts: Sequence[int]) -> list[float]:
    """What each group's experts are used together."""
    bounds = np.cumsum([0, *counts])
    return [float(use_E[list(order[low:high])].sum()) for low, high in zip(bounds, bounds[1:], strict=False)]

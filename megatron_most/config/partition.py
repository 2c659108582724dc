"""Partition and placement as tables of numbers.

Partition: which published expert ids belong to which group, written "tags: ids" ("text: 0-31", "audio: 1,3,5-9").
Placement: expert id -> slot. `blocked` is the identity; `striped` deals each group out over the expert-parallel ranks
in turn, so every rank owns some of each group and an all-speech batch keeps all ranks busy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

from megatron_most.errors import ConfigError

_RUN = r"[0-9]{1,9}(?:\s*-\s*[0-9]{1,9})?"
_GROUP = re.compile(rf"\s*(?P<tags>[a-z]+(?:\s*\+\s*[a-z]+)*)\s*:\s*(?P<ids>{_RUN}(?:\s*,\s*{_RUN})*)\s*")


@dataclass(frozen=True)
class ExpertGroup:
    """The tags that own some experts together, and those experts' published ids, ascending."""

    tags: tuple[str, ...]
    experts: tuple[int, ...]

    @property
    def name(self) -> str:
        """For messages and telemetry: "text", or "text+audio"."""
        return "+".join(self.tags)


def parse_groups(lines: Sequence[str], num_experts: int) -> tuple[ExpertGroup, ...]:
    """The groups a config lists; every expert 0..num_experts-1 must be owned exactly once."""
    groups = tuple(_parse(line, lines, num_experts) for line in lines)
    owners = Counter(expert for group in groups for expert in group.experts)
    twice = (expert for expert in sorted(owners) if owners[expert] > 1)
    orphans = (expert for expert in range(num_experts) if expert not in owners)
    for what, ids in (("owned twice", twice), ("owned by nobody", orphans)):
        if first := list(islice(ids, 9)):
            wrong = f"experts {what}: {', '.join(map(str, first[:8]))}" + (", ..." if len(first) > 8 else "")
            raise ConfigError("moe.groups", tuple(lines), wrong, f"list each of 0..{num_experts - 1} once")
    return groups


def _parse(line: str, lines: Sequence[str], num_experts: int) -> ExpertGroup:
    match = _GROUP.fullmatch(line)
    if not match:
        remedy = 'write "tag: ids", for example "text: 0-31"'
        raise ConfigError("moe.groups", tuple(lines), f"cannot read {line!r}", remedy)
    experts: list[int] = []
    for run in match["ids"].split(","):
        first, _, last = run.partition("-")
        if last and int(last) < int(first):
            wrong = f"{run.strip()!r} runs backwards"
            raise ConfigError("moe.groups", tuple(lines), wrong, "write the smaller id first")
        if int(last or first) >= num_experts:
            wrong = f"there is no expert {int(last or first)}"
            raise ConfigError("moe.groups", tuple(lines), wrong, f"list each of 0..{num_experts - 1} once")
        experts.extend(range(int(first), int(last or first) + 1))
    tags = tuple(tag.strip() for tag in match["tags"].split("+"))
    return ExpertGroup(tags=tags, experts=tuple(sorted(experts)))


def place(
    groups: Sequence[Sequence[int]], placement: Literal["blocked", "striped"], ranks: int,
    load_E: Sequence[float] | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """slot_of: for each expert id its slot. Rank r holds slots r*n .. r*n+n-1 where n = experts / ranks.

    `load_E`: tokens that each expert has seen. Then striped placement gives every rank as many experts of a group as
    without, but deals them so that the group's tokens come out even.
    """
    num_experts = sum(len(group) for group in groups)
    if placement == "blocked":
        return tuple(range(num_experts))
    for index, group in enumerate(groups):
        if len(group) % ranks:
            wrong = f"does not divide group {index} of {len(group)} experts, as striped placement needs"
            raise ConfigError("layout.expert", ranks, wrong, 'use a divisor, or moe.placement = "blocked"')
    hands = [_deal(group, ranks, load_E) for group in groups]
    if load_E is not None:  # the rank that got one group's busiest expert gets the next one's last
        hands = [hand[::-1] if number % 2 else hand for number, hand in enumerate(hands)]
    order = [expert for rank in range(ranks) for hand in hands for expert in hand[rank]]
    slot_of = [0] * num_experts
    for slot, expert in enumerate(order):
        slot_of[expert] = slot
    return tuple(slot_of)


def _deal(group: Sequence[int], ranks: int, load_E: Sequence[float] | None) -> list[list[int]]:
    """A group's experts for each rank, as many for one as for another: in runs, or, where loads are known, the busiest
    first, each to the rank with least so far that still has room; then the busiest rank trades while that helps.
    """
    share = len(group) // ranks
    if load_E is None:
        return [list(group[rank * share : (rank + 1) * share]) for rank in range(ranks)]
    hands: list[list[int]] = [[] for _ in range(ranks)]
    carried = [0.0] * ranks
    for expert in sorted(group, key=lambda expert: (-load_E[expert], expert)):
        rank = min((r for r in range(ranks) if len(hands[r]) < share), key=lambda r: (carried[r], r))
        hands[rank].append(expert)
        carried[rank] += load_E[expert]
    while _trade(hands, load_E):
        pass
    return [sorted(hand) for hand in hands]


def _trade(hands: list[list[int]], load_E: Sequence[float]) -> bool:
    """Swap one expert of the busiest rank for another rank's, so that the busier of the two has least; False where no
    swap leaves it with less than the busiest has now.
    """
    carried = [sum(load_E[expert] for expert in hand) for hand in hands]
    busiest = max(range(len(hands)), key=lambda rank: (carried[rank], -rank))
    best = carried[busiest] * (1 - 1e-9)  # a gain that is more than rounding, else it might go on for ever
    found: tuple[int, int, int] | None = None
    for rank, hand in enumerate(hands):
        for mine, theirs in product(hands[busiest], hand):
            less = load_E[mine] - load_E[theirs]
            if less > 0 and (then := max(carried[busiest] - less, carried[rank] + less)) < best:
                best, found = then, (rank, mine, theirs)
    if found is None:
        return False
    rank, mine, theirs = found
    hands[busiest].remove(mine)
    hands[rank].remove(theirs)
    hands[busiest].append(theirs)
    hands[rank].append(mine)
    return True

"""From what every node sees of itself to a verdict: which nodes are bad and why, and at which port ranks shall meet.

What must be alike is compared with what most nodes have; where as many have one thing as another, with what the batch
script's own node has, for it is there that the run was opened. A fault that all nodes share is nobody's: no other node
would help, and the job ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_most.jobs.gpus import find_faults, kinds_of
from megatron_most.jobs.links import rounds

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a node must have."""

    nodes: Sequence[str]
    """As Slurm has given them; the batch script's own first."""
    gpus: int = 0
    """Granted on each node, where a node does not say itself; 0 = none are looked at."""
    free_bytes: int = 0
    """Room where the run is kept."""
    scratch_bytes: int = 1 << 30
    """Room for temporary files."""
    skew_s: float = 5.0
    """How far a clock may be off."""
    between: tuple[float, float] = (0.0, float("inf"))
    """The batch script's own clock before and after nodes looked at theirs."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong; nothing where `faults` is empty."""

    faults: dict[str, list[str]] = field(default_factory=dict)
    """node -> what, in words."""
    port: int = 0

    @property
    def bad(self) -> list[str]:
        return list(self.faults)


def judge(found: Sequence[Facts], demands: Demands) -> Verdict:
    """`found`: what nodes have said; one that has said nothing is bad."""
    facts = {item["node"]: item for item in found}
    faults: dict[str, list[str]] = {node: [] for node in demands.nodes}
    for node in demands.nodes:
        faults[node] += _alone(facts[node], demands) if node in facts else ["it did not answer; its words are above"]
    here = {node: facts[node] for node in demands.nodes if node in facts}
    for what, value_of in _ALIKE.items():
        _compare(what, {node: value_of(item) for node, item in here.items()}, demands.nodes[0], faults)
    for path in dict.fromkeys(path for item in here.values() for path in item["data"]):
        _compare(path, {node: item["data"].get(path) for node, item in here.items()}, demands.nodes[0], faults)
    _compare_packages(here, demands.nodes[0], faults)
    first = here.get(demands.nodes[0])
    if first is not None and not first["port"]:
        faults[demands.nodes[0]].append("no port is free for ranks to meet at")
    return Verdict({node: words for node, words in faults.items() if words}, first["port"] if first else 0)


def judge_links(rates: Sequence[Mapping[str, Any]], floor: float, nodes: Sequence[str]) -> Verdict:
    """`rates`: {"nodes": [one, other], "rank": r, "gb_per_s": x} of the pairs that came to an end.

    A node is bad where every pair that it was to be in is slow, or did not end, and another pair is well; where that
    tells nothing, the ends of all such pairs are.
    """
    slowest = {frozenset((nodes[one], nodes[other])): 0.0 for links in rounds(len(nodes)) for one, other in links}
    for pair in slowest:
        told = [float(rate["gb_per_s"]) for rate in rates if set(rate["nodes"]) == pair]
        slowest[pair] = min(told, default=0.0) if all(map(math.isfinite, told)) else 0.0
    slow = {pair: rate for pair, rate in slowest.items() if rate < floor}
    ends = [node for node in nodes if any(node in pair for pair in slow)]
    # The ends of one slow link are both slow where each is in few pairs: who is fast with somebody is not to blame.
    blamed = [node for node in ends if all(pair in slow for pair in slowest if node in pair)]
    faults: dict[str, list[str]] = {}
    for node in blamed or ends:
        rate, other = min((rate, *(pair - {node})) for pair, rate in slow.items() if node in pair)
        how = f"runs at {rate:.3g} GB/s a rank, below {floor:g}" if rate else "does not come to an end"
        faults[node] = [f"all-reduce with {other} {how}"]
    return Verdict(faults)


def _alone(item: Facts, demands: Demands) -> list[str]:
    """What is wrong with a node whatever the others say."""
    faults = [f"{path}: {seen}" for path, seen in item["data"].items() if seen.startswith("not seen")]
    if item["checkpoint"].startswith("not seen"):
        faults.append(f"the newest checkpoint is {item['checkpoint']}")
    if item["writes"]:
        faults.append(f"the run's folder cannot be written: {item['writes']}")
    for name, least, words in (
        ("run", demands.free_bytes, "where the run is kept"),
        ("temporary", demands.scratch_bytes, "for temporary files"),
        ("shm", demands.scratch_bytes, "in /dev/shm"),
    ):
        if item["free"][name] < least:
            faults.append(f"{item['free'][name] / 1e9:.3g} GB are free {words}, {least / 1e9:.3g} are wanted")
    before, after = demands.between
    off = max(before - item["at"], item["at"] - after, 0.0)
    if off > demands.skew_s:
        faults.append(f"its clock is off by at least {off:.0f} s")
    if demands.gpus:
        gpus = item["gpus"]
        wanted = item["granted"] or demands.gpus
        faults += [gpus["error"]] if "error" in gpus else find_faults(gpus.get("gpus", []), wanted)
    return faults


_ALIKE = {
    "the code (megatron_most)": lambda item: item["code"],
    "python": lambda item: item["python"],
    "the newest checkpoint": lambda item: None if item["checkpoint"].startswith("not seen") else item["checkpoint"],
    "GPUs": lambda item: kinds_of(item["gpus"]["gpus"]) if item["gpus"].get("gpus") else None,
}


def _compare(what: str, seen: Mapping[str, Any], first: str, faults: dict[str, list[str]]) -> None:
    """A fault for each node that sees another thing than most do. None, or not seen: told already."""
    known = {node: value for node, value in seen.items() if value and not str(value).startswith("not seen")}
    usual = _usual(known, first)
    for node, value in known.items():
        if value != usual:
            faults[node].append(f"{what} is another than on most nodes: {value}, not {usual}")


def _compare_packages(here: Mapping[str, Facts], first: str, faults: dict[str, list[str]]) -> None:
    names = sorted({name for item in here.values() for name in item["packages"]})
    for name in names:
        versions = {node: item["packages"].get(name, "none") for node, item in here.items()}
        usual = _usual(versions, first)
        for node, value in versions.items():
            if value != usual:
                faults[node].append(f"package {name}: {value}, not {usual} as on most nodes")


def _usual(seen: Mapping[str, Any], first: str) -> Any:
    ranked = Counter(seen.values()).most_common()
    most = [value for value, count in ranked if count == ranked[0][1]]
    return seen[first] if first in seen and seen[first] in most else (most[0] if most else None)

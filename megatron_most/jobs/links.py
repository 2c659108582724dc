"""How fast nodes reduce with their neighbours: each rank with its like on the next node, all of them at a time.

Nodes stand in a ring, and each is tried with both neighbours, so that one slow node can be told from one slow link.
All pairs of a round run at once, as they do in training. What is measured is bytes over seconds, of one rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_most.runtime import Ranks

_REPEATS = 5


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """The links of a ring of nodes, dealt into rounds in which no node comes twice."""
    links = [(node, (node + 1) % nodes) for node in range(nodes if nodes > 2 else nodes - 1)]
    dealt: list[list[tuple[int, int]]] = []
    for link in links:
        for others in dealt:
            if not any(node in other for other in others for node in link):
                others.append(link)
                break
        else:
            dealt.append([link])
    return dealt


def measure_links(ranks: Ranks, names: Sequence[str], megabytes: float) -> Iterator[dict[str, Any]]:
    """What this rank measures as the first of its pairs, as it comes: a dead link must not take the others with it.

    All ranks go through it. `names`: of the nodes, in order.
    """
    import torch
    import torch.distributed as dist

    launch = ranks.launch
    data = torch.zeros(max(1, int(megabytes * 1e6 / 4)), device=ranks.device.torch_device)
    for links in rounds(launch.num_nodes):
        ranks.barrier()
        link = next((link for link in links if launch.node in link), (launch.node,))
        pair = sorted(node * launch.local_world_size + launch.local_rank for node in link)
        # Only its members make a group. torch names it by how many each of them has made: one a round, so who has
        # nobody to talk to makes one of its own.
        group = dist.new_group(pair, use_local_synchronization=True)
        if len(pair) == 1:
            continue
        dist.all_reduce(data, group=group)  # the first one makes the connections
        ranks.device.synchronize()
        since = time.perf_counter()
        for _ in range(_REPEATS):
            dist.all_reduce(data, group=group)
        ranks.device.synchronize()
        seconds = (time.perf_counter() - since) / _REPEATS
        if launch.rank == pair[0]:
            rate = data.numel() * 4 / seconds / 1e9
            yield {"nodes": [names[node] for node in link], "rank": launch.local_rank, "gb_per_s": rate}
    ranks.barrier()

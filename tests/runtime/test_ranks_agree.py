"""Ranks meet, agree and part: the same values and the same errors on every rank."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_most.errors import ConfigError, DataError, LayoutError, MostError
from megatron_most.runtime import Launch, Ranks, agree, find_device, process_group
from tests.harness import BACKENDS, RanksFailed, run_ranks


class LateError(DataError):
    """A subclass, and one whose constructor takes something else than the text."""

    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}")
        self.number = number


def sum_of_ranks(ranks: Ranks) -> float:
    total = torch.tensor([ranks.rank + 1.0], device=ranks.device.torch_device)
    dist.all_reduce(total)
    ranks.barrier()
    return total.item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rank_gets_the_sum_over_all(backend: str) -> None:
    world_size = 1 if backend != BACKENDS[0] else 4
    assert run_ranks(sum_of_ranks, world_size, backend=backend) == [world_size * (world_size + 1) / 2] * world_size


def test_ranks_that_meet_over_tcp_part_in_peace() -> None:
    # Rank 0 keeps the store: were it to go first, the others would take it for killed.
    assert run_ranks(sum_of_ranks, 3, meet="tcp") == [6.0] * 3


def agree_on(ranks: Ranks, errors: dict[int, Exception]) -> str:
    agree(None)  # nobody fails: nothing happens
    try:
        agree(errors.get(ranks.rank))
    except MostError as error:
        fields = {name: repr(value) for name, value in sorted(vars(error).items())}
        agree(None)  # the ranks are still in step
        return f"{type(error).__name__} {error} {fields}"
    return "no error"


CASES = {
    "config": (
        {1: ConfigError("moe.top_k", 40, "a group has only 32 experts", "use at most 32")},
        "ConfigError rank 1: moe.top_k = 40: a group has only 32 experts; use at most 32 "
        "{'field': \"'moe.top_k'\", 'remedy': \"'use at most 32'\", 'value': \"'40'\", "
        "'wrong': \"'a group has only 32 experts'\"}",
    ),
    "lowest rank": ({2: DataError("b.jsonl:2: no text"), 1: DataError("ä.jsonl:1: no text")}, None),
    "all ranks": ({r: LayoutError(f"{r} of 3") for r in range(3)}, "LayoutError rank 0: 0 of 3 {}"),
    "not ours": ({2: FileNotFoundError("a.bin")}, "MostError rank 2: FileNotFoundError: a.bin {}"),
    "other constructor": ({0: LateError(7)}, "LateError rank 0: number 7 {'number': \"'7'\"}"),
    "empty text": ({0: DataError()}, "DataError rank 0:  {}"),
    "nobody": ({}, "no error"),
}


def agree_on_all(ranks: Ranks) -> dict[str, str]:
    return {name: agree_on(ranks, errors) for name, (errors, _) in CASES.items()}


def test_all_ranks_raise_the_lowest_failing_ranks_error() -> None:
    said = run_ranks(agree_on_all, 3)
    expected = {name: text or "DataError rank 1: ä.jsonl:1: no text {}" for name, (_, text) in CASES.items()}
    assert said == [expected] * 3


def agree_to_fail(ranks: Ranks) -> None:
    agree(DataError("a.jsonl:3: no text") if ranks.rank == 1 else None)


def test_an_agreed_error_leaves_every_rank_as_itself() -> None:
    with pytest.raises(RanksFailed) as failed:
        run_ranks(agree_to_fail, 3, timeout=30)
    assert [(o.error, o.message) for o in failed.value.outcomes] == [("DataError", "rank 1: a.jsonl:3: no text")] * 3


def test_alone_an_error_is_raised_as_it_is() -> None:
    agree(None)
    error = ConfigError("a", 1, "no", "yes")
    with pytest.raises(ConfigError) as raised:
        agree(error)
    assert raised.value is error
    with pytest.raises(ConfigError) as raised, process_group(Launch(), find_device("cpu")):
        agree(error)
    assert raised.value is error


def test_alone_a_group_opens_again_after_an_error() -> None:
    for _ in range(2):
        with pytest.raises(KeyError), process_group(Launch(), find_device("cpu")) as ranks:
            ranks.barrier()
            raise KeyError("x")
        assert not dist.is_initialized()


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LayoutError, match=f"cannot listen at 127.0.0.1:{port}.*MASTER_PORT"):
            with process_group(Launch(port=port), find_device("cpu")):
                pass


def test_a_rank_that_finds_no_rank_0_says_where_it_looked() -> None:
    launch = Launch(rank=1, world_size=2, port=1)  # nobody listens on port 1
    with pytest.raises(LayoutError, match="rank 1 cannot reach the store at 127.0.0.1:1 within 1 s.*MASTER_ADDR"):
        with process_group(launch, find_device("cpu"), timeout_s=1):
            pass

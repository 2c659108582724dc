"""What nodes say of themselves and who is blamed: real programs and files for the facts, made-up nodes to judge."""

from __future__ import annotations

import copy
import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import RunConfig, load_recipe, replace
from megatron_most.jobs.facts import as_lines, code_hash, data_paths, free_port, from_lines, node_facts, packages
from megatron_most.jobs.gpus import FIELDS, ask_gpus, find_faults
from megatron_most.jobs.judge import Demands, judge, judge_links
from megatron_most.jobs.links import measure_links, rounds
from megatron_most.runtime import Ranks
from tests.harness import run_ranks

GOOD = dict(zip(FIELDS, ["0", "NVIDIA H100", "570.86", "81559", "4", "0", *["Not Active"] * 4], strict=True))
NODES = ["n1", "n2", "n3"]


def program(folder: Path, body: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def said(rows: list[dict[str, str]]) -> str:
    return "cat <<'END'\n" + "\n".join(", ".join(row.values()) for row in rows) + "\nEND"


def many(count: int, **changes: str) -> list[dict[str, str]]:
    return [{**GOOD, **changes, "index": str(number)} for number in range(count)]


def node(name: str, **changes: Any) -> dict[str, Any]:
    facts = {
        "node": name, "at": 100.0, "code": "c0de", "python": "3.12.1", "packages": {"torch": "2.13.0", "numpy": "2.1"},
        "data": {"/data/asr": "abc"}, "checkpoint": "none", "writes": "", "port": 29500,
        "free": {"run": 10**12, "temporary": 10**12, "shm": 10**12}, "gpus": {"gpus": many(8)},
        "granted": 0,
    }  # fmt: skip
    return {**copy.deepcopy(facts), **changes}


def demands(**changes: Any) -> Demands:
    return Demands(**{"nodes": NODES, "gpus": 8, "between": (99.0, 101.0), **changes})


def test_nodes_that_agree_and_want_nothing_are_fit() -> None:
    verdict = judge([node(name) for name in NODES], demands())
    assert not verdict.faults and verdict.port == 29500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"/data/asr": "not seen: No such file or directory"}}, "/data/asr: not seen"),
        ({"data": {"/data/asr": "abd"}}, "/data/asr is another than on most nodes"),
        ({"checkpoint": "not seen: /run/step"}, "the newest checkpoint is not seen"),
        ({"writes": "/run: Read-only file system"}, "cannot be written"),
        ({"code": "0ld"}, "the code (megatron_most) is another than on most nodes: 0ld, not c0de"),
        ({"python": "3.11.2"}, "python is another"),
        ({"packages": {"torch": "2.12.0", "numpy": "2.1"}}, "package torch: 2.12.0, not 2.13.0"),
        ({"packages": {"numpy": "2.1"}}, "package torch: none, not 2.13.0"),
        ({"at": 140.0}, "its clock is off by at least 39 s"),
        ({"at": 60.0}, "its clock is off by at least 39 s"),
        ({"free": {"run": 10**9, "temporary": 10**12, "shm": 10**12}}, "1 GB are free where the run is kept, 5 are"),
        ({"free": {"run": 10**12, "temporary": 0, "shm": 10**12}}, "0 GB are free for temporary files"),
        ({"free": {"run": 10**12, "temporary": 10**12, "shm": 0}}, "0 GB are free in /dev/shm"),
        ({"gpus": {"gpus": many(7)}}, "7 GPUs are seen, 8 were granted"),
        ({"gpus": {"gpus": many(3)}, "granted": 4}, "3 GPUs are seen, 4 were granted"),
        ({"gpus": {"error": "nvidia-smi does not run"}}, "nvidia-smi does not run"),
        ({"gpus": {"gpus": many(8, driver_version="550.1")}}, "GPUs is another than on most nodes"),
    ],
)
def test_the_node_that_differs_is_named_and_no_other(changes: dict[str, Any], words: str) -> None:
    found = [node("n1"), node("n2", **changes), node("n3")]
    verdict = judge(found, demands(free_bytes=5 * 10**9))
    assert verdict.bad == ["n2"]
    assert any(words in fault for fault in verdict.faults["n2"]), verdict.faults


def test_a_step_may_have_fewer_gpus_than_an_exclusive_job() -> None:
    assert not judge([node(name, granted=4, gpus={"gpus": many(4)}) for name in NODES], demands()).faults


def test_a_node_that_says_nothing_is_bad() -> None:
    assert judge([node("n1"), node("n3")], demands()).bad == ["n2"]


def test_of_two_that_differ_the_one_without_the_batch_script_is_blamed() -> None:
    verdict = judge([node("n2", code="new"), node("n1")], demands(nodes=["n1", "n2"]))
    assert verdict.bad == ["n2"]


def test_what_no_node_has_is_the_fault_of_all() -> None:
    lacking = {"data": {"/data/asr": "not seen: No such file or directory"}}
    assert judge([node(name, **lacking) for name in NODES], demands()).bad == NODES


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ecc.errors.uncorrected.volatile.total": "3"}, "GPU 0 has 3 uncorrected memory errors"),
        ({"clocks_throttle_reasons.hw_thermal_slowdown": "Active"}, "GPU 0 is slowed down (hw_thermal_slowdown)"),
        ({"clocks_throttle_reasons.sw_thermal_slowdown": "Active"}, "GPU 0 is slowed down (sw_thermal_slowdown)"),
        ({"memory.used": "40000"}, "another process is on it"),
        ({"ecc.errors.uncorrected.volatile.total": "[Unknown Error]"}, "answers '[Unknown Error]' to ecc.errors"),
        ({"ecc.errors.uncorrected.volatile.total": "nan"}, "answers 'nan' to ecc.errors"),
        ({"clocks_throttle_reasons.hw_slowdown": "[GPU requires reset]"}, "answers '[GPU requires reset]' to clocks"),
        ({"memory.used": "[GPU is lost]"}, "answers '[GPU is lost]' to memory.used"),
        ({"memory.total": "40960"}, "its GPUs are not alike"),
        ({"index": "1"}, "two GPUs of one number: 1, 1"),
        ({"index": "[Unknown Error]"}, "answers '[Unknown Error]' to index"),
        ({"name": "[GPU is lost]"}, "answers '[GPU is lost]' to name"),
    ],
)
def test_a_sick_gpu_is_told_from_what_nvidia_smi_prints(tmp_path: Path, change: dict[str, str], words: str) -> None:
    answer = ask_gpus(program(tmp_path, said([{**GOOD, **change}, {**GOOD, "index": "1"}])))
    [fault] = find_faults(answer["gpus"], wanted=2)
    assert words in fault


@pytest.mark.parametrize("harm", ["!!!!", "QUJD", ""], ids=["no base64", "no zlib", "empty"])
def test_a_line_that_arrives_broken_is_a_node_that_has_said_nothing(harm: str) -> None:
    """srun mixes what nodes write at once, where lines are long; the verdict still names that node."""
    good, bad = as_lines(node("n1")), as_lines(node("n2"))
    bad[0] = " ".join([*bad[0].split(" ")[:4], harm])
    assert [item["node"] for item in from_lines([*good, *bad])] == ["n1"]


def test_gpus_of_other_jobs_on_a_shared_node_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = {"memory.used": "40000"}
    rows = [{**GOOD, "index": str(number), **(busy if number > 1 else {})} for number in range(4)]
    config = load_recipe("most-tiny")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    for visible, indices, faults in (("0,1", ["0", "1"], 0), ("1,2", ["1", "2"], 1), ("GPU-1,GPU-2", list("0123"), 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        facts = node_facts(config, tmp_path, tmp_path, step=0, port=29500, nvidia_smi=program(tmp_path, said(rows)))
        assert [gpu["index"] for gpu in facts["gpus"]["gpus"]] == indices
        assert len(find_faults(facts["gpus"]["gpus"], wanted=2)) == faults and facts["granted"] == 2


def test_a_gpu_that_counts_no_memory_errors_is_not_sick(tmp_path: Path) -> None:
    answer = ask_gpus(program(tmp_path, said([{**GOOD, "ecc.errors.uncorrected.volatile.total": "[N/A]"}])))
    assert find_faults(answer["gpus"], wanted=1) == []


def test_an_nvidia_smi_that_writes_no_utf_8_is_told_of(tmp_path: Path) -> None:
    assert "ended with 0" in ask_gpus(program(tmp_path, "printf '\\377\\376'"))["error"]


def test_an_nvidia_smi_that_fails_or_knows_no_such_field_is_an_error(tmp_path: Path) -> None:
    unknown = program(tmp_path, 'echo "Field \\"x\\" is not a valid field to query."; exit 2')
    assert "ended with 2: Field" in ask_gpus(unknown)["error"]
    assert "does not run" in ask_gpus(str(tmp_path / "none"))["error"]
    assert "ended with 0: No devices were found" in ask_gpus(program(tmp_path, "echo No devices were found"))["error"]


def test_one_slow_node_is_told_from_one_slow_link() -> None:
    def rates(slow: set[tuple[str, str]]) -> list[dict[str, Any]]:
        pairs = [("n1", "n2"), ("n2", "n3"), ("n3", "n4"), ("n4", "n1")]
        return [{"nodes": list(p), "rank": 0, "gb_per_s": 0.1 if p in slow else 20.0} for p in pairs]

    four = ["n1", "n2", "n3", "n4"]
    assert judge_links(rates(set()), 10, four).bad == []
    slow_node = judge_links(rates({("n1", "n2"), ("n2", "n3")}), 10, four)
    assert slow_node.bad == ["n2"] and "0.1 GB/s a rank, below 10" in slow_node.faults["n2"][0]
    assert judge_links(rates({("n1", "n2")}), 10, four).bad == ["n1", "n2"]


def test_a_link_that_does_not_come_to_an_end_is_the_fault_of_who_has_no_other() -> None:
    four = ["n1", "n2", "n3", "n4"]
    ended = [{"nodes": list(pair), "rank": 0, "gb_per_s": 20.0} for pair in (("n1", "n2"), ("n4", "n1"))]
    dead = judge_links(ended, 10, four)
    assert dead.bad == ["n3"] and dead.faults["n3"] == ["all-reduce with n2 does not come to an end"]
    assert judge_links([*ended, {"nodes": ["n2", "n3"], "rank": 0, "gb_per_s": 20.0}], 10, four).bad == ["n3", "n4"]
    assert judge_links([], 10, four).bad == four
    nan = [*ended, *({"nodes": ["n3", other], "rank": 0, "gb_per_s": float("nan")} for other in ("n2", "n4"))]
    assert judge_links(nan, 10, four).bad == ["n3"]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6, 7])
def test_every_link_of_the_ring_has_its_turn_and_no_node_two_at_once(nodes: int) -> None:
    dealt = rounds(nodes)
    for links in dealt:
        busy = [node for link in links for node in link]
        assert len(busy) == len(set(busy))
    wanted = {frozenset((node, (node + 1) % nodes)) for node in range(nodes)} if nodes > 1 else set()
    assert {frozenset(link) for links in dealt for link in links} == wanted
    assert len(dealt) <= 3


def measured(ranks: Ranks) -> list[dict[str, Any]]:
    launch = dataclasses.replace(ranks.launch, node=ranks.rank, num_nodes=3, local_rank=0, local_world_size=1)
    return list(measure_links(dataclasses.replace(ranks, launch=launch), NODES, megabytes=0.1))


def test_three_ranks_measure_three_links() -> None:
    found = [rate for rates in run_ranks(measured, 3) for rate in rates]
    assert sorted(tuple(sorted(rate["nodes"])) for rate in found) == [("n1", "n2"), ("n1", "n3"), ("n2", "n3")]
    assert all(rate["gb_per_s"] > 0 for rate in found)


def measured_until_it_breaks(ranks: Ranks) -> list[dict[str, Any]]:
    """In the second round no rank finds its partner."""
    import torch.distributed as dist

    make, rounds_begun = dist.new_group, iter(range(9))

    def breaking(*args: Any, **given: Any) -> Any:
        if next(rounds_begun):
            raise RuntimeError("connection closed by peer")
        return make(*args, **given)

    dist.new_group = breaking
    launch = dataclasses.replace(ranks.launch, node=ranks.rank, num_nodes=3, local_rank=0, local_world_size=1)
    found: list[dict[str, Any]] = []
    with pytest.raises(RuntimeError, match="connection closed"):
        for rate in measure_links(dataclasses.replace(ranks, launch=launch), NODES, megabytes=0.1):
            found.append(rate)
    return found


def test_what_was_measured_before_a_link_broke_is_told() -> None:
    found = [rate for rates in run_ranks(measured_until_it_breaks, 3) for rate in rates]
    assert [rate["nodes"] for rate in found] == [["n1", "n2"]]
    assert judge_links(found, 0.0001, NODES).bad == ["n3"]


def a_run(tmp_path: Path) -> RunConfig:
    (tmp_path / "asr").mkdir()
    (tmp_path / "asr" / "dataset.json").write_text("{}")
    return replace(load_recipe("most-tiny"), {"data.asr.train": [str(tmp_path / "asr"), str(tmp_path / "gone")]})


def test_a_node_sees_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    config, port = a_run(tmp_path), free_port(20_000)
    facts = node_facts(config, tmp_path, tmp_path, step=0, port=port, nvidia_smi="")
    assert facts["data"][str(tmp_path / "gone")] == "not seen: No such file or directory"
    assert not facts["data"][str(tmp_path / "asr")].startswith("not seen")
    assert facts["writes"] == "" and facts["port"] == port and facts["packages"]["torch"]
    (tmp_path / "asr" / "tokens.bin").write_bytes(b"more")
    again = node_facts(config, tmp_path, tmp_path, step=0, port=port, nvidia_smi="")
    assert again["data"] != facts["data"]


def test_paths_of_a_run_are_all_that_it_reads(tmp_path: Path) -> None:
    config = replace(a_run(tmp_path), {"checkpoint.start_from": "/c", "tokens.file": "/t", "forgetting.valid": ["/f"]})
    assert data_paths(config) == [str(tmp_path / "asr"), str(tmp_path / "gone"), "/f", "/t", "/c"]


def test_a_port_that_is_taken_is_passed_over() -> None:
    first = free_port(20_100)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        assert free_port(first) > first


def test_code_is_known_by_content_and_packages_by_the_first_on_the_path(tmp_path: Path) -> None:
    for place, version in (("a", "1.0"), ("b", "2.0")):
        os.makedirs(tmp_path / place / f"Some-Thing-{version}.dist-info".replace("Some-Thing", "Some_Thing"))
    assert packages([str(tmp_path / "a"), str(tmp_path / "b")]) == {"some_thing": "1.0"}
    (tmp_path / "a" / "x.py").write_text("1")
    before = code_hash(tmp_path)
    (tmp_path / "a" / "x.py").write_text("2")
    assert code_hash(tmp_path) != before


def test_what_nodes_say_is_put_together_from_short_lines_in_any_order() -> None:
    many = {f"package_{number}": os.urandom(8).hex() for number in range(200)}
    told = [node(name, packages=many) for name in NODES]
    lines = [as_lines(facts) for facts in told]
    assert all(len(own) > 2 and max(map(len, own)) < 1000 for own in lines)
    mixed = [line for together in zip(*lines, strict=True) for line in together]
    assert from_lines(["srun: words", *reversed(mixed)]) == [told[2], told[1], told[0]]
    assert [facts["node"] for facts in from_lines(mixed[1:])] == ["n2", "n3"], "of n1 a part is lost"

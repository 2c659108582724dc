"""The device of a rank, and seeds and threads."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from megatron_most.errors import ConfigError
from megatron_most.runtime import Device, deterministic, find_device, num_devices, seed_everything, set_threads


def draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), torch.rand(()).item()


def test_a_seed_repeats_every_generator() -> None:
    seed_everything(2**40 + 7)  # numpy alone takes 32 bits
    first = draw()
    second = draw()
    seed_everything(2**40 + 7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True)) and second != first


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="device = 'tpu'"):
        find_device("tpu")  # type: ignore[arg-type]


def test_asking_for_a_gpu_where_none_is_names_the_field() -> None:
    if num_devices():
        pytest.skip("there is a gpu here")
    with pytest.raises(ConfigError, match="device = 'gpu': torch finds no GPU"):
        find_device("gpu")
    assert find_device("auto") == Device("cpu")


def test_the_cpu_is_itself() -> None:
    device = find_device("cpu", local_rank=3)
    assert (device.torch_device, device.backend, device.bf16_ok) == (torch.device("cpu"), "gloo", True)
    before = device.max_memory_bytes()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    device.synchronize()
    assert device.max_memory_bytes() >= max(before, held.numel())


def test_a_gpu_has_a_backend_for_cpu_tensors_as_well() -> None:
    assert Device("gpu", 2).backend == "cpu:gloo,cuda:nccl"
    assert Device("gpu", 2).torch_device == torch.device("cuda:2")


@pytest.mark.gpu
def test_a_gpu_counts_its_own_memory() -> None:
    if not num_devices():
        pytest.skip("needs a gpu")
    device = find_device("gpu")
    device.reset_memory_stats()
    before = device.max_memory_bytes()
    held = torch.ones(1 << 20, device=device.torch_device)
    device.synchronize()
    assert device.max_memory_bytes() - before >= held.numel() * 4 and device.bf16_ok


def test_deterministic_and_threads_reach_torch() -> None:
    threads = torch.get_num_threads()
    try:
        deterministic(True)
        set_threads(1)
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    finally:
        deterministic(False)
        set_threads(threads)
    assert not torch.are_deterministic_algorithms_enabled()

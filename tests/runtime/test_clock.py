"""A clock's laps add up to all of the time, and a GPU's speed is never guessed."""

from __future__ import annotations

import time

import pytest

from megatron_most.runtime import Clock, Device, find_device, num_devices


def test_laps_of_one_name_add_up_and_none_is_lost_between_two_looks() -> None:
    clock, start = Clock(Device("cpu")), time.perf_counter()
    for name, seconds in (("data", 0.01), ("step", 0.03), ("data", 0.02)):
        time.sleep(seconds)
        clock.lap(name)
    first = clock.take()
    time.sleep(0.01)
    clock.lap("save")
    second = clock.take()
    whole = time.perf_counter() - start
    assert set(first) == {"data", "step"} and set(second) == {"save"}
    assert first["data"] >= 0.03 and first["step"] >= 0.03 and second["save"] >= 0.01
    assert sum(first.values()) + sum(second.values()) == pytest.approx(whole, abs=5e-3)
    assert clock.take() == {}


@pytest.mark.gpu
def test_on_a_gpu_the_work_belongs_to_the_lap_that_queued_it() -> None:
    import torch

    if not num_devices():
        pytest.skip("needs 1 gpus, 0 here")
    device = find_device("gpu")
    x = torch.randn(4096, 4096, device=device.torch_device)
    for _ in range(3):
        x @ x
    device.synchronize()
    clock = Clock(device)
    start = time.perf_counter()
    for _ in range(50):
        x @ x
    clock.lap("products")
    queued = time.perf_counter() - start
    clock.lap("nothing")
    device.synchronize()
    whole = time.perf_counter() - start
    times = clock.take()
    assert queued < 0.5 * whole  # else the host's clock would have done
    assert times["products"] > 0.8 * whole and times["nothing"] < 0.1 * whole


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA H20", None),
        ("NVIDIA L4", None),
        ("cpu", None),
    ],
)
def test_only_a_gpu_of_the_table_has_a_peak(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "name", name)
    assert Device("gpu").peak_flops == peak

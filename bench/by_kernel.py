"""Which kernels a step's time goes to, and a picture of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch.profiler import profile

from megatron_most.runtime import Device

MOST = 20
"""Kernels told by name; the rest is one bar."""
SIGNS = 70


def seconds_by_kernel(step: Callable[[], object], device: Device) -> dict[str, float]:
    """The longest first: of a GPU's own time, on a CPU of the operations'."""
    with profile() as seen:
        step()
        device.synchronize()
    found: dict[str, float] = {}
    for event in seen.key_averages():
        on_device = event.device_type.name != "CPU"
        taken = event.self_device_time_total if on_device else event.self_cpu_time_total
        if on_device == (device.kind == "gpu") and taken > 0:
            found[event.key] = found.get(event.key, 0.0) + taken / 1e6
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def draw(seconds: dict[str, float], title: str, file: Path) -> None:
    """Bars, with the share of all."""
    whole, told = sum(seconds.values()), list(seconds.items())[:MOST]
    rest = whole - sum(taken for _, taken in told)
    bars = [(name if len(name) <= SIGNS else f"{name[: SIGNS - 3]}...", taken) for name, taken in told]
    if len(seconds) > MOST:
        bars.append((f"{len(seconds) - MOST} others", rest))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(10, 0.6 + 0.27 * len(bars)), layout="constrained", dpi=120)
        axes = figure.subplots()
        places = range(len(bars))
        axes.barh(places, [1e3 * taken for _, taken in bars], color="#4878a8")
        axes.set_yticks(places, [name for name, _ in bars], fontsize=7)
        axes.invert_yaxis()
        for place, (_, taken) in zip(places, bars, strict=True):
            axes.text(1e3 * taken, place, f" {100 * taken / whole:.1f} %", va="center", fontsize=7)
        axes.margins(x=0.1)
        axes.set_xlabel("milliseconds of a step")
        axes.set_title(title, fontsize=9)
        figure.savefig(file, format="png")

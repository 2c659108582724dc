"""What a rank computes on. Every word that names a kind of device or its backend is in this file.

`find_device` turns the wish of a recipe and the local rank into a `Device`. On a GPU the process group gets a backend
for CPU tensors as well, so that counts, flags and errors travel between ranks without waiting for the GPU. torch is
imported where it is needed: finding the launch and printing a usage line must not cost seconds.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from megatron_most.errors import ConfigError, LayoutError

if TYPE_CHECKING:
    import torch

CPU_BACKEND = "gloo"
GPU_BACKEND = "nccl"

_PEAK_FLOPS = (  # by what the driver calls it; the first that fits
    (r"\bA[18]00\b", 312e12),
    (r"\bH100 PCIe", 756e12),
    (r"\bH[12]00 NVL", 835e12),
    (r"\b(G?H[12]00|H800)\b", 989e12),
    (r"\bG?B200\b", 2250e12),
    (r"\bL40S\b", 362e12),
)


def gpu_generation(device: torch.device) -> tuple[int, int]:
    """What its maker calls compute capability: Ampere (8, 0), Hopper (9, 0); (0, 0) for a CPU."""
    import torch

    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def has_triton(device: torch.device) -> bool:
    """Whether kernels can be compiled for it by Triton, which comes with torch for NVIDIA's GPUs."""
    return gpu_generation(device) >= (8, 0) and importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Device:
    """The CPU, or one GPU of this node."""

    kind: Literal["cpu", "gpu"]
    index: int = 0

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu") if self.kind == "cpu" else torch.device("cuda", self.index)

    @property
    def backend(self) -> str:
        """What `torch.distributed.init_process_group` wants to hear."""
        return CPU_BACKEND if self.kind == "cpu" else f"cpu:{CPU_BACKEND},cuda:{GPU_BACKEND}"

    @property
    def bf16_ok(self) -> bool:
        """Whether bf16 is computed as such. A CPU does it, slowly; a GPU older than Ampere only imitates it."""
        import torch

        return self.kind == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)

    def synchronize(self) -> None:
        """Wait for the work queued on the device, so that a clock read next means something."""
        if self.kind == "gpu":
            import torch

            torch.cuda.synchronize(self.index)

    @property
    def name(self) -> str:
        """As its maker calls it."""
        if self.kind == "cpu":
            return "cpu"
        import torch

        return torch.cuda.get_device_name(self.index)

    def mark(self) -> Any:
        """Now, for `seconds_between`: on a GPU the moment at which it has done all that is queued so far."""
        if self.kind == "cpu":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, first: Any, last: Any) -> float:
        """Of two marks of this device; waits for the last one."""
        if self.kind == "cpu":
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000

    @property
    def memory(self) -> dict[str, int]:
        """Most bytes so far: of the process on a CPU; on a GPU of tensors, and of what the allocator holds for them."""
        if self.kind == "cpu":
            return {"process": self.max_memory_bytes()}
        import torch

        return {"allocated": self.max_memory_bytes(), "reserved": torch.cuda.max_memory_reserved(self.index)}

    def max_memory_bytes(self) -> int:
        """Most bytes ever in use: tensors on the GPU since `reset_memory_stats`, or the whole process on a CPU."""
        if self.kind == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
        import torch

        return torch.cuda.max_memory_allocated(self.index)

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 or fp16 products a second, as the maker says; None where this table does not know the device."""
        return peak_flops_of(self.name)

    def reset_memory_stats(self) -> None:
        """Count GPU memory from here. The peak of a CPU process is kept by the kernel and cannot be reset."""
        if self.kind == "gpu":
            import torch

            torch.cuda.reset_peak_memory_stats(self.index)


def peak_flops_of(name: str) -> float | None:
    """Of a device as its driver calls it; see Device.peak_flops."""
    return next((peak for words, peak in _PEAK_FLOPS if re.search(words, name)), None)


def find_device(wanted: Literal["auto", "cpu", "gpu"] = "auto", local_rank: int = 0) -> Device:
    """This rank's device, made torch's current one. "auto" is a GPU where the node has any."""
    if wanted not in ("auto", "cpu", "gpu"):
        raise ConfigError("device", wanted, "no such kind of device", 'use "auto", "cpu" or "gpu"')
    if wanted == "cpu":
        return Device("cpu")
    found = num_devices()
    if found == 0:
        if wanted == "gpu":
            wrong = "torch finds no GPU in this process"
            raise ConfigError("device", wanted, wrong, 'use "cpu" or "auto", or ask the scheduler for GPUs')
        return Device("cpu")
    # Slurm can show each task its own GPU only: one visible device is this rank's, whatever its local rank.
    index = 0 if found == 1 else local_rank
    if index >= found:
        raise LayoutError(f"local rank {local_rank} has no GPU: the node shows {found}; start at most {found} per node")
    import torch

    torch.cuda.set_device(index)
    return Device("gpu", index)


def num_devices() -> int:
    """GPUs this process may use. Asking does not start a GPU context, so the process can still fork."""
    import torch

    return torch.cuda.device_count()


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch; torch passes the seed on to every GPU."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def deterministic(on: bool = True) -> None:
    """Same numbers from the same run on the same machine, at some cost in speed. Call before the first GPU work."""
    import torch

    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


def set_threads(num_threads: int) -> None:
    """CPU threads of this process. A forked child must call it with 1 before any torch work, or it may hang."""
    import torch

    torch.set_num_threads(num_threads)

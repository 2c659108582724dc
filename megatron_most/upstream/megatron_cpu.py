"""Everything Megatron-Core needs to run on a machine without a GPU: the one list, installed once a process.

Core speaks CUDA in a few places where plain torch words would do. Each stand-in below says who needs it; two of them
are SILENT when missing: without `cuda.manual_seed` experts of different expert-parallel ranks start identical,
without `random._set_cuda_rng_state` a replicated router starts different on each rank. Nothing here is used when a
GPU is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from megatron_most.upstream import late_compile

_installed = False


class _Stream:
    """A stream that has always finished."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *_: Any) -> _Stream:
        return self


class _TorchOnCpu(ModuleType):
    """torch, as one of Core's modules sees it: what is made for the GPU is made here, and nothing is pinned. A mode
    that turns every call of torch would be less to write, and makes each of them take twice as long.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _made_here(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return make(*args, device=None if str(device).startswith("cuda") else device, **kwargs)

    return made


def _stand_ins() -> list[tuple[Any, str, Any]]:
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random as core_random

    stream, torch_here = _Stream(), _TorchOnCpu("torch")
    torch_here.zeros, torch_here.tensor = _made_here(torch.zeros), _made_here(torch.tensor)  # type: ignore[attr-defined]
    return [
        (schedules, "torch", torch_here),  # counts a batch's tokens in a tensor on the GPU
        (rope_utils, "torch", torch_here),  # context ranks' positions come in pinned memory,
        (torch.Tensor, "cuda", lambda tensor, *_, **__: tensor),  # from which they go to the GPU
        (torch.cuda, "current_device", lambda: "cpu"),  # device= of every parameter and buffer
        (torch.cuda, "current_stream", lambda *_: stream),  # dispatchers synchronise with it
        (torch.cuda, "Stream", _Stream),  # MoEAlltoAllTokenDispatcher.__init__
        (torch.cuda, "synchronize", lambda *_: None),  # P2PCommunicator after a batched exchange
        (torch.cuda, "manual_seed", torch.manual_seed),  # CudaRNGStatesTracker.add; else queued for ever
        (torch.cuda, "get_rng_state", torch.get_rng_state),  # CudaRNGStatesTracker.add
        (core_random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),  # fork, recompute
        (core_random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),  # fork, recompute
    ]


def label(where: Any, name: str) -> str:
    """Of a stand-in: its name, or that of the module of Core's that sees another torch."""
    return str(where.__name__.rpartition(".")[2]) if name == "torch" else name


def install(leave_out: str = "") -> None:
    """Make Core run on this CPU. Call before building anything of Core's; a second call does nothing.

    `leave_out` is for the test that shows what each stand-in is there for.
    """
    global _installed
    if _installed:
        return
    for where, name, value in _stand_ins():
        if label(where, name) != leave_out:
            setattr(where, name, value)
    # Core warns when drawing for the "GPU" moves the CPU's generator. Here they are one.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG" not in record.getMessage()
    )
    late_compile.stay_eager()
    _installed = True

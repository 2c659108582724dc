"""Everything Megatron-Core needs to run on a machine without a GPU: the one list, installed once a process.

Core speaks CUDA in a few places where plain torch words would do. Each stand-in below says who needs it; two of them
are SILENT when missing: without `cuda.manual_seed` experts of different expert-parallel ranks start identical,
without `random._set_cuda_rng_state` a replicated router starts different on each rank. Nothing here is used when a
GPU is.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_installed = False


class _Stream:
    """A stream that has always finished."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *_: Any) -> _Stream:
        return self


class _CudaMeansCpu(TorchFunctionMode):
    """device="cuda" in Core's schedules and embeddings, .cuda() and pin_memory in its context-parallel rotary
    positions.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs and ("device" in kwargs or "pin_memory" in kwargs):
            kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _stand_ins() -> list[tuple[Any, str, Any]]:
    from megatron.core.tensor_parallel import random as core_random
    from megatron.core.transformer import multi_latent_attention as core_mla

    stream = _Stream()
    return [
        (torch.cuda, "current_device", lambda: "cpu"),  # device= of every parameter and buffer
        (torch.cuda, "current_stream", lambda *_: stream),  # dispatchers synchronise with it
        (torch.cuda, "Stream", _Stream),  # MoEAlltoAllTokenDispatcher.__init__
        (torch.cuda, "synchronize", lambda *_: None),  # P2PCommunicator after a batched exchange
        (torch.cuda, "manual_seed", torch.manual_seed),  # CudaRNGStatesTracker.add; else queued for ever
        (torch.cuda, "get_rng_state", torch.get_rng_state),  # CudaRNGStatesTracker.add
        (core_random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),  # fork, recompute
        (core_random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),  # fork, recompute
        (core_mla, "HAVE_TE", False),  # True in 0.16 without it, which then asks isinstance(x, TELinear) of a mock
    ]


def install(leave_out: str = "") -> None:
    """Make Core run on this CPU. Call before building anything of Core's; a second call does nothing.

    `leave_out` is for the test that shows what each stand-in is there for.
    """
    global _installed
    if _installed:
        return
    for where, name, value in _stand_ins():
        if name != leave_out:
            setattr(where, name, value)
    if leave_out != "function mode":
        _CudaMeansCpu().__enter__()  # for the life of the process
    # Core warns when drawing for the "GPU" moves the CPU's generator. Here they are one.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG" not in record.getMessage()
    )
    torch.compiler.set_stance("force_eager")  # Core's jit_fuser would compile for half a minute: time, not numbers
    _installed = True

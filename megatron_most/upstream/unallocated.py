"""Modules without memory for their weights: for who knows their shapes and brings the numbers later, one at a time.

Core names a device for every weight it makes, so `torch.device("meta")` around it changes nothing; all of its weights
come from torch.empty, and tables that must have numbers (rotary frequencies) do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Unallocated(TorchFunctionMode):
    """Inside it torch.empty gives tensors of a shape and a type, and no numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)

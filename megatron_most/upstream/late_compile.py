"""What Core hands to torch.compile when it is imported is compiled when it is first called, and on a CPU never.

torch loads its whole compiler when it decorates a function. Core decorates 38, which costs every start of every process
several seconds, also of those that never call one.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

JIT = "megatron.core.jit"
"""Core's module with the decorator that its others take."""
ROUTER = "megatron.core.transformer.moe.router"
"""Since 0.19 this one takes torch's own, for a class that we do not use."""
_is_eager = False


def stay_eager() -> None:
    """What has not been called yet is never compiled: on a CPU that takes half a minute and gains nothing."""
    global _is_eager
    _is_eager = True


def compile_late(function: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.compile, at the first call."""
    compiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        import torch

        nonlocal compiled
        if torch.compiler.is_compiling():  # a part of something that is being compiled
            return function(*args, **kwargs)
        if compiled is None:
            compiled = function if _is_eager else torch.compile(function)
        return compiled(*args, **kwargs)

    return call


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Core's modules as Python would, and puts our decorator where torch's is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in (JIT, ROUTER):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            import torch

            kept = torch.compile
            try:
                if fullname == ROUTER:
                    torch.compile = compile_late  # type: ignore[assignment]
                run(module)
            finally:
                torch.compile = kept
            if getattr(module, "jit_fuser", None) is torch.compile:
                module.jit_fuser = compile_late  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Before Core is imported. A second call does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

"""Reading layer specs across versions: 0.16 makes ModuleSpecs, 0.19 makes partials of the module with the same
submodules.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


def submodules_of(spec: Any) -> Any:
    """The submodules a spec will be built with; editing them edits the spec."""
    return spec.keywords.get("submodules") if isinstance(spec, functools.partial) else getattr(spec, "submodules", None)


def with_module(spec: Any, module: type) -> Any:
    """The same spec of another module."""
    if isinstance(spec, functools.partial):
        return functools.partial(module, *spec.args, **spec.keywords)
    return dataclasses.replace(spec, module=module)

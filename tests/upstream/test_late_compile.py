"""What Core would have compiled at its import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from megatron_most.upstream import late_compile

COMPILERS = ("torch._dynamo", "torch._inductor", "torch._inductor.compile_fx")


def loaded(program: str) -> list[str]:
    tell = f"import json, sys; print(json.dumps([name for name in {COMPILERS!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{tell}"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("first", ["", "import torch\n", "import megatron_most.config\n"])
def test_core_and_what_runs_it_on_a_cpu_load_no_compiler(first: str) -> None:
    program = "import megatron_most.model\nfrom megatron_most.upstream import prepare\nprepare('cpu')"
    assert loaded(first + program) == []


def test_core_alone_loads_them_all() -> None:
    """Else all of this could go."""
    assert loaded("import megatron.core") == [*COMPILERS]


def test_cores_own_functions_have_our_decorator() -> None:
    from megatron.core import jit
    from megatron.core.fusions import fused_bias_swiglu

    import megatron_most.model  # noqa: F401

    assert jit.jit_fuser is late_compile.compile_late
    assert fused_bias_swiglu.swiglu.__wrapped__.__name__ == "swiglu"


def test_a_function_is_compiled_once_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile(function):
        compiled.append(function)
        return lambda *args, **kwargs: (function(*args, **kwargs), "compiled")

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(late_compile, "_is_eager", False)

    def add(left, right):
        """Both."""
        return left + right

    late = late_compile.compile_late(add)
    assert not compiled and (late.__name__, late.__doc__) == ("add", "Both.")
    assert late(1, right=2) == late(1, 2) == (3, "compiled") and compiled == [add]
    monkeypatch.setattr(late_compile, "_is_eager", True)
    assert late_compile.compile_late(add)(1, 2) == 3 and compiled == [add]


def test_within_something_that_is_being_compiled_it_is_a_part_of_that() -> None:
    """One graph, with no break where a late function is called, whether it has been called before or not."""
    program = """
import torch
from megatron_most.upstream.late_compile import compile_late
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
@compile_late
def double(x): return 2 * x
whole = torch.compile(lambda x: double(x) + 1, backend=backend, fullgraph=True)
print(whole(torch.ones(2)).tolist(), len(graphs))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[3.0, 3.0] 1"

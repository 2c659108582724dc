"""Every kernel is compiled for the GPUs that it is for, which takes none; the interpreter lets much pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

POINTERS = {"b": "*bf16", "f": "*fp32", "l": "*i64", "u": "*u8", "8": "*fp8e4nv"}
KERNELS: dict[str, tuple[str, dict[str, str], list[dict[str, Any]]]] = {  # name -> module, arguments, constants
    "_add_up": (
        "rows",
        dict(rows="b", order="l", starts="l", out="b", num_rows="i32", width="i32"),
        [dict(COLUMNS=1024), dict(COLUMNS=64, num_rows=1)],
    ),
    "_forward": (
        "activation", dict(inner="b", probs="f", out="b", width="i32"), [dict(COLUMNS=2048), dict(COLUMNS=32, width=1)],
    ),
    "_backward": (
        "activation",
        dict(inner="b", probs="f", slope="b", of_inner="b", of_probs="f", width="i32"),
        [dict(COLUMNS=2048)],
    ),
    "_take": (
        "head",
        dict(logits="b", labels="l", lse="f", labelled="f", first="i32", width="i32", stride="i32"),
        [dict(COLUMNS=2048), dict(COLUMNS=2048, first=1)],
    ),
    "_slope": (
        "head",
        dict(logits="b", labels="l", lse="f", slope="f", first="i32", width="i32", stride="i32"),
        [dict(COLUMNS=2048)],
    ),
    "route._forward": (
        "route",
        dict(
            logits="f", tags="l", is_pad="u", owns="u", slot_of="l", constant="f", bias="f", weights="f",
            chosen_map="u", count="f", scores="f", num_tokens="i32", num_experts="i32", scale="fp32",
        ),
        [
            dict(TOP_K=6, IS_NORMALISED=False, HAS_CONSTANT=True, HAS_BIAS=True, TOKENS=16, EXPERTS=64),
            dict(TOP_K=2, IS_NORMALISED=True, HAS_CONSTANT=False, HAS_BIAS=False, TOKENS=16, EXPERTS=8, constant=None,
                 bias=None, num_tokens=1),
        ],
    ),
    "route._backward": (
        "route",
        dict(
            scores="f", chosen_map="u", tags="l", slot_of="l", constant="f", of_weights="f", of_scores="f",
            of_logits="f", num_tokens="i32", num_experts="i32", scale="fp32",
        ),
        [
            dict(IS_NORMALISED=True, HAS_CONSTANT=True, HAS_WEIGHTS=True, HAS_SCORES=True, TOKENS=16, EXPERTS=64),
            dict(IS_NORMALISED=False, HAS_CONSTANT=False, HAS_WEIGHTS=False, HAS_SCORES=True, TOKENS=16, EXPERTS=256,
                 constant=None, of_weights=None),
        ],
    ),
    "_to_fp8": (
        "eight_bits",
        dict(rows="b", values="8", scales="f", row_stride="i32", stride="i32", width="i32"),
        [dict(LARGEST=448.0, COLUMNS=2048, stride=1)],
    ),
}  # fmt: skip

PROGRAM = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

generation, kernels = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name, (module, signature, variants) in kernels.items():
    kernel = getattr(importlib.import_module("megatron_most.kernels." + module), name.rpartition(".")[2])
    for constants in variants:
        named = {**signature, **dict.fromkeys(constants, "constexpr")}
        assert set(named) == set(kernel.arg_names), (name, set(named) ^ set(kernel.arg_names))
        source = ASTSource(kernel, {n: named[n] for n in kernel.arg_names}, constants)
        made = triton.compile(source, target=GPUTarget("cuda", generation, 32))
        print(name, len(made.asm["cubin"]))
"""


@pytest.mark.parametrize("generation", [80, 90])
def test_every_kernel_compiles(generation: int, tmp_path: Path) -> None:
    kernels = {
        name: (module, {arg: POINTERS.get(kind, kind) for arg, kind in signature.items()}, variants)
        for name, (module, signature, variants) in KERNELS.items()
        if generation >= 90 or name != "_to_fp8"  # which Hopper alone is asked for
    }
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(generation), json.dumps(kernels)],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    sizes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(sizes) == sum(len(variants) for _, _, variants in kernels.values()) and min(sizes) > 500


def test_none_is_left_out() -> None:
    folder = Path(__file__).resolve().parents[2] / "megatron_most" / "kernels"
    made = {
        (file.stem, line.split("(")[0].removeprefix("def "))
        for file in folder.glob("*.py")
        for before, line in zip(["", *file.read_text().splitlines()], file.read_text().splitlines(), strict=False)
        if before.startswith("@triton.jit")
    }
    told = {(module, name.rpartition(".")[2]) for name, (module, _, _) in KERNELS.items()}
    assert made == told | {("eight_bits", "_rounded")}  # a part of another

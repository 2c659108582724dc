"""In bf16 too ZeRO does what the plain engine does: its classes and buffers are others there than in float32.

What is wrong in ZeRO's handling of experts or tensor ranks shows as 2 to 9 percent of the norm. Rounding moves the
first one by up to 0.34 percent: by that with oneDNN's AMX kernels and without oneDNN, by less with its AVX512 ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_zero import LAYOUTS, train
from tests.harness import run_ranks

BF16 = {"engine.precision": "bf16"}
CASES = [
    *((layout, {"engine.zero_stage": 1}) for layout in ("TP1xEP1xCP1", "TP2xEP1xCP1", "TP2xEP2xCP2", "PP2")),
    *((layout, {"engine.zero_stage": 2}) for layout in ("TP1xEP2xCP1", "TP2xEP2xCP1")),
    ("TP1xEP2xCP1", {"engine.zero_stage": 2, "engine.offload_optimizer": True}),
    ("TP1xEP2xCP1", {"engine.zero_stage": 3}),
    *((layout, {"engine.zero_stage": 0}) for layout in ("DP2", "TP2xEP1xCP1")),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    file = tmp_path_factory.mktemp("alone") / "weights.pt"
    return run_ranks(train, 1, BF16, file)[0], file


@pytest.mark.parametrize(("layout", "changes"), CASES, ids=[f"{n}-{'-'.join(map(str, c.values()))}" for n, c in CASES])
def test_losses_and_norms_are_those_of_the_plain_engine(layout: str, changes: dict[str, Any], alone: Any) -> None:
    world_size, sizes = LAYOUTS[layout]
    plain, file = alone
    assert min(plain["norms"]) > 0.5  # clipping is active all the time
    for rank in run_ranks(train, world_size, {"engine.kind": "deepspeed", **BF16, **sizes, **changes}, file):
        assert rank["losses"] == pytest.approx(plain["losses"], rel=5e-3)
        assert rank["norms"][0] == pytest.approx(plain["norms"][0], rel=6e-3)  # of the same weights; see above
        assert rank["norms"] == pytest.approx(plain["norms"], rel=4e-2)  # Adam magnifies rounding

"""Tags as boolean planes: nothing is lost on their way through Core, and a router without them says so."""

# B batch, S sequence, P planes

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.errors import DataError
from megatron_most.moe import NUM_PLANES, ModalityRouter, from_planes, to_planes
from megatron_most.moe.groups import GroupTables
from megatron_most.runtime import Ranks
from megatron_most.vocab import TAG_NAMES
from tests.harness import run_ranks
from tests.moe.tiny import AUDIO, HALVES, TEXT, VANILLA, WAVE, draw_case, moe_plan, open_layer, planes_of


@st.composite
def tagged(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    size = shape[0] * shape[1]
    tags = draw(st.lists(st.integers(0, len(TAG_NAMES) - 1), min_size=size, max_size=size))
    pads = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(tags).view(shape), torch.tensor(pads).view(shape)


@settings(deadline=None)
@given(tagged())
def test_every_tag_and_pad_comes_back_from_the_way_through_core(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    tags_BS, is_pad_BS = pair
    planes_BSP = to_planes(tags_BS, is_pad_BS)
    assert planes_BSP.dtype == torch.bool and planes_BSP.shape == (*tags_BS.shape, NUM_PLANES)
    for planes, turn in (
        (planes_BSP, lambda x: x),
        (planes_BSP.transpose(0, 1).bool(), lambda x: x.T),
    ):  # as MoELayer.forward
        tags, is_pad = from_planes(planes)
        assert torch.equal(tags, turn(tags_BS)) and torch.equal(is_pad, turn(is_pad_BS))


def test_every_tag_differs_from_every_other_whether_pad_or_not() -> None:
    tags_BS = torch.arange(len(TAG_NAMES)).repeat(2, 1)
    planes_BSP = to_planes(tags_BS, torch.tensor([[False], [True]]).expand_as(tags_BS))
    assert len({tuple(planes) for planes in planes_BSP.flatten(0, 1).tolist()}) == 2 * len(TAG_NAMES)


def refusals(ranks: Ranks) -> dict[str, str]:
    """What the layer says to each wrong padding mask, and the shape it gives for the right one."""
    case, said = draw_case(1), {}
    wrong = {
        "nothing": None,
        "integer tags": case.tags_BS,
        "a pad mask": case.is_pad_BS,
        "too few planes": planes_of(case)[..., :-1],
    }
    with open_layer(ranks, {}) as (_, _, layer):
        for name, mask in wrong.items():
            with pytest.raises(DataError) as caught:
                layer(case.x_SBD, padding_mask=mask)
            said[name] = str(caught.value)
        said["planes"] = str(tuple(layer(case.x_SBD, padding_mask=planes_of(case))[0].shape))
    return said


def test_a_router_without_tag_planes_refuses_and_names_its_layer() -> None:
    (said,) = run_ranks(refusals, 1)
    assert said.pop("planes") == "(10, 3, 64)"
    assert all(text.startswith("layer 2: ") and "tag planes" in text for text in said.values()), said
    assert "None" in said["nothing"] and "(10, 3)" in said["integer tags"] and "(10, 3, 2)" in said["too few planes"]


def test_what_was_read_is_kept_with_the_planes_and_never_given_for_others() -> None:
    plan = moe_plan(HALVES)
    router: Any = SimpleNamespace(plan=plan, tables=GroupTables(plan))
    tags_BS = torch.tensor([[TEXT, AUDIO, WAVE], [AUDIO, AUDIO, TEXT]])

    def read(planes_SBP: torch.Tensor) -> list[int]:
        return ModalityRouter._read(router, planes_SBP).tags_T.tolist()

    planes_BSP = to_planes(tags_BS, tags_BS < 0)
    turned = read(planes_BSP.transpose(0, 1))
    assert turned == tags_BS.t().flatten().tolist()
    again = [ModalityRouter._read(router, planes_BSP.transpose(0, 1)) for _ in range(2)]
    assert again[0] is again[1]
    assert read(planes_BSP) == tags_BS.flatten().tolist()  # turned another way
    square_BSP = planes_BSP[:, :2]
    for part in (planes_BSP[:1], planes_BSP[1:], planes_BSP[:, 1:], square_BSP, square_BSP.transpose(0, 1)):
        assert read(part) == from_planes(part)[0].flatten().tolist()
    planes_BSP[0, 0, 1] = True  # audio now
    assert read(planes_BSP.transpose(0, 1))[0] == AUDIO
    other: Any = SimpleNamespace(plan=moe_plan(VANILLA), tables=GroupTables(moe_plan(VANILLA)))
    owned_TE = ModalityRouter._read(other, planes_BSP.transpose(0, 1)).owned_TE
    assert owned_TE.all() and read(planes_BSP.transpose(0, 1))[0] == AUDIO

"""Tags as boolean planes: nothing is lost on their way through Core, and a router without them says so."""

# B batch, S sequence, P planes

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.errors import DataError
from megatron_most.moe import NUM_PLANES, from_planes, to_planes
from megatron_most.runtime import Ranks
from megatron_most.vocab import TAG_NAMES
from tests.harness import run_ranks
from tests.moe.tiny import draw_case, open_layer, planes_of


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

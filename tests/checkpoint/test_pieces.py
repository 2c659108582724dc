"""Who holds what, who writes what, and boxes put together again: no number is lost, doubled or moved."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.checkpoint import (
    LocalTensors,
    Piece,
    Record,
    TensorReader,
    divide_work,
    find_pieces,
    read_record,
    verify_files,
)
from megatron_most.checkpoint.pieces import boxed, lay_out, require_cover
from megatron_most.checkpoint.record import StoredPiece, StoredTensor
from megatron_most.checkpoint.tensor_file import DTYPES, write_tensors
from megatron_most.config import load_recipe, replace
from megatron_most.engine import make_plan, open_groups
from megatron_most.errors import CheckpointError
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from tests.checkpoint.small import piece
from tests.harness import run_ranks
from tests.weights import named_weights, part_of, tied_name

Box = tuple[int, ...]
MANY = settings(max_examples=100, deadline=None)


@st.composite
def partitions(draw: st.DrawFn, whole: Box) -> list[tuple[Box, Box]]:
    """A shape cut into (start, shape) boxes: a box is cut along one axis at a time, so not only into grids."""
    boxes = [((0,) * len(whole), whole)]
    for _ in range(draw(st.integers(0, 6))):
        start, shape = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(whole) - 1)) if whole else 0
        at = draw(st.integers(1, shape[axis] - 1)) if whole and shape[axis] > 1 else 0
        if not at:
            boxes.append((start, shape))
            continue
        for begin, length in ((0, at), (at, shape[axis] - at)):
            moved = (*start[:axis], start[axis] + begin, *start[axis + 1 :])
            boxes.append((moved, (*shape[:axis], length, *shape[axis + 1 :])))
    return boxes


SHAPES = st.lists(st.integers(1, 7), max_size=3).map(tuple)


@st.composite
def holdings(draw: st.DrawFn) -> list[list[tuple[str, Box, Box, Box]]]:
    """For each rank what it holds, every box on some rank."""
    held: list[list[tuple[str, Box, Box, Box]]] = [[] for _ in range(draw(st.integers(1, 6)))]
    for number in range(draw(st.integers(1, 5))):
        whole = draw(SHAPES)
        for start, shape in draw(partitions(whole)):
            for rank in draw(st.sets(st.integers(0, len(held) - 1), min_size=1)):
                held[rank].append((f"t{number}", start, shape, whole))
    return held


@MANY
@given(holdings())
def test_every_place_is_written_once_by_a_rank_that_holds_it(held: list[list[tuple[str, Box, Box, Box]]]) -> None:
    work = divide_work(held)
    for rank, places in enumerate(work):
        assert places <= {(name, start, shape) for name, start, shape, _ in held[rank]}
    for name, whole in {(name, whole) for places in held for name, _, _, whole in places}:
        written = torch.zeros(whole, dtype=torch.int64)
        for _, start, shape in (place for places in work for place in places if place[0] == name):
            written[boxed(start, shape)] += 1
        assert torch.equal(written, torch.ones_like(written))


@MANY
@given(st.integers(1, 6), st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_what_all_ranks_hold_is_shared_out_evenly(ranks: int, sizes: list[int]) -> None:
    held = [[(f"t{i}", (0,), (size,), (size,)) for i, size in enumerate(sizes)]] * ranks
    loads = [sum(prod(shape) for _, _, shape in places) for places in divide_work(held)]
    assert max(loads) - min(loads) <= max(sizes)


@MANY
@given(holdings(), st.data())
def test_a_box_that_nobody_holds_is_an_error_that_names_its_tensor(held: list[list[Any]], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(sorted({place for places in held for place in places})))
    left = [[place for place in places if place != lost] for places in held]
    if any(name == lost[0] for places in left for name, *_ in places):
        with pytest.raises(CheckpointError, match=rf"^{lost[0]}: the \d+ pieces of it"):
            divide_work(left)


@pytest.mark.parametrize(
    "boxes",
    [
        [((0,), (2,)), ((1,), (2,))],  # as many numbers as there should be
        [((0,), (2,)), ((2,), (3,))],
        [((0,), (4,)), ((0,), (4,))],
        [((0,), (5,)), ((5,), (-1,))],
        [((0, 0), (4, 1))],
        [],
    ],
    ids=["overlap and gap", "too far", "twice", "negative", "another rank", "nothing"],
)
def test_boxes_that_do_not_fill_the_whole_once_are_refused(boxes: list[tuple[Box, Box]]) -> None:
    with pytest.raises(CheckpointError, match="^a: "):
        require_cover("a", (4,), boxes)
    require_cover("a", (4,), [((0,), (2,)), ((2,), (2,))])
    require_cover("a", (), [((), ())])


def test_ranks_that_disagree_on_a_shape_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^a: shape \(5,\) on rank 1, \(4,\) elsewhere"):
        divide_work([[("a", (0,), (4,), (4,))], [("a", (0,), (5,), (5,))]])


def filled(shape: Box, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes, NaNs among them where there are such: what comes back must be equal to the bit."""
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=draw).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (prod(shape) * size,), generator=draw).to(torch.uint8).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def store(folder: Path, whole: torch.Tensor, boxes: list[tuple[Box, Box]], num_files: int = 1) -> Record:
    """A tensor "t" in boxes that lie in turns in several files, each with another tensor before it."""
    dtype = str(whole.dtype).removeprefix("torch.")
    pieces, files = [], {}
    for number in range(min(num_files, len(boxes))):
        mine = dict(list(enumerate(boxes))[number::num_files])
        inside = {f"k{i}": whole[boxed(*box)] for i, box in mine.items()}
        files[f"{number}.safetensors"] = write_tensors(
            folder / f"{number}.safetensors", {"odd": torch.ones(3).bool(), **inside}
        )
        pieces += [StoredPiece(f"{number}.safetensors", f"k{i}", *box) for i, box in mine.items()]
    tensors = {"weight": {"t": StoredTensor(tuple(whole.shape), dtype, tuple(pieces))}}
    return Record(step=1, attempt=0, tensors=tensors, files=files)


def wanted(whole: Box, start: Box, shape: Box) -> Piece:
    return dataclasses.replace(piece("t", whole, start), shape=shape)


@MANY
@given(st.lists(st.integers(0, 6), max_size=3).map(tuple), st.sampled_from(sorted(DTYPES)), st.data())
def test_a_tensor_in_any_boxes_is_read_back_bit_by_bit_in_any_others(
    tmp_path_factory: pytest.TempPathFactory, shape: Box, dtype: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    whole = filled(shape, DTYPES[dtype], data.draw(st.integers(0, 99)))
    record = store(folder, whole, data.draw(partitions(shape)), data.draw(st.integers(1, 3)))
    record.save(folder)
    record = read_record(folder)
    verify_files(folder, record)
    reader = TensorReader(folder, record)
    for start, box in data.draw(partitions(shape)):
        read = reader.read("weight", wanted(shape, start, box))
        assert read.dtype == whole.dtype and read.shape == box and bits(read) == bits(whole[boxed(start, box)])


@pytest.mark.parametrize(
    "box", [((1, 0), (2, 3)), ((0, 2), (4, 0)), ((3, 2), (1, 1))], ids=["rows", "no columns", "corner"]
)
def test_a_box_that_cuts_across_the_stored_ones_is_read(tmp_path: Path, box: tuple[Box, Box]) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    record = store(tmp_path, whole, [((0, 0), (4, 2)), ((0, 2), (2, 1)), ((2, 2), (2, 1))], 2)
    assert torch.equal(TensorReader(tmp_path, record).read("weight", wanted((4, 3), *box)), whole[boxed(*box)])


def change(record: Record, **changes: Any) -> Record:
    """With another first piece of "t"; `whole` and `dtype` change the tensor."""
    stored = record.tensors["weight"]["t"]
    first = dataclasses.replace(
        stored.pieces[0], **{name: v for name, v in changes.items() if name not in ("whole", "dtype")}
    )
    made = StoredTensor(
        changes.get("whole", stored.shape), changes.get("dtype", stored.dtype), (first, *stored.pieces[1:])
    )
    files = {**record.files, first.file: (0, "")} if changes.get("file") != "unlisted.safetensors" else record.files
    return dataclasses.replace(record, tensors={"weight": {"t": made}}, files=files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"whole": (5,)}, r"t has shape \[5\], the model wants \[4\]"),
        ({"start": (1,)}, "t: the 2 pieces of it, with 4 numbers, do not fill its shape"),
        ({"start": (9,)}, "t: the 1 pieces of it, with 2 numbers, do not fill its shape"),
        ({"dtype": "float64"}, "is of torch.float32, not float64"),
        ({"shape": (1,)}, r"k0 has shape \[2\], not \[1\]"),
        ({"key": "k7"}, "k7 is not in it"),
        ({"file": "../out.safetensors"}, "outside of it"),
        ({"file": "/out.safetensors"}, "outside of it"),
        ({"file": "link.safetensors"}, "outside of it"),
        ({"file": "none.safetensors"}, "cannot be read"),
        ({"file": "."}, "cannot be read"),
        ({"file": "unlisted.safetensors"}, "not among the files of the manifest"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_record_that_does_not_fit_its_files_is_an_error(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    good = store(folder, torch.arange(4.0), [((0,), (2,)), ((2,), (2,))])
    for outside in (tmp_path / "out.safetensors", folder / "unlisted.safetensors"):
        outside.write_bytes((folder / "0.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to("../out.safetensors")
    assert torch.equal(TensorReader(folder, good).read("weight", piece("t", (4,))), torch.arange(4.0))
    with pytest.raises(CheckpointError, match=message):
        TensorReader(folder, change(good, **changes)).read("weight", piece("t", (4,)))


@pytest.mark.parametrize("changes", [{"start": (1,)}, {"shape": (1,)}, {"shape": ("2",)}, {"dtype": "complex64"}])
def test_a_record_with_gaps_or_nonsense_is_not_even_opened(tmp_path: Path, changes: dict[str, Any]) -> None:
    good = store(tmp_path, torch.arange(4.0), [((0,), (2,)), ((2,), (2,))])
    change(good, **changes).save(tmp_path)
    with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
        read_record(tmp_path)


def test_a_file_out_of_the_folder_proves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    record = store(folder, torch.arange(4.0), [((0,), (4,))])
    (folder / "0.safetensors").rename(tmp_path / "out.safetensors")
    (folder / "0.safetensors").symlink_to("../out.safetensors")
    for name in ("0.safetensors", "../out.safetensors"):
        with pytest.raises(CheckpointError, match="outside of it"):
            verify_files(folder, dataclasses.replace(record, files={name: record.files["0.safetensors"]}))


def test_what_is_not_stored_is_an_error_for_weights_and_nothing_for_moments(tmp_path: Path) -> None:
    reader = TensorReader(tmp_path, store(tmp_path, torch.arange(4.0), [((0,), (4,))]))
    tensors = LocalTensors(reader, {"t": [piece("t", (4,))], "u": [piece("u", (4,))]})
    assert tensors.read("exp_avg", "t", (4,)) is None  # frozen while it was saved
    with pytest.raises(CheckpointError, match="no weight of u; it is the checkpoint of another model"):
        tensors.read("weight", "u", (4,))
    for shape in ((2,), (8,), (2, 2)):
        with pytest.raises(CheckpointError, match="^t: "):
            tensors.read("weight", "t", shape)


def test_our_tensor_files_are_the_librarys(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = {
        f"{name} {shape}": filled(shape, dtype, 3)
        for (name, dtype), shape in itertools.product(sorted(DTYPES.items()), [(), (3,), (0, 2), (5, 3, 2)])
    }
    given["turned"] = torch.arange(6.0).reshape(2, 3).T
    size, digest = write_tensors(tmp_path / "a.safetensors", given)
    read = load_file(tmp_path / "a.safetensors")
    assert set(read) == set(given)
    for key, tensor in given.items():
        assert read[key].dtype == tensor.dtype and read[key].shape == tensor.shape and bits(read[key]) == bits(tensor)
    data = (tmp_path / "a.safetensors").read_bytes()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    with pytest.raises(CheckpointError, match="z is of torch.complex64"):
        write_tensors(tmp_path / "b.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)})


# A real model. W stands for a whole tensor: a function of its published name, so that any misplaced number shows.

LOADS = str(Path(__file__).parents[1] / "loads" / "four_layers.json")
LAYOUTS = {
    "TP2xEP2": (4, "most-tiny", {"layout.tensor": 2, "layout.expert": 2, "moe.placement": "striped"}),
    "PP2": (2, "most-tiny", {"layout.pipeline": 2}),
    "EP2": (2, "most-tiny", {"layout.expert": 2, "moe.placement": "striped"}),
    "PP2xEP2 dealt": (4, "most-tiny", {"layout.pipeline": 2, "layout.expert": 2, "moe.load_file": LOADS}),
    "PP2 tied": (2, "most-tiny", {"layout.pipeline": 2, "model.tied_embeddings": True}),
    "dense TP2xPP2 tied": (4, "most-tiny-dense", {"layout.tensor": 2, "layout.pipeline": 2}),
    "upcycled TP2xEP2 tied": (2, "most-tiny-upcycled", {"layout.tensor": 2, "layout.expert": 2}),
}


def shapes_of(ranks: Ranks, recipe: str, changes: dict[str, Any]) -> dict[str, Box]:
    plan = make_plan(replace(load_recipe(recipe), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        assert find_pieces(model, plan.moe)
        return {name: tuple(weight.shape) for name, weight in named_weights(model, plan, session.groups)}


def numbers(names: dict[str, Box], name: str) -> torch.Tensor:
    """W of a name: no number twice, in all of them."""
    first = sum(prod(names[before]) for before in sorted(names) if before < name)
    return torch.arange(first, first + prod(names[name]), dtype=torch.float32).reshape(names[name])


def held_by(
    ranks: Ranks, recipe: str, changes: dict[str, Any], names: dict[str, Box]
) -> tuple[list[Any], list[str], bool]:
    """What find_pieces says of this rank, where pieces lie elsewhere than they say, and whether experts are moved."""
    plan = make_plan(replace(load_recipe(recipe), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups)
        pieces, wrong, local_name = find_pieces(model, plan.moe), [], {}
        for name, weight in named_weights(model, plan, session.groups):
            name = tied_name(name, names)  # type: ignore[arg-type]
            weight.copy_(part_of(name, numbers(names, name), weight, session.groups))
            local_name[id(weight)] = name
        for local, weight in model.named_parameters():
            name = local_name[id(weight)]
            for box in pieces[local]:
                here = numbers(names, name)[boxed(box.start, box.shape)]
                if box.name != name.replace("local_experts.", "") or not torch.equal(box.of(weight), here):
                    wrong.append(f"{local}: {box}")
        is_moved = plan.moe is not None and plan.moe.expert_at(1) != tuple(range(plan.moe.num_experts))
        return lay_out(pieces), wrong, is_moved


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pieces_of_all_ranks_are_the_whole_model_under_published_names(layout: str) -> None:
    world, recipe, changes = LAYOUTS[layout]
    shapes = run_ranks(shapes_of, 1, recipe, {name: at for name, at in changes.items() if name[:6] == "model."})[0]
    found = run_ranks(held_by, world, recipe, changes, shapes)
    assert [wrong for _, wrong, _ in found] == [[]] * world
    assert all(is_moved == ("EP" in layout) for _, _, is_moved in found)
    work = divide_work([held for held, _, _ in found])
    places = [place for places in work for place in places]
    for name, shape in shapes.items():
        written = torch.zeros(shape, dtype=torch.int64)
        for _, start, box in (place for place in places if place[0] == name.replace("local_experts.", "")):
            written[boxed(start, box)] += 1
        assert torch.equal(written, torch.ones_like(written)), name
    others = {name for name, *_ in places} - {name.replace("local_experts.", "") for name in shapes}
    with_experts = {int(name.split(".")[2]) for name in shapes if "router" in name}
    assert others == {f"decoder.layers.{layer}.mlp.router.group_constant" for layer in with_experts}  # buffers
    loads = [sum(prod(shape) for _, _, shape in mine) for mine in work]
    assert max(loads) < 1.5 * min(loads) or "PP" in layout  # stages differ by what only one of them holds


def without(ranks: Ranks, left_out: str) -> str:
    plan = make_plan(load_recipe("most-tiny"), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        described = model.sharded_state_dict()
        del described[left_out]
        model.sharded_state_dict = lambda **_: described
        try:
            find_pieces(model, plan.moe)  # type: ignore[union-attr]
        except CheckpointError as error:
            return str(error)
        return "nothing was said"


@pytest.mark.parametrize(
    "name", ["decoder.layers.0.mlp.linear_fc2.weight", "decoder.layers.1.mlp.router.group_constant"]
)
def test_a_weight_or_buffer_that_core_leaves_out_is_an_error(name: str) -> None:
    assert run_ranks(without, 1, name) == [f"{name}: left out of Core's sharded state; it would not be saved"]


def test_a_manifest_says_what_it_is_in_json_alone(tmp_path: Path) -> None:
    store(tmp_path, torch.arange(4.0), [((0,), (4,))]).save(tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert body["tensors"] == {"weight": {"t": [[4], "float32", [["0.safetensors", "k0", [0], [4]]]]}}

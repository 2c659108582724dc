"""The two-way table: which of our tensors is made of which Hugging Face tensors, and how their rows go together.

One row of a table serves import, export and the tests. A transform is a list of `Run`s, so many rows of one tensor that
are as many rows of another: read forwards it imports, backwards it exports, and shapes and parts of tensors follow from
it without any data. Our names are those of checkpoint/pieces.py: layers and experts counted over the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_most.config import Plan, RunConfig

Shape = tuple[int, ...]
Join = Literal["same", "halves", "qkv", "experts"]


def always(config: RunConfig) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """One line of a table. A layer's names lack "decoder.layers.N." on our side, "model.layers.N." on theirs."""

    ours: str
    theirs: str | tuple[str, ...]
    """Several names are parts of ours, in that order; none: a buffer of ours alone, which is `value` everywhere."""
    shape: str
    """Ours, as words of `sizes`."""
    cut: int | None = None
    """The axis that tensor-parallel ranks divide."""
    join: Join = "same"
    """halves: one above the other. qkv: by key/value head its query heads, its key, its value. experts: a row each."""
    layers: Literal["once", "wave", "all", "dense", "moe"] = "all"
    when: Callable[[RunConfig], bool] = always
    value: float = 0.0


@dataclass(frozen=True)
class Run:
    """Rows from `row` of ours are rows from `part_row` of one part."""

    row: int
    part: int
    part_row: int
    rows: int


@dataclass(frozen=True)
class Link:
    """A row of the table for one layer and expert of one model."""

    name: str
    shape: Shape
    parts: tuple[tuple[str, Shape], ...]
    """HF names and shapes."""
    runs: tuple[Run, ...]
    """Ascending in our rows. Rows of ours in none of them are new to the HF model."""
    row: Row
    layer: int | None
    expert: int | None

    @property
    def is_buffer(self) -> bool:
        """Kept in float32, whatever weights are kept in."""
        return "{expert}" not in self.row.ours and self.row.shape in ("groups", "experts")


def sizes(plan: Plan) -> dict[str, int]:
    """What the words of `Row.shape` mean for a model."""
    model, moe = plan.config.model, plan.config.moe
    found = {"vocab": plan.tokens.vocab_size, "hidden": model.hidden_size, "wave": model.wave_size}
    found |= {"frame": model.wave_size // model.wave_stack, "frame_inner": model.wave_inner_size}
    found |= {"experts": moe.num_experts, "groups": len(plan.moe.groups) if plan.moe else 0}
    for word, inner in (
        ("dense", model.dense_hidden_size),
        ("expert", moe.expert_hidden_size),
        ("shared", moe.shared_hidden_size),
    ):
        found |= {word: inner, f"2{word}": 2 * inner}
    if model.attention == "gqa":
        kv_heads, head = model.num_kv_heads or model.num_heads, model.head_dim or model.hidden_size // model.num_heads
        return found | {"head": head, "values": model.num_heads * head, "qkv": (model.num_heads + 2 * kv_heads) * head}
    return found | {
        "queries": model.num_heads * (model.qk_nope_head_dim + model.qk_rope_head_dim),
        "q_rank": model.q_lora_rank or 0,
        "kv_rank": model.kv_lora_rank,
        "latents": model.kv_lora_rank + model.qk_rope_head_dim,
        "keys_values": model.num_heads * (model.qk_nope_head_dim + model.v_head_dim),
        "values": model.num_heads * model.v_head_dim,
    }


def link(
    table: Sequence[Row], plan: Plan, *, hf_vocab: int | None = None,
    experts: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
) -> list[Link]:  # fmt: skip
    """Every tensor of a model, in the order of its layers.

    hf_vocab: rows of the HF model's vocabulary, where it has fewer than ours. experts: ours that the HF model has, in
    its order, where it has not all of them or numbers them otherwise; by layer, where layers differ in that.
    """
    config, words = plan.config, sizes(plan)
    every = range(config.moe.num_experts)
    by_layer = experts if isinstance(experts, Mapping) else {}
    in_all = every if experts is None or isinstance(experts, Mapping) else experts
    rows = [row for row in table if row.when(config)]
    links = [_once(row, words, hf_vocab) for row in rows if row.layers == "once"]
    for number in config.model.wave_layers:
        named = {"wave_layer": number, "hubert_layer": number - 1}
        for row in rows:
            if row.layers == "wave":
                links.append(_once(row, words, None, named))
    for layer in range(config.model.num_layers):
        is_dense = not config.moe.num_experts or layer in config.moe.dense_layers
        for row in rows:
            if row.layers in ("all", "dense" if is_dense else "moe"):
                links.extend(_of_layer(row, words, plan, layer, list(by_layer.get(layer, in_all))))
    return links


def _once(row: Row, words: dict[str, int], hf_vocab: int | None, named: Mapping[str, int] | None = None) -> Link:
    shape = tuple(words[word] for word in row.shape.split())
    ours, [name] = row.ours.format(**(named or {})), [name.format(**(named or {})) for name in _names(row)]
    is_vocab = row.shape.startswith("vocab")
    rows = hf_vocab if is_vocab and hf_vocab is not None else shape[0]
    return Link(ours, shape, ((name, (rows, *shape[1:])),), (Run(0, 0, 0, rows),), row, None, None)


def _of_layer(row: Row, words: dict[str, int], plan: Plan, layer: int, kept: list[int]) -> Iterator[Link]:
    shape = tuple(words[word] for word in row.shape.split())
    ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
    runs = runs_of(row.join, shape[0], plan, kept)
    counts = [sum(run.rows for run in runs if run.part == part) for part in range(len(_names(row)))]
    if "{expert}" not in row.ours:
        parts = tuple((theirs + name, (rows, *shape[1:])) for name, rows in zip(_names(row), counts, strict=True))
        yield Link(ours + row.ours, shape, parts, runs if parts else (), row, layer, None)
        return
    for number, expert in enumerate(kept):
        named = [theirs + name.format(expert=number) for name in _names(row)]
        parts = tuple((name, (rows, *shape[1:])) for name, rows in zip(named, counts, strict=True))
        yield Link(ours + row.ours.format(expert=expert), shape, parts, runs, row, layer, expert)


def _names(row: Row) -> tuple[str, ...]:
    return (row.theirs,) if isinstance(row.theirs, str) else row.theirs


def runs_of(join: Join, rows: int, plan: Plan, kept: Sequence[int]) -> tuple[Run, ...]:
    """How the rows of a tensor of ours lie in its parts."""
    if join == "same":
        return (Run(0, 0, 0, rows),)
    if join == "halves":
        return Run(0, 0, 0, rows // 2), Run(rows // 2, 1, 0, rows // 2)
    if join == "experts":
        return _joined(Run(expert, 0, number, 1) for expert, number in sorted((e, n) for n, e in enumerate(kept)))
    model, runs, row = plan.config.model, [], 0
    kv_heads, head = model.num_kv_heads or model.num_heads, sizes(plan)["head"]
    for kv_head in range(kv_heads):
        for part, count in enumerate((model.num_heads // kv_heads * head, head, head)):
            runs.append(Run(row, part, kv_head * count, count))
            row += count
    return tuple(runs)


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs that go on where the one before ends, as one."""
    out: list[Run] = []
    for run in runs:
        if out and (out[-1].row + out[-1].rows, out[-1].part_row + out[-1].rows) == (run.row, run.part_row):
            out[-1] = replace(out[-1], rows=out[-1].rows + run.rows)
        else:
            out.append(run)
    return tuple(out)

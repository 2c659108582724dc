"""What a partition did, as a page: how much each expert is used and whose it became, layer by layer.

Its numbers are those of partition.json beside it (see `describe`), so that it can be drawn again from there. It loads
nothing, and equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.convert.families.fields import runs_of_ids
from megatron_most.convert.partition import Numbers, Order, kinds_of, sums_by_group
from megatron_most.runtime import page
from megatron_most.runtime.drawing import colour, drawing, make_panels, svg, ticks, title

TEMPLATE = Path(__file__).with_name("pages") / "partition.html.jinja"
COLOURS = ("s1", "s2", "s3")
"""Variables of the page's style, one a group; there are no more groups than tags."""
Uses = Mapping[str, Mapping[str, Numbers]]
""" "mass" or "load" -> kind of prompts -> of each of their experts."""


def describe(sizes: Mapping[str, int], order: Order, uses: Uses, constants: Mapping[str, float]) -> dict[str, Any]:
    """One layer, as partition.json has it. Experts are theirs.

    mass: the share of router probability that a group's own tokens give its experts (`mass_by_index`: would give those
    of index). load: the share of choices of each kind of prompts that fall to the group.
    """
    counts, groups = list(sizes.values()), []
    index = tuple(range(len(order)))
    for number, (name, first) in enumerate(zip(sizes, np.cumsum([0, *counts]), strict=False)):
        group: dict[str, Any] = {"name": name, "experts": list(order[first : first + counts[number]])}
        if name in constants:
            group["constant"] = constants[name]
        own = [kind for kind in kinds_of(name) if kind in uses.get("mass", {})]
        if own:
            use = np.mean([uses["mass"][kind] for kind in own], axis=0)
            group["mass"] = sums_by_group(use, order, counts)[number]
            group["mass_by_index"] = sums_by_group(use, index, counts)[number]
        group["load"] = {k: sums_by_group(use, order, counts)[number] for k, use in uses.get("load", {}).items()}
        groups.append(group)
    rounded = {what: {kind: use.tolist() for kind, use in of.items()} for what, of in uses.items()}
    return {"groups": groups, "use": rounded}


def write_page(out: Path, name: str, found: Mapping[str, Any]) -> None:
    """`found` is what partition.json holds."""
    layers, sizes = found["layers"], found["sizes"]
    is_measured = any(layer["use"] for layer in layers)
    with drawing():
        page.write_page(
            out,
            TEMPLATE,
            title=name,
            tiles=_tiles(found),
            groups=list(zip(sizes, COLOURS, strict=False)),
            prompts=found.get("prompts", {}),
            overview=_overview(layers, sizes) if is_measured else [],
            layers=[(layer["layer"], _draw_layer(layer, sizes)) for layer in layers] if is_measured else [],
            rows=[_row(layer) for layer in layers],
            is_measured=is_measured,
        )


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    tokens = found.get("prompts", {}).get("tokens", {})
    return [
        (found["strategy"], "strategy"),
        *((f"{size}", f"experts of {name}") for name, size in found["sizes"].items()),
        (f"{len(found['layers'])}", "layers with experts"),
        *((f"{count:,}", f"tokens of {kind} looked at") for kind, count in tokens.items()),
    ]


def _overview(layers: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> list[tuple[str, str, Any]]:
    """(title, words, drawing)."""
    out = []
    with_mass = [n for n, group in enumerate(layers[0]["groups"]) if "mass" in group]
    if with_mass:
        lines = [(n, [layer["groups"][n]["mass"] for layer in layers], False) for n in with_mass]
        lines += [(n, [layer["groups"][n]["mass_by_index"] for layer in layers], True) for n in with_mass]
        words = (
            "Router probability that a group’s own tokens give its experts: all that is left to them. Dashed: by index."
        )
        out.append(("Mass inside the group", words, _draw_lines("mass", layers, lines, None)))
    for kind in layers[0]["use"].get("load", {}):
        lines = [(n, [layer["groups"][n]["load"][kind] for layer in layers], False) for n in range(len(sizes))]
        words = f"Of all choices that tokens of {kind} make in the base model. Dashed: the group’s share of experts."
        level = [count / sum(sizes.values()) for count in sizes.values()]
        out.append((f"Choices of {kind} by group", words, _draw_lines(f"load {kind}", layers, lines, level)))
    return out


def _draw_lines(
    name: str, layers: Sequence[Mapping[str, Any]], lines: Sequence[tuple[int, Sequence[float], bool]],
    levels: Sequence[float] | None,
) -> Any:  # fmt: skip
    figure, [axes] = make_panels(1, 1.5, above=0.08, below=0.42)
    numbers = [layer["layer"] for layer in layers]
    for group, values, is_dashed in lines:
        style: dict[str, Any] = {"dashes": (3, 2), "lw": 1.0} if is_dashed else {"lw": 1.4, "marker": "o", "ms": 2.5}
        axes.plot(numbers, values, color=colour(COLOURS[group]), **style)
    for group, level in enumerate(levels or ()):
        axes.axhline(level, color=colour(COLOURS[group]), lw=0.8, dashes=(3, 2))
    axes.set(xlabel="layer", ylim=(0, 1.02))
    ticks(axes, lambda x: f"{x:g}", percent_ticks=True)
    axes.set_xticks(numbers[:: -(-len(numbers) // 9)])
    return svg(figure, f"partition {name}")


def _draw_layer(layer: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    """Experts by how much text uses them, most first, in their groups' colours; a panel a kind of prompts."""
    load = {kind: np.array(use) for kind, use in layer["use"]["load"].items()}
    ranked = np.argsort(-load["text"] if "text" in load else -next(iter(load.values())), kind="stable")
    group_of = {expert: n for n, group in enumerate(layer["groups"]) for expert in group["experts"]}
    figure, panels = make_panels(len(load), 0.75, above=0.27, below=0.42)
    for axes, (kind, use) in zip(panels, load.items(), strict=True):
        for group in range(len(sizes)):
            places = [place for place, expert in enumerate(ranked) if group_of[int(expert)] == group]
            axes.bar(places, use[ranked][places], 0.8, color=colour(COLOURS[group]), lw=0)
        axes.axhline(1 / len(ranked), color=colour("muted"), lw=0.8, dashes=(3, 2))
        split = " · ".join(f"{group['name']} {100 * group['load'][kind]:.1f} %" for group in layer["groups"])
        title(axes, kind, split)
        axes.set(xlim=(-0.6, len(ranked) - 0.4), ylim=(0, max(float(use.max()) * 1.08, 1e-9)))
        ticks(axes, lambda x: f"{x:g}", percent_ticks=True)
    panels[-1].set_xlabel("experts, the most used by text first")
    return svg(figure, f"layer {layer['layer']}")


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    cells = []
    for group in layer["groups"]:
        mass = f"{group['mass_by_index']:.3f} → {group['mass']:.3f}" if "mass" in group else "-"
        load = "; ".join(f"{kind} {100 * share:.1f} %" for kind, share in group["load"].items()) or "-"
        constant = f"{group['constant']:.4f}" if "constant" in group else "-"
        cells.append({"mass": mass, "load": load, "constant": constant, "experts": runs_of_ids(group["experts"])})
    return {"layer": layer["layer"], "cells": cells}

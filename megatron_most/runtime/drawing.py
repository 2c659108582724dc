"""Plots as SVG that is part of a page.

Matplotlib draws in stand-in colours which become variables of the page's style, so plots follow the reader's light or
dark scheme. Names are hostile: matplotlib reads no formulas, and text between tags is left alone. Equal inputs give
equal bytes. Whoever draws does so inside `drawing()`. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megatron_most.runtime.log import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES, _LEFT, _RIGHT = 4.2, 0.45, 0.08  # of a plot: its width and margins; the page scales it
_SIGNS = 47  # that fit side by side above a panel
_stand_ins: dict[str, str] = {}


def colour(name: str) -> str:
    """What to draw in for the page's variable of this name; the same in every process, as it shows in ids."""
    stand_in = f"#fe{zlib.crc32(name.encode()) & 0xFFFF:04x}"
    assert _stand_ins.setdefault(stand_in, name) == name, f"{name} and {_stand_ins[stand_in]} have one stand-in"
    return stand_in


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib as it comes, whatever the user's settings; no pyplot, so no window and nothing left open."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # a name in a script that the font lacks: the reader's browser has it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings())
        yield


def _settings() -> Any:
    named = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9}
    named |= {"axes.edgecolor": colour("grid"), "axes.labelcolor": colour("muted"), "axes.labelsize": 9}
    ticks = {"color": colour("grid"), "labelcolor": colour("muted"), "labelsize": 8, "major.size": 3}
    return named | {f"{side}tick.{what}": value for side in "xy" for what, value in ticks.items()}


def make_panels(
    count: int, height: float, *, above: float, below: float, edge: float = _LEFT
) -> tuple[Figure, list[Axes]]:
    """Axes one under the other, in inches, each with room for a title above; below the last, room for a label."""
    from matplotlib.figure import Figure

    row = above + height + 0.26 * (below > 0.2)
    total = count * row + below - 0.26 * (below > 0.2)
    figure = Figure(figsize=(_INCHES, total))
    width = (_INCHES - edge - (_RIGHT if edge else 0)) / _INCHES
    tops = [total - i * row - above for i in range(count)]
    return figure, [figure.add_axes((edge / _INCHES, (top - height) / total, width, height / total)) for top in tops]


def title(axes: Axes, name: str, words: str) -> None:
    axes.set_title(printable(name, max(_SIGNS - len(words), 8)), loc="left", fontsize=9, color=colour("ink"), pad=5)
    axes.set_title(words, loc="right", fontsize=9, color=colour("muted"), pad=5)


def ticks(axes: Axes, words: Callable[[float], str], percent_ticks: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(3 if percent_ticks else 4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %" if percent_ticks else f"{y:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=colour("grid"), lw=0.6)
    axes.set_axisbelow(True)


def svg(figure: Figure, name: str) -> Any:
    """The drawing as an element of the page: its colours are the page's, its size that of its place."""
    import matplotlib
    from markupsafe import Markup

    # Ids within it are then its own, and the same each time.
    matplotlib.rcParams["svg.hashsalt"] = name.encode(errors="backslashreplace").decode()
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)

    def page_like(tag: re.Match[str]) -> str:  # in tags only: text between them is data
        named = re.sub(r' (?:id="[A-Za-z][\w.]*_\d+"|xmlns(?::\w+)?="[^"]*"|version="[^"]*")', "", tag[0])
        named = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", named)
        for stand_in, name in _stand_ins.items():
            named = named.replace(stand_in, f"var(--{name})")
        return re.sub(r' (?:width|height)="[\d.]+pt"', "", named) if named.startswith("<svg") else named

    return Markup(re.sub(r"<[^>]*>", page_like, text))

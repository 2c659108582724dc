"""One HTML file that loads nothing from anywhere: its own policy forbids requests, and every name is hostile until
escaped, which the template does with all of them.

Templates extend `page.html.jinja`, which has the style, and what a page of ours always has. Equal inputs give equal
bytes. Jinja is imported when a page is written.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError, UpstreamError
from megatron_most.runtime.files import write_atomically
from megatron_most.runtime.log import printable

_COMMON = Path(__file__).with_name("pages")


def require_page(out: Path, instead: str = "") -> None:
    """Raise where no page could be written. `instead`: what else the user may do."""
    if missing := [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]:
        raise UpstreamError(
            f"{' and '.join(missing)}: not installed, but the page needs it; install it with "
            f"`pip install megatron-most[data]`{', ' * bool(instead)}{instead}"
        )
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise DataError(f"{out}: not a name for a page; give --out a file name that ends in .html")


def write_page(out: Path, template: Path, **values: Any) -> None:
    """Fill the template in and write it; a page that is there is replaced."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _COMMON]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else printable(value),
    )
    text = environment.get_template(template.name).render(**values)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from error

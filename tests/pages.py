"""What a reader and a browser see of a page that we wrote, and names that try to change it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from megatron_most.runtime.drawing import colour

HOSTILE = (
    "</script><script>alert(1)</script><img src=https://evil.test/x onerror=f()> \"'> {{ 7*7 }} $x_1$ & "
    + colour("ink")
)
STEERING = "\x1b[31mred\x07\x00\u202e\ud800"


class Seen(HTMLParser):
    """The tags of a page, its attributes, and what a reader sees."""

    VOID = {"meta", "link", "img", "br", "base", "input"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def require_nothing_loaded(page: str) -> None:
    """The page asks nothing of anyone; what it refers to is in it, once."""
    seen = Seen(page)
    assert not seen.open
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"} & set(seen.tags)
    for tag, name, value in seen.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            assert value.startswith(("data:audio/wav;base64,", "#")), (tag, name, value[:60])
        if tag != "blockquote":
            assert "://" not in value, (tag, name, value[:60])
    styles = page[page.index("<style>") : page.index("</style>")] + "".join(
        v for _, n, v in seen.attributes if n == "style"
    )
    assert "url(" not in styles.replace("url(#", "") and "@import" not in styles
    policy = next(value for tag, name, value in seen.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    used = {value[1:] for _, name, value in seen.attributes if name in ("href", "xlink:href")}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    ids = [value for _, name, value in seen.attributes if name == "id"]
    assert used <= set(ids) and len(ids) == len(set(ids))  # every plot finds its own marks

"""Telephone numbers and other rows of digits, read one by one: +44 20 7946 0958, (212) 555-0100, *67, an ISBN.

Where nothing else shows that digits are to be dialled, a word such as "call" before them does.
"""

from __future__ import annotations

import re

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.numbers import digits
from megatron_most.synthesize.rules import Rule, rule

_FEWEST_DIGITS = 7
_DIALLED = r"(?i)(\b(?:call|dial|phone|ring|text|number|tel|fax|mobile|reach)\b[^\d\n*+]{0,12})"


def _said(text: str) -> str:
    return "plus " * text.startswith("+") + ", ".join(digits(part) for part in re.findall(r"\d+", text))


def _after_a_word(found: re.Match[str]) -> str:
    groups = re.findall(r"\d+", found[2])
    is_phone = sum(map(len, groups)) >= _FEWEST_DIGITS and groups[-1] != "000"  # "call 100 000 people"
    return found[1] + _said(found[2]) if is_phone else found[0]


def _refused(found: re.Match[str]) -> str:
    """*67 is dialled, and 2 * 3 a product, but *20 may be a footnote."""
    raise RowError("not speakable", f"{found.string[found.start() : found.end() + 8]!r}")


PHONES: list[Rule] = [
    rule(r"(?<!\w)\+\d{1,3}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{2,4}){2,6}(?!\d|[.,]\d)", lambda m: _said(m[0])),
    rule(r"(?<![\w(])(?:\+?\d{1,3}[ -])?\(\d{3}\) ?\d{3}[ .-]\d{4}\b", lambda m: _said(m[0])),
    rule(r"(?<![\w-])(?:\+?\d{1,3}-)?\d{3}-\d{3,4}-\d{4}\b", lambda m: _said(m[0])),
    rule(r"(?<![\w.-])\d{3}([ .])\d{3}\1\d{4}(?![\w-])", lambda m: _said(m[0])),
    rule(r"(?<![\w-])(?:\d-)?\d{3}-([A-Z]{4,}|[A-Z]{3}-[A-Z]{4})\b", lambda m: f"{_said(m[0])}, {m[1]}"),
    rule(_DIALLED + r"(911|999|112|988|[2-5]11)\b(?![ -]?\d)(?!\s[a-z]+s\b)", lambda m: m[1] + digits(m[2])),
    rule(_DIALLED + r"(\d{3}-\d{4})\b(?!-)", lambda m: m[1] + _said(m[2])),
    rule(_DIALLED + r"(\d{2,5}(?: \d{2,4}){1,4})\b(?!-|,\d)", _after_a_word),
    rule(r"(?i)(\b(?:call|dial|press|enter|key|type)\s(?:in\s)?)\*(\d{1,4})(#?)(?!\w)",
         lambda m: f"{m[1]}star {digits(m[2])}" + " pound" * len(m[3])),
    rule(r"(?<![\w*])\*(?=\d)", _refused),
]  # fmt: skip
ROWS_OF_DIGITS = rule(r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-])", lambda m: _said(m[0]))

"""What the rules of speech share: a rule is a pattern and what is said for it; and how a number looks."""

from __future__ import annotations

import re
from collections.abc import Callable

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
START, END = r"(?<![\w.,])", r"(?![\w]|[.,]\d)"
DOT = r"(?:\.(?=\s+[a-z\d]))?"  # of an abbreviation, where the sentence goes on


def rule(pattern: str, said: Callable[[re.Match[str]], str], flags: int = 0) -> Rule:
    return re.compile(pattern, flags), said

"""Written markup off a text: headings, lists, emphasis, links, code. What is left are sentences.

Code blocks are dropped or make the text a reject, as the caller says; tables and formulas always do, since nobody reads
them out. Code without a fence is found by its look (codelike.py). List items become sentences of their own, numbered
ones with "First," and so on, ten at most.
"""

from __future__ import annotations

import html
import re

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.codelike import refuse_code, without_code_lines
from megatron_most.synthesize.numbers import ordinal

_FENCED = re.compile(r"(?ms)^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)")
_INDENTED = re.compile(r"(?m)(?:^|\n)\n?(?:(?: {4}|\t)[^\s\-*+\d][^\n]*[;{}()=][^\n]*(?:\n|\Z)){2,}")
_INLINE_CODE = re.compile(r"(`+)([^`\n]+)\1")
_TABLE = re.compile(r"(?m)^[ \t]*\|?[ \t:]*-{2,}[ \t:]*\|[-| \t:]*$")
_FORMULA = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\\(?:frac|sum|int|sqrt|begin|left|cdot|times|alpha)\b|\$[^$\n]*[\\^_{][^$\n]*\$",
    re.S,
)
_IMAGE = re.compile(r"!\[([^\[\]\n]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_LINK = re.compile(r"\[([^\[\]\n]+)\](?:\([^()\s]*(?:\([^()\s]*\)[^()\s]*)?(?:\s+\"[^\"]*\")?\)|\[[^\[\]\n]*\])")
_FOOTNOTE = re.compile(r"\[\^?\d{1,3}\]")
_TAG = re.compile(r"</?[A-Za-z]+\s?/?>|<[A-Za-z]+\s[^<>=\n]{1,40}=[^<>\n]{0,200}>|<!--.*?-->", re.S)
_ESCAPED = re.compile(r"\\(?=[^\w\s\\])")
_ADDED = re.compile(
    r"\[[A-Z]\](?=[a-z])|(?<![\w\]])\[[a-z]\](?=[a-z])|(?<=[a-z]{2})\[(?:s|es|ed|ing|d|ly)\]|(?<=[a-z]{2})\((?:s|es|ren)\)(?!\w)"
)
"""Letters that a writer put into somebody's words: [t]he, walk[ed]; or left open: word(s)."""
_RULE = re.compile(r"(?m)^[ \t]{0,3}(?:(?:[-*_][ \t]*){3,}|={3,}[ \t]*)$")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_BULLET = re.compile(r"^\s*(?:[-*+•‣◦]|\[[ xX]\])\s+(?:\[[ xX]\]\s+)?(.*)$")
_NUMBERED = re.compile(r"^\s*\(?(\d{1,2})[.)]\s+(.*)$")
_QUOTE = re.compile(r"^\s*(?:>\s?)+")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w*])", re.S)
_STRUCK = re.compile(r"~~(.+?)~~", re.S)
_SPEAKABLE_CODE = re.compile(r"[A-Za-z][\w.'-]*(?: [A-Za-z][\w.'-]*)*")
_ENDS = ".!?…:;,"


def without_markup(text: str, drop_code: bool) -> str:
    """Sentences on lines. RowError where there is code (unless dropped), a table or a formula."""
    for pattern in (_FENCED, _INDENTED):
        if pattern.search(text):
            if not drop_code:
                raise RowError("holds code")
            text = pattern.sub("\n", text)
    text = html.unescape(text)
    if _TABLE.search(text):
        raise RowError("holds a table")
    if found := _FORMULA.search(text):
        raise RowError("holds a formula", found[0][:60])
    text = _INLINE_CODE.sub(lambda found: _inline(found[2], drop_code), text)
    text = _IMAGE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = without_code_lines(text) if drop_code else text
    text = _ESCAPED.sub("", text)
    text = _ADDED.sub(lambda found: found[0].strip("[]()"), text)
    refuse_code(text)
    text = _FOOTNOTE.sub("", text)
    text = _TAG.sub(" ", text)
    text = _RULE.sub("", text)
    lines = [_line(line) for line in text.splitlines()]
    text = "\n".join(line for line in lines if line)
    for _ in range(3):  # bold around italic around struck
        text = _STRUCK.sub(r"\1", _EMPHASIS.sub(r"\2", text))
    return text


def _inline(code: str, drop_code: bool) -> str:
    code = code.strip()
    if _SPEAKABLE_CODE.fullmatch(code):
        return code.replace("_", " ")
    if not drop_code:
        raise RowError("holds code", code[:60])
    return ""


def _line(line: str) -> str:
    line = _QUOTE.sub("", line)
    if found := _HEADING.match(line):
        return _sentence(found[1].strip(" *_"))
    if found := _NUMBERED.match(line):
        number = int(found[1])
        begin = ordinal(number).capitalize() + ", " if 1 <= number <= 10 else ""
        return _sentence(begin + found[2].strip())
    if found := _BULLET.match(line):
        return _sentence(found[1].strip())
    return line.strip()


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    bare = text.rstrip("*_ ")
    return text if not bare or bare[-1] in _ENDS else f"{text}."

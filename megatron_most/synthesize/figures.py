"""Figures in a text and how each is said: (pattern, function) pairs in the order they are tried.

Dates before fractions, money before numbers, years before other four-figure numbers; the last rule reads any number
that is left. A figure no rule knows, such as 3:4:5 glued to letters, is read in pieces.
"""

from __future__ import annotations

import re

from megatron_most.synthesize.dates import CLOCK, CLOCK_OF_HOURS, CLOCK_RANGE, DATES, DECADES, VERSES, YEAR, YEARS
from megatron_most.synthesize.measures import MEASURES, MONEY, RATES, SCALES, SIDES, SIGN
from megatron_most.synthesize.numbers import cardinal, decimal, digits, ordinal
from megatron_most.synthesize.phones import PHONES, ROWS_OF_DIGITS
from megatron_most.synthesize.rules import END, NUMBER, START, Rule, rule

_OPERATORS = {"+": "plus", "-": "minus", "*": "times", "×": "times", "/": "divided by", "÷": "divided by"}
_OPERATOR = r"[-+*/×÷]"
_COMPARISONS = {
    ">": "is more than", "<": "is less than", ">=": "is at least", "≥": "is at least", "<=": "is at most",
    "≤": "is at most",
}  # fmt: skip
_SET_PHRASES = {"24/7": "twenty-four seven", "9/11": "nine eleven", "20/20": "twenty twenty"}
_FRACTIONS = {"2": ("half", "halves"), "3": ("third", "thirds"), "4": ("quarter", "quarters")}
_LETTERED = (
    "apt apartment room gate flat suite unit seat row platform building block bus route section terminal door exit "
    "hall locker cabin house grade class figure table bay pier line aisle floor stand exhibit"
).split()
_NARROW = "\u00a0\u202f\u2009"  # blanks that hold a number together


def thousands_joined(text: str) -> str:
    """1 000 000 -> 1000000. Plain blanks join where nothing else can be meant: 5 100 gram packs are five."""
    text = re.sub(rf"(?<![\d.,])\d{{1,3}}(?:[{_NARROW}]\d{{3}})+(?!\d)", _bare, text)
    text = re.sub(rf"{SIGN}\s?[1-9]\d{{0,2}} \d{{3}}(?!\d|,\d| \d)", lambda m: m[0][:-4] + m[0][-3:], text)
    return re.sub(r"(?<![\w.,/:+-])(?<!\d )[1-9]\d{0,2}(?:(?: \d{3})+ \d{3}| 000)(?![\d/:-]|,\d| \d)", _bare, text)


def _bare(found: re.Match[str]) -> str:
    return re.sub(r"\s", "", found[0])


def _sum(found: re.Match[str]) -> str:
    """10 - 3 = -> ten minus three =: where an equals sign stands beside it, a hyphen is no range, a slash no "or"."""
    parts = re.split(rf"({NUMBER})", found[0])
    return "".join(
        decimal(part) if number % 2 else (f" {_OPERATORS[part.strip()]} " if part.strip() in _OPERATORS else part)
        for number, part in enumerate(parts)
    )


def _compared(found: re.Match[str]) -> str:
    return f"{found[1]} {_COMPARISONS[found[2]]} "


def _shares(found: re.Match[str]) -> str:
    """60/40 -> sixty forty, where both make a hundred."""
    one, other = int(found[1]), int(found[2])
    return f"{cardinal(one)} {cardinal(other)}" if one + other == 100 else found[0]


def _fraction(found: re.Match[str]) -> str:
    above, below = found[2], found[3]
    if int(below) == 0:
        return f"{cardinal(int(above))} over zero"
    if above == below and int(below) >= 5:
        return f"{cardinal(int(above))} out of {cardinal(int(below))}"
    one, many = _FRACTIONS.get(below, (ordinal(int(below)), f"{ordinal(int(below))}s"))
    if int(below) == 1 or int(below) > 100:
        said = f"{cardinal(int(above))} over {cardinal(int(below))}"
    else:
        said = f"{cardinal(int(above))} {one if above == '1' else many}"
    return f"{cardinal(int(found[1]))} and {said}" if found[1] else said


def _number(found: re.Match[str]) -> str:
    text = found[0]
    if len(text) > 1 and text[0] == "0" and "." not in text:
        return digits(text)
    return decimal(text)


def _glued(found: re.Match[str]) -> str:
    """Figures inside a word: B12 -> B twelve, 3D -> three D, covid19 -> covid nineteen."""
    said = re.sub(r"\d+", lambda part: f" {cardinal(int(part[0])) if len(part[0]) < 4 else digits(part[0])} ", found[0])
    return " ".join(said.split())


def _power(count: str) -> str:
    return f"to the power of {'minus ' * count.startswith('-')}{cardinal(int(count.strip('+-')))}"


FIGURES: list[Rule] = [
    rule(rf"{START}({'|'.join(map(re.escape, _SET_PHRASES))}){END}(?!/)", lambda m: _SET_PHRASES[m[1]]),
    CLOCK_RANGE,
    rule(
        rf"{START}{NUMBER}(?:\s?{_OPERATOR}\s?{NUMBER}){{1,8}}(?=\s?=)"
        rf"|(?<==)\s?{NUMBER}(?:\s{_OPERATOR}\s{NUMBER}){{1,8}}{END}",
        _sum,
    ),
    rule(rf"{START}({NUMBER})\s?([<>]=?|[≤≥])\s?(?=[\w$£€-])", _compared),
    rule(r"(?<!\w)(\w+)\s([<>]=?|[≤≥])\s(?=-?\d)", _compared),
    rule(rf"{START}({NUMBER})[eE]([-+]?\d{{1,3}})\b", lambda m: f"{decimal(m[1])} times ten {_power(m[2])}"),
    *DATES,
    *PHONES,
    ROWS_OF_DIGITS,
    VERSES,
    CLOCK,
    rule(r"(?<![\w.])(\d)'\s?(\d{1,2})(?:\"|''|\b)", lambda m: f"{cardinal(int(m[1]))} foot {cardinal(int(m[2]))}"),
    rule(r"(?<![\w:.])(\d{1,3}):(\d{1,3})(?![:\d])", lambda m: f"{cardinal(int(m[1]))} to {cardinal(int(m[2]))}"),
    CLOCK_OF_HOURS,
    rule(rf"(?i)(\b(?:{'|'.join(_LETTERED)})\.?\s)(\d{{1,4}})-?((?-i:[A-Z])|b)\b",
         lambda m: f"{m[1]}{cardinal(int(m[2]))} {m[3]}"),
    rule(r"(?<![\w/.])(\d)/(\d)(?=\s(?:time|beat|signature|meter)\b)",
         lambda m: f"{cardinal(int(m[1]))} {cardinal(int(m[2]))}"),
    *RATES,
    *MONEY,
    *DECADES,
    rule(r"\b(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1].replace(",", "")))),
    *YEARS,
    rule(r"(?<![\w/.])(\d\d)/(\d\d)(?![\w/%])", _shares),
    rule(r"(?<![\w/.])(?:(\d+)\s+)?(\d{1,3})/(\d{1,3})(?![\d/])", _fraction),
    rule(rf"{START}({NUMBER})\s?/\s?({NUMBER}){END}", lambda m: f"{decimal(m[1])} over {decimal(m[2])}"),
    *SIDES,
    *MEASURES,
    rule(rf"{START}({NUMBER})\s?-\s?({NUMBER}){END}", lambda m: f"{decimal(m[1])} to {decimal(m[2])}"),
    rule(rf"{START}({NUMBER})x\b", lambda m: f"{decimal(m[1])} times"),
    rule(r"(?<![\w.])\d+(?:\.\d+){2,}", lambda m: " point ".join(cardinal(int(part)) for part in m[0].split("."))),
    rule(r"(?<=\w)\^2(?!\d)", lambda m: " squared"),
    rule(r"(?<=\w)\^3(?!\d)", lambda m: " cubed"),
    rule(r"(?<=\w)\^([-+]?\d{1,9})", lambda m: f" {_power(m[1])}"),
    rule(r"(?<=\w)\^(?=[A-Za-z]\b)", lambda m: " to the power of "),
    rule(rf"(?<![\w.,])-({NUMBER})", lambda m: f"minus {decimal(m[1])}"),
    YEAR,
    rule(rf"{START}({NUMBER})([kMB]|bn|mn|tn)\b", lambda m: f"{decimal(m[1])} {SCALES[m[2].lower()]}"),
    rule(r"(?<![\w.])\.\d+", lambda m: decimal(m[0])),
    rule(rf"(?<![\w]){NUMBER}(?!\w)", _number),
    rule(r"(?<!\w)\w*\d\w*", _glued),
]  # fmt: skip

"""Dates, times of day, years, and the verses of the Bible, which look like times: John 3:16.

3/4/2024 is March fourth, as Americans write it, unless its first number can be no month.
"""

from __future__ import annotations

import re

from megatron_most.synthesize.measures import with_unit
from megatron_most.synthesize.numbers import cardinal, decade, digits, ordinal, year
from megatron_most.synthesize.rules import END, START, Rule, rule

_MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "|".join(_MONTHS)
_HALF = r"(?P<half>[aApP]\.?[mM]\b\.?)"
_BOOKS = (
    "Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth Samuel Kings Chronicles Ezra Nehemiah Esther Job "
    "Psalms? Proverbs Ecclesiastes Solomon Songs? Isaiah Jeremiah Lamentations Ezekiel Daniel Hosea Joel Amos Obadiah "
    "Jonah Micah Nahum Habakkuk Zephaniah Haggai Zechariah Malachi Matthew Mark Luke John Acts Romans Corinthians "
    "Galatians Ephesians Philippians Colossians Thessalonians Timothy Titus Philemon Hebrews James Peter Jude "
    "Revelation Sirach Tobit Judith Maccabees Baruch Wisdom"
).split()
_BOOK_OF = {"1": "First ", "2": "Second ", "3": "Third ", None: ""}
_FIRST_OF_THIS_CENTURY = 69  # years of two figures, as POSIX reads them: 68 is 2068, 69 is 1969


def _date(year_text: str, month: str, day: str) -> str:
    if int(month) > 12 >= int(day):
        month, day = day, month
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return f"{digits(year_text)}, {digits(month)}, {digits(day)}"
    century = 0 if len(year_text) > 2 else 1900 if int(year_text) >= _FIRST_OF_THIS_CENTURY else 2000
    return f"{_MONTHS[int(month) - 1]} {ordinal(int(day))}, {year(int(year_text) + century)}"


def _named_date(found: re.Match[str]) -> str:
    month, day, year_text = (found[1], found[2], found[3]) if found[1][0].isalpha() else (found[2], found[1], found[3])
    said = f"{month} {ordinal(int(day))}" if int(day) <= 31 else f"{month} {cardinal(int(day))}"
    return said + (f", {year(int(year_text))}" if year_text else "")


def _time(found: re.Match[str]) -> str:
    hour, minute, half = int(found[1]), int(found[2] or 0), (found["half"] or "").lower().replace(".", "")
    second = found.groupdict().get("second")
    if hour > 24 or minute > 59:
        return f"{cardinal(hour)} to {cardinal(minute)}"
    said = cardinal(hour)
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not half:
        said += " o'clock" if hour <= 12 else " hundred hours"
    if second:
        said += f" and {with_unit(str(int(second)), 'second')}"
    return said + (f" {half[0]} m" if half else "")


def _verse(found: re.Match[str]) -> str:
    said = f"{_BOOK_OF[found[1]]}{found[2]} {cardinal(int(found[3]))} {cardinal(int(found[4]))}"
    return said + (f" to {cardinal(int(found[5]))}" if found[5] else "")


def _short_years(found: re.Match[str]) -> str:
    """1960-70 -> nineteen sixty to nineteen seventy; 2023/24 -> twenty twenty-three to twenty twenty-four."""
    first, last = int(found[1]), int(found[1][:2] + found[3])
    if found[2] == "/" and last != first + 1:
        return found[0]
    return f"{year(first)} to {year(last) if last > first else cardinal(int(found[3]))}"


DATES: list[Rule] = [
    rule(rf"{START}(\d{{4}})([-/])(\d\d?)\2(\d\d?){END}", lambda m: _date(m[1], m[3], m[4])),
    rule(rf"{START}(\d\d?)/(\d\d?)/(\d{{4}}|\d\d){END}", lambda m: _date(m[3], m[1], m[2])),
    rule(rf"\b({_MONTH})\s+(\d{{1,2}})(?:st|nd|rd|th)?(?!\d|:)(?:,?\s+(\d{{4}})\b)?", _named_date),
    rule(rf"(?:\b[Tt]he\s+)?{START}(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})(?:,?\s+(\d{{4}})\b)?",
         _named_date),
    rule(rf"\b({_MONTH}),?\s+(\d{{4}}){END}", lambda m: f"{m[1]} {year(int(m[2]))}"),
]  # fmt: skip
CLOCK_RANGE = rule(r"(?<=\d)(\s?[aApP](?:\.|\s)?[mM]\.?)\s?-\s?(?=\d)", lambda m: f"{m[1]} to ")
VERSES = rule(
    rf"(?:(?<![\w.,])([123])\s)?\b({'|'.join(_BOOKS)})\s(\d{{1,3}}):(\d{{1,3}})(?:\s?-\s?(\d{{1,3}}))?"
    r"(?![\d:%]|\s?[aApP]\.?[mM]\b)",
    _verse,
)
CLOCK = rule(rf"(?<![\w:.])(\d{{1,2}}):(\d\d)(?::(?P<second>\d\d))?(?:\s?{_HALF})?(?![:\d])", _time)
CLOCK_OF_HOURS = rule(rf"(?<![\w:.])(\d{{1,2}})()\s?{_HALF}", _time)
DECADES: list[Rule] = [
    # Behind such a word "30s" are seconds, and so are 45s, for no decade is called forty-fives.
    rule(
        r"(?i)(\b(?:for|after|within|every|wait|takes?|took|another|about)\s)(\d0s)\b", lambda m: f"{m[1]}{m[2][:-1]} s"
    ),
    rule(r"(?<![\w.,])'?(\d0|\d{3}0)s\b", lambda m: decade(int(m[1]))),
]
YEARS: list[Rule] = [
    rule(r"(?<!\w)(1\d{3}|20\d\d)\s?-\s?(1\d{3}|20\d\d)(?![\w.,]\d|\d)",
         lambda m: f"{year(int(m[1]))} to {year(int(m[2]))}"),
    rule(r"(?<![\w.,])(1[1-9]\d\d|20\d\d)([-/])(\d\d)(?![\w%/]|[-.,]\d)", _short_years),
]  # fmt: skip
YEAR = rule(r"(?<![\w.,$])(1[1-9]\d\d|20\d\d)(?![\w%]|[.,]\d)", lambda m: year(int(m[1])))

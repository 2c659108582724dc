"""Figures in a text and how each is said: (pattern, function) pairs in the order they are tried.

Dates before fractions, money before numbers, years before other four-figure numbers; the last rule reads any number
that is left. A figure no rule knows, such as 3:4:5 glued to letters, is read in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron_most.synthesize.numbers import cardinal, decade, decimal, digits, ordinal, year

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "|".join(_MONTHS)
_SCALE = r"(?:\s?(thousand|million|billion|trillion|[kK]|[mM]n|[bB]n|[tT]n|[MB]|(?<=\d)[mb])\b)?"
_SCALES = {"k": "thousand", "mn": "million", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_MONEY = {
    "$": ("dollar", "cent"), "US$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"),
    "¥": ("yen", ""), "₹": ("rupee", "paisa"), "USD": ("dollar", "cent"), "EUR": ("euro", "cent"),
    "GBP": ("pound", "penny"),
}  # fmt: skip
_PLURALS = {"penny": "pence", "yen": "yen", "paisa": "paise", "foot": "feet", "inch": "inches", "hertz": "hertz"}
_UNITS = {
    "km/h": "kilometer per hour", "kph": "kilometer per hour", "mph": "mile per hour", "m/s": "meter per second",
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "nm": "nanometer", "m": "meter", "mi": "mile",
    "ft": "foot", "yd": "yard", "kg": "kilogram", "mg": "milligram", "g": "gram", "lbs": "pound",
    "lb": "pound", "oz": "ounce", "l": "liter", "L": "liter", "ml": "milliliter", "mL": "milliliter", "GB": "gigabyte",
    "MB": "megabyte", "KB": "kilobyte", "TB": "terabyte", "GHz": "gigahertz", "MHz": "megahertz", "kHz": "kilohertz",
    "Hz": "hertz", "kW": "kilowatt", "W": "watt", "V": "volt", "ms": "millisecond", "hrs": "hour", "hr": "hour",
    "h": "hour", "min": "minute", "mins": "minute", "sec": "second", "secs": "second", "s": "second",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "° C": "degree Celsius", "° F": "degree Fahrenheit",
    "°": "degree", "kcal": "kilocalorie", "cal": "calorie", "tbsp": "tablespoon", "tsp": "teaspoon", "¢": "cent",
}  # fmt: skip
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_OPERATORS = {"+": "plus", "-": "minus", "*": "times", "×": "times", "/": "divided by", "÷": "divided by"}
_COMPARISONS = {
    ">": "is more than", "<": "is less than", ">=": "is at least", "≥": "is at least", "<=": "is at most",
    "≤": "is at most",
}  # fmt: skip
_SET_PHRASES = {"24/7": "twenty-four seven", "9/11": "nine eleven"}
_FRACTIONS = {"2": ("half", "halves"), "3": ("third", "thirds"), "4": ("quarter", "quarters")}


def _date(year_text: str, month: str, day: str) -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return f"{digits(year_text)}, {digits(month)}, {digits(day)}"
    said = f"{_MONTHS[int(month) - 1]} {ordinal(int(day))}"
    return f"{said}, {year(int(year_text) + (2000 if len(year_text) == 2 else 0))}" if year_text else said


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
        said += f" and {_with_unit(str(int(second)), 'second')}"
    return said + (f" {half[0]} m" if half else "")


def _with_unit(count: str, unit: str) -> str:
    """count and a unit, which is plural but for one; "per hour" and "Celsius" stay as they are."""
    head, _, rest = unit.partition(" ")
    if count != "1":
        head = _PLURALS.get(head, head if head.endswith("hertz") else f"{head}s")
    return f"{decimal(count)} {head}" + (f" {rest}" if rest else "")


def _money(sign: str, number: str, scale: str | None) -> str:
    large, small = _MONEY[sign]
    if scale:
        return f"{decimal(number)} {_SCALES.get(scale.lower(), scale.lower())} {_PLURALS.get(large, large + 's')}"
    whole, _, rest = number.partition(".")
    if len(rest) != 2 or not small:
        return _with_unit(number, large)
    said = [] if int(whole.replace(",", "")) == 0 and int(rest) else [_with_unit(whole, large)]
    if int(rest):
        said.append(_with_unit(str(int(rest)), small))
    return " ".join(said)


def _amounts(found: re.Match[str]) -> str:
    """$5-10 million -> five to ten million dollars; $3.50-$4 -> three dollars fifty cents to four dollars."""
    sign, low, scale, high, its_scale = (found[name] for name in ("sign", "low", "of_low", "high", "of_high"))
    first = decimal(low) if "." not in low and scale is None else _money(sign, low, scale)
    return f"{first} to {_money(sign, high, its_scale)}"


def _sum(found: re.Match[str]) -> str:
    """10 - 3 = -> ten minus three =: where an equals sign stands beside it, a hyphen is no range, a slash no "or"."""
    parts = re.split(rf"({_NUMBER})", found[0])
    return "".join(
        decimal(part) if number % 2 else (f" {_OPERATORS[part.strip()]} " if part.strip() in _OPERATORS else part)
        for number, part in enumerate(parts)
    )


def _compared(found: re.Match[str]) -> str:
    return f"{found[1]} {_COMPARISONS[found[2]]} "


def _fraction(found: re.Match[str]) -> str:
    above, below = found[2], found[3]
    if int(below) == 0:
        return f"{cardinal(int(above))} over zero"
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


def _phone(found: re.Match[str]) -> str:
    return ", ".join(digits(part) for part in re.findall(r"\d+", found[0]))


def _power(count: str) -> str:
    return f"to the power of {'minus ' * count.startswith('-')}{cardinal(int(count.strip('+-')))}"


def _short_years(found: re.Match[str]) -> str:
    """1960-70 -> nineteen sixty to nineteen seventy."""
    first, last = int(found[1]), int(found[1][:2] + found[2])
    return f"{year(first)} to {year(last) if last > first else cardinal(int(found[2]))}"


def _measure(found: re.Match[str]) -> str:
    said = _with_unit(found[1], _UNITS[found[2]])
    if not found[3]:
        return said
    count, _, unit = said.rpartition(" ")
    return f"{count} {'square' if found[3] == '^2' else 'cubic'} {unit}"


def _years(found: re.Match[str]) -> str:
    return f"{year(int(found[1]))} to {year(int(found[2]))}"


def _range(found: re.Match[str]) -> str:
    return f"{decimal(found[1])} to {_with_unit(found[2], _UNITS[found[3]])}"


def _rule(pattern: str, said: Callable[[re.Match[str]], str], flags: int = 0) -> Rule:
    return re.compile(pattern, flags), said


_START, _END = r"(?<![\w.,])", r"(?![\w]|[.,]\d)"
_HALF = r"(?P<half>[aApP]\.?[mM]\b\.?)"
_SIGN = r"(?:US\$|[$£€¥₹]|\b(?:USD|EUR|GBP)(?=\s?\d))"
_DOT = r"(?:\.(?=\s+[a-z\d]))?"  # of an abbreviation, where the sentence goes on
_OPERATOR = r"[-+*/×÷]"
FIGURES: list[Rule] = [
    _rule(rf"{_START}({'|'.join(map(re.escape, _SET_PHRASES))}){_END}(?!/)", lambda m: _SET_PHRASES[m[1]]),
    _rule(r"(?<=\d)(\s?[aApP](?:\.|\s)?[mM]\.?)\s?-\s?(?=\d)", lambda m: f"{m[1]} to "),
    _rule(
        rf"{_START}{_NUMBER}(?:\s?{_OPERATOR}\s?{_NUMBER}){{1,8}}(?=\s?=)"
        rf"|(?<==)\s?{_NUMBER}(?:\s{_OPERATOR}\s{_NUMBER}){{1,8}}{_END}",
        _sum,
    ),
    _rule(rf"{_START}({_NUMBER})\s?([<>]=?|[≤≥])\s?(?=[\w$£€-])", _compared),
    _rule(r"(?<!\w)(\w+)\s([<>]=?|[≤≥])\s(?=-?\d)", _compared),
    _rule(rf"{_START}({_NUMBER})[eE]([-+]?\d{{1,3}})\b", lambda m: f"{decimal(m[1])} times ten {_power(m[2])}"),
    _rule(rf"{_START}(\d{{4}})-(\d\d?)-(\d\d?){_END}", lambda m: _date(m[1], m[2], m[3])),
    _rule(rf"{_START}(\d\d?)/(\d\d?)/(\d{{4}}|\d\d){_END}", lambda m: _date(m[3], m[1], m[2])),
    _rule(rf"\b({_MONTH})\s+(\d{{1,2}})(?:st|nd|rd|th)?(?!\d|:)(?:,?\s+(\d{{4}})\b)?", _named_date),
    _rule(
        rf"(?:\b[Tt]he\s+)?{_START}(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})(?:,?\s+(\d{{4}})\b)?", _named_date
    ),
    _rule(rf"\b({_MONTH}),?\s+(\d{{4}}){_END}", lambda m: f"{m[1]} {year(int(m[2]))}"),
    _rule(r"\+?\d{0,3}[ -]?\(\d{3}\) ?\d{3}-\d{4}\b|(?<![\w-])(?:\+?\d{1,3}-)?\d{3}-\d{3,4}-\d{4}\b", _phone),
    _rule(r"(?i)(\b(?:call|dial|phone|ring|text|number|tel)\b[^\d\n]{0,12})(\d{3}-\d{4})\b(?!-)",
          lambda m: m[1] + ", ".join(map(digits, m[2].split("-")))),
    _rule(r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-])", _phone),
    _rule(rf"(?<![\w:.])(\d{{1,2}}):(\d\d)(?::(?P<second>\d\d))?(?:\s?{_HALF})?(?![:\d])", _time),
    _rule(r"(?<![\w.])(\d)'\s?(\d{1,2})(?:\"|''|\b)", lambda m: f"{cardinal(int(m[1]))} foot {cardinal(int(m[2]))}"),
    _rule(r"(?<![\w:.])(\d{1,3}):(\d{1,3})(?![:\d])", lambda m: f"{cardinal(int(m[1]))} to {cardinal(int(m[2]))}"),
    _rule(rf"(?<![\w:.])(\d{{1,2}})()\s?{_HALF}", _time),
    _rule(
        rf"(?P<sign>{_SIGN})\s?(?P<low>{_NUMBER}){_SCALE.replace('(t', '(?P<of_low>t', 1)}\s?-\s?(?:(?P=sign)\s?)?"
        rf"(?P<high>{_NUMBER}){_SCALE.replace('(t', '(?P<of_high>t', 1)}{_END}",
        _amounts,
    ),
    _rule(rf"({_SIGN})\s?({_NUMBER}){_SCALE}", lambda m: _money(m[1], m[2], m[3])),
    _rule(rf"{_START}({_NUMBER})\s?(USD|EUR|GBP|€|£)(?!\w)", lambda m: _money(m[2], m[1], None)),
    _rule(rf"{_START}({_NUMBER})\s?-\s?({_NUMBER})\s?%", lambda m: f"{decimal(m[1])} to {decimal(m[2])} percent"),
    _rule(rf"({_NUMBER})\s?%", lambda m: f"{decimal(m[1])} percent"),
    _rule(r"(?<!\w)['’]?(\d\d|\d{3}0)s\b", lambda m: decade(int(m[1]))),
    _rule(r"\b(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1].replace(",", "")))),
    _rule(r"(?<!\w)(1\d{3}|20\d\d)\s?-\s?(1\d{3}|20\d\d)(?![\w.,]\d|\d)", _years),
    _rule(r"(?<![\w.,])(1[1-9]\d\d|20\d\d)-(\d\d)(?![\w%]|[-.,]\d)", _short_years),
    _rule(r"(?<![\w/.])(?:(\d+)\s+)?(\d{1,3})/(\d{1,3})(?![\d/])", _fraction),
    _rule(rf"{_START}({_NUMBER})\s?/\s?({_NUMBER}){_END}", lambda m: f"{decimal(m[1])} over {decimal(m[2])}"),
    # "in" is an inch where nothing else can be meant: 1 in 5, and 1990 in Rome, are not lengths.
    _rule(rf"{_START}({_NUMBER})(?:in\b{_DOT}|\s?in\.(?=\s+[a-z\d,;]))", lambda m: _with_unit(m[1], "inch")),
    _rule(rf"{_START}(\d+)\s?ft\.?\s(\d+)\s?in\b{_DOT}",
          lambda m: f"{_with_unit(m[1], 'foot')} {_with_unit(m[2], 'inch')}"),
    _rule(rf"(?<![\w.,])-({_NUMBER})\s?({_UNIT})(?![A-Za-z])", lambda m: f"minus {_with_unit(m[1], _UNITS[m[2]])}"),
    _rule(rf"{_START}({_NUMBER})\s?-\s?({_NUMBER})\s?({_UNIT})(?![A-Za-z]){_DOT}", _range),
    _rule(rf"{_START}({_NUMBER})\s?({_UNIT})(\^[23])?(?![A-Za-z]){_DOT}", _measure),
    _rule(rf"{_START}({_NUMBER})\s?-\s?({_NUMBER}){_END}", lambda m: f"{decimal(m[1])} to {decimal(m[2])}"),
    _rule(rf"{_START}({_NUMBER})\s?x\s?(?=\d)", lambda m: f"{decimal(m[1])} by "),
    _rule(rf"{_START}({_NUMBER})x\b", lambda m: f"{decimal(m[1])} times"),
    _rule(r"(?<![\w.])\d+(?:\.\d+){2,}", lambda m: " point ".join(cardinal(int(part)) for part in m[0].split("."))),
    _rule(r"(?<=\w)\^2(?!\d)", lambda m: " squared"),
    _rule(r"(?<=\w)\^3(?!\d)", lambda m: " cubed"),
    _rule(r"(?<=\w)\^([-+]?\d{1,9})", lambda m: f" {_power(m[1])}"),
    _rule(rf"(?<![\w.,])-({_NUMBER})", lambda m: f"minus {decimal(m[1])}"),
    _rule(r"(?<![\w.,$])(1[1-9]\d\d|20\d\d)(?![\w%]|[.,]\d)", lambda m: year(int(m[1]))),
    _rule(rf"{_START}({_NUMBER})([kMB]|bn|mn|tn)\b", lambda m: f"{decimal(m[1])} {_SCALES[m[2].lower()]}"),
    _rule(r"(?<![\w.])\.\d+", lambda m: decimal(m[0])),
    _rule(rf"(?<![\w]){_NUMBER}(?!\w)", _number),
    _rule(r"(?<!\w)\w*\d\w*", _glued),
]  # fmt: skip

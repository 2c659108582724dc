"""Money, units and rates: $5-10 million, 3 mg/kg, 900 sq ft, $30/month.

Rules for the number before a unit; a unit alone is read only in a rate ("in km/h"), where it can be nothing else.
"""

from __future__ import annotations

import re

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.numbers import decimal
from megatron_most.synthesize.rules import DOT, END, NUMBER, START, Rule, rule

_SCALE = r"(?:\s?(thousand|million|billion|trillion|[kK]|[mM]n|[bB]n|[tT]n|[MB]|(?<=\d)[mb])\b)?"
SCALES = {"k": "thousand", "mn": "million", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_MONEY = {
    "$": ("dollar", "cent"), "US$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"),
    "¥": ("yen", ""), "₹": ("rupee", "paisa"), "USD": ("dollar", "cent"), "EUR": ("euro", "cent"),
    "GBP": ("pound", "penny"),
}  # fmt: skip
_PLURALS = {"penny": "pence", "yen": "yen", "paisa": "paise", "foot": "feet", "inch": "inches"}
_UNITS = {
    "km/h": "kilometer per hour", "kph": "kilometer per hour", "mph": "mile per hour", "m/s": "meter per second",
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "nm": "nanometer", "m": "meter", "mi": "mile",
    "ft": "foot", "yd": "yard", "kg": "kilogram", "mg": "milligram", "g": "gram", "lbs": "pound",
    "lb": "pound", "oz": "ounce", "l": "liter", "L": "liter", "dL": "deciliter",
    "ml": "milliliter", "mL": "milliliter", "GB": "gigabyte",
    "MB": "megabyte", "KB": "kilobyte", "TB": "terabyte", "GHz": "gigahertz", "MHz": "megahertz", "kHz": "kilohertz",
    "Hz": "hertz", "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt", "W": "watt", "V": "volt", "mA": "milliampere",
    "Wh": "watt hour", "kWh": "kilowatt hour", "MWh": "megawatt hour", "mAh": "milliampere hour",
    "kbps": "kilobit per second", "Kbps": "kilobit per second", "Mbps": "megabit per second",
    "Gbps": "gigabit per second", "sq ft": "square foot", "sq. ft": "square foot", "sq km": "square kilometer",
    "sq m": "square meter", "sq mi": "square mile", "sq in": "square inch", "sq yd": "square yard",
    "fl oz": "fluid ounce", "fl. oz": "fluid ounce", "ms": "millisecond", "hrs": "hour", "hr": "hour",
    "h": "hour", "min": "minute", "mins": "minute", "sec": "second", "secs": "second", "s": "second",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "° C": "degree Celsius", "° F": "degree Fahrenheit",
    "°": "degree", "kcal": "kilocalorie", "cal": "calorie", "tbsp": "tablespoon", "tsp": "teaspoon", "¢": "cent",
}  # fmt: skip
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_PER = _UNITS | {"mo": "month", "mth": "month", "yr": "year", "y": "year", "wk": "week", "d": "day", "pp": "person"}
_SPANS = (
    "second|minute|hour|day|night|week|month|year|person|capita|s|sec|min|hr|h|wk|mo|yr|lb|kg|oz|pound|gallon|mile|"
    "liter|serving|piece|unit|page"
)
# Rates without a number: both sides are units, and no common English word or abbreviation ("m/s" but not "l/m").
_ALONE = r"(km|mi|mm|cm|m|mg|kg|g|ml|mL|kWh|GB|MB|kcal)/(h|hr|s|sec|min|kg|km|L|ml|mL)"
SIGN = r"(?:US\$|[$£€¥₹]|\b(?:USD|EUR|GBP)(?=\s?\d))"


def with_unit(count: str, unit: str) -> str:
    """count and a unit, which is plural but for one; what follows "per", and "Celsius", stay as they are."""
    if count != "1":
        named, *rest = re.split(r"(?= per | Celsius| Fahrenheit)", unit, maxsplit=1)
        first, blank, last = named.rpartition(" ")
        unit = first + blank + _PLURALS.get(last, last if last.endswith("hertz") else f"{last}s") + "".join(rest)
    return f"{decimal(count)} {unit}"


def _money(sign: str, number: str, scale: str | None) -> str:
    large, small = _MONEY[sign]
    if scale:
        return f"{decimal(number)} {SCALES.get(scale.lower(), scale.lower())} {_PLURALS.get(large, large + 's')}"
    whole, _, rest = number.partition(".")
    if len(rest) != 2 or not small:
        return with_unit(number, large)
    said = [] if int(whole.replace(",", "")) == 0 and int(rest) else [with_unit(whole, large)]
    if int(rest):
        said.append(with_unit(str(int(rest)), small))
    return " ".join(said)


def _amounts(found: re.Match[str]) -> str:
    """$5-10 million -> five to ten million dollars; $3.50-$4 -> three dollars fifty cents to four dollars."""
    sign, low, scale, high, its_scale = (found[name] for name in ("sign", "low", "of_low", "high", "of_high"))
    first = decimal(low) if "." not in low and scale is None else _money(sign, low, scale)
    return f"{first} to {_money(sign, high, its_scale)}"


def _measure(found: re.Match[str]) -> str:
    said = with_unit(found[1], _UNITS[found[2]])
    if not found[3]:
        return said
    count, _, unit = said.rpartition(" ")
    return f"{count} {'square' if found[3] == '^2' else 'cubic'} {unit}"


def _per(found: re.Match[str]) -> str:
    """What is counted stays for the rules that follow; "/kg/day" -> " per kilogram per day"."""
    names = [name.strip() for name in found[2].split("/")[1:]]
    return found[1] + "".join(f" per {_PER.get(name, name)}" for name in names)


def _rate_alone(found: re.Match[str]) -> str:
    return with_unit("2", _UNITS[found[1]]).split(" ", 1)[1] + f" per {_PER[found[2]]}"


def _refused(found: re.Match[str]) -> str:
    raise RowError("not speakable", f"'/' in {found.string[max(found.start() - 20, 0) : found.end() + 20].strip()!r}")


_DENOMINATORS = r"((?:\s?/\s?(?:(?:sq|fl)\.? )?[A-Za-z]+\b)+)"
RATES: list[Rule] = [
    rule(rf"({SIGN}\s?{NUMBER}{_SCALE.replace('(t', '(?:t', 1)}){_DENOMINATORS}", _per),
    rule(rf"({START}{NUMBER}\s?(?:USD|EUR|GBP|€|£|%)){_DENOMINATORS}", _per),
    rule(rf"({START}{NUMBER}\s?(?:{_UNIT})(?:\^[23])?){_DENOMINATORS}", _per),
    rule(rf"({START}{NUMBER}[kM]?(?:\s(?!day/night)[a-z]{{3,}})?)(\s?/\s?(?:{_SPANS})\b)", _per),
    rule(rf"(?<![\w/.]){_ALONE}(?![\w/])", _rate_alone),
]
MONEY: list[Rule] = [
    # A minus before the sign, or behind it, is of the amount.
    rule(rf"(?<![\w.,)$£€%])-(?={SIGN}\s?\d)", lambda m: "minus "),
    rule(
        rf"(?P<sign>{SIGN})\s?(?P<low>{NUMBER}){_SCALE.replace('(t', '(?P<of_low>t', 1)}\s?-\s?(?:(?P=sign)\s?)?"
        rf"(?P<high>{NUMBER}){_SCALE.replace('(t', '(?P<of_high>t', 1)}{END}",
        _amounts,
    ),
    rule(rf"({SIGN})\s?({NUMBER}){_SCALE}", lambda m: _money(m[1], m[2], m[3])),
    rule(rf"{START}({NUMBER})\s?(USD|EUR|GBP|€|£)(?!\w)", lambda m: _money(m[2], m[1], None)),
    rule(rf"{START}({NUMBER})\s?-\s?({NUMBER})\s?%", lambda m: f"{decimal(m[1])} to {decimal(m[2])} percent"),
    rule(rf"(?<![\w.,)])-({NUMBER})\s?%", lambda m: f"minus {decimal(m[1])} percent"),
    rule(rf"({NUMBER})\s?%", lambda m: f"{decimal(m[1])} percent"),
]
SIDES: list[Rule] = [
    # Before the units, so that the last of "10x20 cm" is seen; "3 × 4" of nothing is a product.
    rule(rf"{START}({NUMBER})\s?x\s?(?=\d)", lambda m: f"{decimal(m[1])} by "),
    rule(rf"{START}({NUMBER})\s?×\s?(?={NUMBER}\s?(?:[x×]\s?{NUMBER}\s?)?(?:{_UNIT})(?![A-Za-z]))",
         lambda m: f"{decimal(m[1])} by "),
    rule(rf"{START}({NUMBER})'\s?[x×]\s?({NUMBER})'",
         lambda m: f"{with_unit(m[1], 'foot')} by {with_unit(m[2], 'foot')}"),
    rule(rf"{START}({NUMBER}\s?(?:{_UNIT}))\s?[x×]\s?(?=\d)", lambda m: f"{m[1]} by "),
]  # fmt: skip
MEASURES: list[Rule] = [
    # "in" is an inch where nothing else can be meant: 1 in 5, and 1990 in Rome, are not lengths.
    rule(rf"{START}({NUMBER})(?:in\b{DOT}|\s?in\.(?=\s+[a-z\d,;]))", lambda m: with_unit(m[1], "inch")),
    rule(rf"{START}(\d+)\s?ft\.?\s(\d+)\s?in\b{DOT}",
         lambda m: f"{with_unit(m[1], 'foot')} {with_unit(m[2], 'inch')}"),
    rule(rf"(?<![\w.,])-({NUMBER})\s?({_UNIT})(?![A-Za-z])", lambda m: f"minus {with_unit(m[1], _UNITS[m[2]])}"),
    rule(rf"{START}({NUMBER})\s?-\s?({NUMBER})\s?({_UNIT})(?![A-Za-z]){DOT}",
         lambda m: f"{decimal(m[1])} to {with_unit(m[2], _UNITS[m[3]])}"),
    rule(rf"{START}({NUMBER})\s?({_UNIT})(\^[23])?(?![A-Za-z]){DOT}", _measure),
    # All that is a date, a fraction or a rate has been said: 5 GB/2 is nothing that a rule knows.
    rule(r"/(?=\s?[\d$£€])", _refused),
]  # fmt: skip

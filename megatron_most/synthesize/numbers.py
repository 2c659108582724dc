"""Numbers as English words: cardinals, ordinals, years, decimals, digits one by one.

American wording without "and": 101 is "one hundred one". Whole numbers beyond the words for them are read digit by
digit, which is what a speaker does too.
"""

from __future__ import annotations

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ["", "thousand", "million", "billion", "trillion", "quadrillion"]
_MOST = 1000 ** len(_SCALES)
_IRREGULAR = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
NUMBER_WORDS = frozenset([*_ONES, *_TENS, *_SCALES[1:], "hundred", "point"])


def cardinal(number: int) -> str:
    """1234 -> one thousand two hundred thirty-four."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number >= _MOST:
        return digits(str(number))
    if number < 1000:
        return _below_1000(number)
    groups = []
    for scale in _SCALES:
        number, part = divmod(number, 1000)
        if part:
            groups.append(f"{_below_1000(part)} {scale}".strip())
    return " ".join(reversed(groups))


def _below_1000(number: int) -> str:
    if number < 20:
        return _ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return _TENS[ten] + (f"-{_ONES[one]}" if one else "")
    hundred, rest = divmod(number, 100)
    return f"{_ONES[hundred]} hundred" + (f" {_below_1000(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """21 -> twenty-first."""
    words = cardinal(number)
    at = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[at:]
    if last in _IRREGULAR:
        return words[:at] + _IRREGULAR[last]
    return words[:at] + (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")


def year(number: int) -> str:
    """1889 -> eighteen eighty-nine; 1905 -> nineteen oh five; 2007 -> two thousand seven; 1900 -> nineteen hundred."""
    century, rest = divmod(number, 100)
    if not 10 <= century <= 99 or century % 10 == 0 and rest < 10:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def decade(number: int) -> str:
    """1990 -> nineteen nineties; 80 -> eighties."""
    words = cardinal(number) if number < 100 else year(number)
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def digits(text: str) -> str:
    """0451 -> zero four five one; whatever is no digit parts nothing."""
    return " ".join(_ONES[int(sign)] for sign in text if sign.isdecimal())


def decimal(text: str) -> str:
    """3.14 -> three point one four; 1,200.5 -> one thousand two hundred point five; .5 -> zero point five."""
    whole, _, rest = text.replace(",", "").partition(".")
    return cardinal(int(whole or "0")) + (f" point {digits(rest)}" if rest else "")

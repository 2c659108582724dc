"""Named text normalisations: the name a user chooses is kept in the manifest's header and says what was done to it.

`find_normaliser(name)` gives the function; `transcript` applies it to one transcript and refuses what is no speech: an
empty text, or one of tags only: "<unk>", "(laughter)", "...", "SIL". Written text is held to less: "[1, 2]" may be an
answer, so only special strings of tokenizers count as tags there (`written_text`).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError

Normaliser = Callable[[str], str]

# Control characters that are no white space, and marks that show nothing. Joiners (U+200C, U+200D) stay: scripts of
# India and Persian are misspelt without them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_QUOTES = re.compile('"+')
_BRACKETED = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\([^()]*\)")
_DEEPEST = 4  # brackets within brackets; without a bound a long row of them would take its length squared
_SPOKEN = re.compile("[^\\W_]|[\ud800-\udfff]")  # half a character too: rows.py tells it as what it is
_SILENCES = {"SIL", "SPN", "NSN"}  # words of Kaldi's lexicons for silence and noise
_SPECIALS = re.compile(r"(?:<[|｜][^<>|｜]{1,64}[|｜]>|\[Hu[0-9]+\]|</?s>|<unk>|<pad>|\s)+")


def unchanged(text: str) -> str:
    """The text as published."""
    return text


def unicode_nfc(text: str) -> str:
    """Composed characters, without control characters and invisible marks; line breaks and spaces stay."""
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub("", unicodedata.normalize("NFC", text))


def whitespace(text: str) -> str:
    """`unicode`, with every run of white space one space and none at the ends."""
    return " ".join(unicode_nfc(text).split())


def lower(text: str) -> str:
    """`whitespace` in lower case; for corpora printed in capitals."""
    return whitespace(text).lower()


def commonvoice(text: str) -> str:
    """`whitespace`, and straight double quotes put right.

    The lists of Common Voice hold sentences as spreadsheets quote them (in quotes, inner quotes doubled), sentences in
    a pair of quotes, and quotes that lost their partner. Quoting and pairs around the whole go; of an odd number one
    goes from the end that has it, or else all go.
    """
    text = whitespace(text)
    while (mended := _mend_quotes(text)) != text:  # one removal can show the next; each makes the text shorter
        text = mended
    return text


def _mend_quotes(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', ""):
        return text[1:-1].replace('""', '"').strip()
    text = _QUOTES.sub('"', text)
    if text.count('"') % 2:
        if text.startswith('"'):
            return text[1:].strip()
        return text[:-1].strip() if text.endswith('"') else " ".join(text.replace('"', "").split())
    return text


@functools.cache
def _whisper_english() -> Normaliser:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()  # type: ignore[no-any-return]


@functools.cache
def _whisper_basic() -> Normaliser:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()  # type: ignore[no-any-return]


def whisper_english(text: str) -> str:
    """Whisper's normaliser for English: lower case, no punctuation, numbers and spellings made alike."""
    return _whisper_english()(text).strip()


def whisper_basic(text: str) -> str:
    """Whisper's normaliser for any language: lower case, no punctuation."""
    return _whisper_basic()(text).strip()


NORMALISATIONS: dict[str, Normaliser] = {
    "none": unchanged,
    "unicode": unicode_nfc,
    "whitespace": whitespace,
    "lower": lower,
    "commonvoice": commonvoice,
    "whisper-english": whisper_english,
    "whisper-basic": whisper_basic,
}


def find_normaliser(name: str) -> Normaliser:
    """The function of that name."""
    try:
        return NORMALISATIONS[name]
    except KeyError:
        raise DataError(f"normalisation = {name!r}: unknown; choose one of {', '.join(NORMALISATIONS)}") from None


def transcript(text: object, normalise: Normaliser) -> str:
    """What is spoken, normalised. RowError "missing text" or "tags only"."""
    found = _present(text, normalise)
    if not (_has_words(str(text)) and _has_words(found)):  # before too: normalised, SIL may be a word like others
        raise RowError("tags only", found[:80])
    return found


def _has_words(text: str) -> bool:
    """Whether a letter or digit is outside brackets, in a word that is not a silence."""
    for _ in range(_DEEPEST):
        if (text := _BRACKETED.sub(" ", before := text)) == before:
            break
    return any(word not in _SILENCES and _SPOKEN.search(word) for word in text.split())


def written_text(text: object, normalise: Normaliser) -> str:
    """A text that is read, not heard, normalised. RowError "missing text", or "tags only" for special strings."""
    text = _present(text, normalise)
    if _SPECIALS.fullmatch(text):
        raise RowError("tags only", text[:80])
    return text


def _present(text: object, normalise: Normaliser) -> str:
    if text is None or text == "":
        raise RowError("missing text")
    if not isinstance(text, str):
        raise RowError("malformed row", f"the text is a {type(text).__name__}")
    text = normalise(text)
    if not text or text.isspace():
        raise RowError("missing text")
    return text

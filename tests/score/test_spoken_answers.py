"""Spoken answers against UltraEval-Audio's exist-match and exact-match: the columns are what its functions gave."""

from __future__ import annotations

import pytest

from megatron_most.errors import DataError
from megatron_most.score import exact_match, exist_match

CASES = [  # reference answers, what was said, exist-match, exact-match
    (["Paris"], "The capital is paris.", True, False),
    (["Paris"], "parisian food", False, False),
    (["Paris"], "Paris!", True, True),
    (["New York City", "NYC"], "I think it is nyc, yes", True, False),
    (["café"], "the cafe\u0301 is open", True, False),
    (["cafe"], "the café is open", False, False),
    (["3.5"], "about 3.5 meters", True, False),
    (["35"], "about 3.5 meters", False, False),
    (["Dr. No"], "the film was Dr No", False, False),
    (["Dr. No"], "the film was DR. NO!", True, False),
    (["the beatles"], "Beatles", False, True),
    (["O'Hare"], "o hare airport", False, False),
    (["O'Hare"], "at o'hare", True, False),
    (["北京"], "首都是北京", False, False),
    (["北京"], "首都 是 北京 。", True, False),
    (["a_b"], "x a_b", True, False),
    (["$5"], "five dollars: $5", True, False),
    (["x\u200by"], "x\u200by z", True, False),
    (["X"], "", False, False),
    (["हिन्दी"], "यह हिन्दी है", True, False),
    (["Straße"], "STRASSE", False, False),
    (["½"], "½ cup", True, False),
]


@pytest.mark.parametrize(("answers", "said", "exists", "is_exact"), CASES)
def test_matches_are_those_of_ultraeval_audio(answers, said, exists, is_exact):
    assert exist_match(answers, said) is exists
    assert exact_match(answers, said) is is_exact


@pytest.mark.parametrize(
    ("answers", "said", "is_exact"),
    [
        (["A"], "", False),
        (["A"], "...", False),
        (["A"], "A.", True),
        (["A"], "the", False),
        (["The The"], "the the", True),
        (["+"], "+", True),
        (["+"], "-", False),
        (["+"], "", False),
        (["A", "B"], "the B", True),
    ],
)
def test_silence_is_no_answer_and_an_answer_of_articles_or_signs_alone_is_itself(answers, said, is_exact):
    """UltraEval-Audio's are all nothing, and equal; here it is left."""
    assert exact_match(answers, said) is is_exact


@pytest.mark.parametrize("match", [exact_match, exist_match])
def test_a_letter_is_the_same_however_it_is_spelt(match):
    composed, decomposed = "caf\u00e9 \u00e0 la carte", "cafe\u0301 a\u0300 la carte"
    assert match([composed], decomposed) and match([decomposed], composed)
    assert not match(["\u00e0 la"], "\u00e9 la") and not match(["a\u0300 la"], "la")  # no article


def test_an_answer_without_a_sign_is_refused():
    with pytest.raises(DataError, match="holds no letter"):
        exist_match(["", "Paris"], "anything")

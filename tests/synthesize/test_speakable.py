"""Written English becomes spoken English: every figure a word, every sign said or gone, or the text refused."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.english import check_english
from megatron_most.synthesize.numbers import cardinal, decade, ordinal, year
from megatron_most.synthesize.speakable import speakable, spoken_english
from megatron_most.synthesize.spoken_style import contracted, first_sentences

SPOKEN = [
    # numbers
    ("It has 7 parts.", "It has seven parts."),
    ("I paid for 1,234 of them.", "I paid for one thousand two hundred thirty-four of them."),
    ("about 3.14 or .5", "about three point one four or zero point five"),
    ("Agent 007", "Agent zero zero seven"),
    ("-3 degrees", "Minus three degrees"),
    ("1/2, 3/4 and 2 1/2", "One half, three quarters and two and one half"),
    ("pages 5-10", "pages five to ten"),
    ("a 3:1 ratio", "a three to one ratio"),
    ("version 3.11.2", "version three point eleven point two"),
    ("vitamin B12 and 5G", "vitamin B twelve and five G"),
    ("2M people and 3k more", "Two million people and three thousand more"),
    # Roman numerals, and what only looks like them
    ("Louis XIV of France, Pope John XXIII", "Louis the fourteenth of France, Pope John the twenty-third"),
    ("Henry VIII's wives and Elizabeth II", "Henry the eighth's wives and Elizabeth the second"),
    ("Chapter IV, Act I, Scene II", "Chapter four, Act one, Scene two"),
    ("World War I began, World War II ended", "World War one began, World War two ended"),
    ("Super Bowl LIX and Apollo XI", "Super Bowl fifty-nine and Apollo eleven"),
    ("the XX century, Rocky III", "the twentieth century, Rocky three"),
    ("Mary I think, but Mary I, queen", "Mary I think, but Mary the first, queen"),
    ("The IV drip, size XL, a MIX of LCD", "The IV drip, size XL, a MIX of LCD"),
    ("Grade C, Section L and John V. Smith", "Grade C, Section L and John V. Smith"),
    ("I did, and Malcolm X did", "I did, and Malcolm X did"),
    # ordinals, dates, times
    ("the 1st, 2nd, 3rd, 12th and 21st", "the first, second, third, twelfth and twenty-first"),
    ("on 2024-03-15.", "on March fifteenth, twenty twenty-four."),
    ("on 3/4/2024", "on March fourth, twenty twenty-four"),
    ("on 15 March 2024 or March 16th", "on March fifteenth, twenty twenty-four or March sixteenth"),
    ("on Feb. 3", "on February third"),
    ("in 1889, 1905, 2007 and 2010", "in eighteen eighty-nine, nineteen oh five, two thousand seven and twenty ten"),
    ("from 1939-1945", "from nineteen thirty-nine to nineteen forty-five"),
    ("the 1990s and the '80s", "the nineteen nineties and the eighties"),
    ("at 10:30 am, at 5pm, at 14:05", "at ten thirty a m, at five p m, at fourteen oh five"),
    ("call 555-123-4567", "call five five five, one two three, four five six seven"),
    # money and measures
    ("$3.50, $1 and $0.99", "Three dollars fifty cents, one dollar and ninety-nine cents"),
    ("£1,000 or €2.5 million", "One thousand pounds or two point five million euros"),
    ("5% to 7-8%", "Five percent to seven to eight percent"),
    ("25°C, 100 km/h and 3kg", "Twenty-five degrees Celsius, one hundred kilometers per hour and three kilograms"),
    ("1 km², 10 m^3", "One square kilometer, ten cubic meters"),
    ("-5°C", "Minus five degrees Celsius"),
    ("he is 6'2\" tall", "he is six foot two tall"),
    ("at 15:30 we met, at 12:00 we ate", "at fifteen thirty we met, at twelve o'clock we ate"),
    ("run in 1:02:03", "run in one oh two and three seconds"),
    ("9am-5pm or 10 a.m.-5 p.m.", "Nine a m to five p m or ten a m to five p m."),
    ("the 22nd of May, 1922", "May twenty-second, nineteen twenty-two"),
    ("from 1960-70", "from nineteen sixty to nineteen seventy"),
    ("on 9/11, 24/7", "on nine eleven, twenty-four seven"),
    (
        "$5-10, $5-10 million, $10K-$20K",
        "Five to ten dollars, five to ten million dollars, ten thousand dollars to twenty thousand dollars",
    ),
    ("£5m, $2bn, 25¢ or USD 20", "Five million pounds, two billion dollars, twenty-five cents or twenty dollars"),
    (
        "1 in 5 people, born 1990 in Rome at 5 in the morning",
        "One in five people, born nineteen ninety in Rome at five in the morning",
    ),
    (
        "5in wide, 3 in. long, 5 ft. tall, 5 ft. 3 in.",
        "Five inches wide, three inches long, five feet tall, five feet three inches.",
    ),
    ("a 3x3 grid, 5x faster", "a three by three grid, five times faster"),
    # sums
    ("10 - 3 = 7 and 10 / 2 = 5", "Ten minus three equals seven and ten divided by two equals five"),
    ("5 > 3, x <= 4, but ≥3", "Five is more than three, x is at most four, but at least three"),
    (
        "10^6, 6.02e23 and 1e-5",
        "Ten to the power of six, six point zero two times ten to the power of twenty-three and "
        "one times ten to the power of minus five",
    ),
    ("~5, ±5 and 1000/7", "About five, plus or minus five and one thousand over seven"),
    (
        "call 555-1234, ISBN 978-3-16-1",
        "call five five five, one two three four, ISBN nine seven eight, three, one six, one",
    ),
    # addresses
    ("see https://www.example.com/about.", "see example dot com slash about."),
    ("see https://en.wikipedia.org/wiki/Tide?x=1&y=2 now", "see en dot wikipedia dot org now"),
    ("mail bob.smith@mail.example.com today", "mail bob dot smith at mail dot example dot com today"),
    ("go to example.org", "go to example dot org"),
    # abbreviations and signs
    ("Dr. Lee and Mrs. Fox, e.g., of St. Ives", "Doctor Lee and Missus Fox, for example, of Saint Ives"),
    ("Rock & roll, i.e. noise, etc.", "Rock and roll, that is noise, et cetera."),
    ("J.R.R. Tolkien of the U.K.", "J R R Tolkien of the U K."),
    ("No. 5 and #7", "Number five and number seven"),
    ("2 + 2 = 4", "Two plus two equals four"),
    ("yes/no and/or never", "yes or no and or never"),
    ("C++ or C#", "C plus plus or C sharp"),
    # punctuation
    ("He (the baker) left... Then\nshe came", "He, the baker, left, Then she came"),
    ("“So,” she said — ‘well’ 😀", "So, she said — well"),
    ("Wait -- what?!", "Wait — what?"),
    # markup
    ("## Title\n\nSome *very* **bold** ~~old~~ text", "Title. Some very bold old text"),
    ("- one\n- two\n1. mix\n2. bake", "One. Two. First, mix. Second, bake."),
    ("a [link](http://x.com/y) and ![a cat](c.png) here[1]", "a link and a cat here"),
    ("> quoted\n\n---\n<b>tag</b> &amp; more", "quoted tag and more"),
    ("use `print` now", "use print now"),
    # less than nothing, groups of thousands, plain seconds
    ("-3% and -$5 million", "Minus three percent and minus five million dollars"),
    ("a fall of -£2.50 at -5 °C", "a fall of minus two pounds fifty pence at minus five degrees Celsius"),
    ("1 000 000 people", "One million people"),
    (
        "100 000 km, 384\u202f400 km and 1\u00a0500 m",
        "One hundred thousand kilometers, three hundred eighty-four thousand four hundred kilometers and "
        "one thousand five hundred meters",
    ),
    ("for €1 500, and 5 100 gram packs", "for one thousand five hundred euros, and five one hundred gram packs"),
    (
        "a 9.58s run, wait 30s, hits of the 80s, in the mid-60s",
        "a nine point five eight seconds run, wait thirty seconds, hits of the eighties, in the mid-sixties",
    ),
    # letters and not a scale
    ("apt 5B, room 12B and gate 5B", "apt five B, room twelve B and gate five B"),
    ("5B users in Room 12", "Five billion users in Room twelve"),
    # fractions that are none, dates the other way round
    ("50/50 odds, 60/40 or 80/20", "Fifty fifty odds, sixty forty or eighty twenty"),
    ("20/20 vision, 10/10 and 9/10", "Twenty twenty vision, ten out of ten and nine tenths"),
    ("on 25/12/2023 or 2024/05/06", "on December twenty-fifth, twenty twenty-three or May sixth, twenty twenty-four"),
    (
        "on 12/25/99 and 12/25/23",
        "on December twenty-fifth, nineteen ninety-nine and December twenty-fifth, twenty twenty-three",
    ),
    # telephones
    ("call me at (212) 555-0100", "call me at two one two, five five five, zero one zero zero"),
    ("call +1 (212) 555-0100", "call plus one, two one two, five five five, zero one zero zero"),
    ("+44 20 7946 0958", "Plus four four, two zero, seven nine four six, zero nine five eight"),
    ("+44 (0)20 7946 0958.", "Plus four four, zero, two zero, seven nine four six, zero nine five eight."),
    (
        "call 212 555 0100 or 212.555.0100",
        "call two one two, five five five, zero one zero zero or two one two, five five five, zero one zero zero",
    ),
    ("Dial *67 first", "Dial star six seven first"),
    ("Call 100 000 people", "Call one hundred thousand people"),
    # comparisons
    ("a != b, a == b", "a is not equal to b, a equals b"),
    ("a>=b and x<=4", "a is at least b and x is at most four"),
    ("a < b, x>y and <5 of >10", "a is less than b, x is more than y and less than five of more than ten"),
    ("Settings > Display > Night", "Settings, Display, Night"),
    ("5~10 people, 2^n", "Five to ten people, two to the power of n"),
    # so much for each
    ("$5/hour or $30 / month", "Five dollars per hour or thirty dollars per month"),
    (
        "5 GB/s, 120 kcal/serving and 3 mg/kg",
        "Five gigabytes per second, one hundred twenty kilocalories per serving and three milligrams per kilogram",
    ),
    (
        "$1.5 million/yr, $5/GB and €2/kWh",
        "One point five million dollars per year, five dollars per gigabyte and two euros per kilowatt hour",
    ),
    ("3 times/week, 60/min and 2%/year", "Three times per week, sixty per minute and two percent per year"),
    ("in km/h, not in mg/kg", "in kilometers per hour, not in milligrams per kilogram"),
    # units
    ("900 sq ft, 1 sq km and 12 fl oz", "Nine hundred square feet, one square kilometer and twelve fluid ounces"),
    (
        "100 Mbps, 1 Gbps, 5 kWh and 4000 mAh",
        "One hundred megabits per second, one gigabit per second, five kilowatt hours and "
        "four thousand milliampere hours",
    ),
    ("10x20 cm, 2 x 3 x 4 m", "Ten by twenty centimeters, two by three by four meters"),
    # ports, verses, files
    (
        "on localhost:8080 and 10.0.0.1:80",
        "on localhost port eight zero eight zero and ten point zero point zero point one port eight zero",
    ),
    ("http://localhost:8080/docs and a.org:443", "localhost slash docs and a dot org port four four three"),
    (
        "Isaiah 40:31, Psalm 119:105 and John 3:16-18",
        "Isaiah forty thirty-one, Psalm one hundred nineteen one hundred five and John three sixteen to eighteen",
    ),
    ("1 Corinthians 13:4 at 13:04", "First Corinthians thirteen four at thirteen oh four"),
    ("open main.py in Node.js", "open main dot py in Node dot js"),
    # small signs
    ("Great :) and fun ;-) love you <3", "Great and fun love you"),
    ("I <3 you", "I love you"),
    ("walk[ed] home, [t]he end, and N/A", "walked home, the end, and not applicable"),
    ("\\*not bold\\* and <https://a.org>", "not bold and a dot org"),
    ("the word(s), class(es) and child(ren)", "the words, classes and children"),
    ("at St. 3/4/2024 and 10 III grades", "at Saint March fourth, twenty twenty-four and ten III grades"),
    ("Home | About", "Home, About"),
    ("if a<b and c>d", "if a is less than b and c is more than d"),
    (
        "50 cents/lb, 5k/month or $300/sq ft",
        "Fifty cents per pound, five thousand per month or three hundred dollars per square foot",
    ),
    ("a 3/4 time, a 4'x8' sheet", "a three four time, a four feet by eight feet sheet"),
    ("call 911 or 1-800-FLOWERS", "call nine one one or one, eight zero zero, FLOWERS"),
    ("on 10.0.0.1:8080/admin", "on ten point zero point zero point one port eight zero eight zero slash admin"),
    ("TCP/IP, 2*3*4 and a 2 m x 3 m room", "TCP IP, two times three times four and a two meters by three meters room"),
    (
        "My phone: +44 20 7946 0958, ask for Bo",
        "My phone: plus four four, two zero, seven nine four six, zero nine five eight, ask for Bo",
    ),
    ("the 2023/24 season", "the twenty twenty-three to twenty twenty-four season"),
]


@pytest.mark.parametrize(("written", "spoken"), SPOKEN, ids=lambda text: text[:24])
def test_written_text_is_said_so(written: str, spoken: str) -> None:
    said = speakable(written)
    assert said == spoken
    assert speakable(said) == said


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("Run this:\n```python\nprint(1)\n```\nDone.", "holds code"),
        ("so `x = f(y)` it is", "holds code"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "holds a table"),
        ("thus $$x^2$$ holds", "holds a formula"),
        ("thus \\frac{1}{2} holds", "holds a formula"),
        ("the sign ☃ is 雪", "not speakable"),
        ("... !!!", "nothing to say"),
        ("😀", "nothing to say"),
        ("he is a f*cking b*tch", "not speakable"),
        ("for $5/2 or 5 GB/2", "not speakable"),
        ("open 24/7/365", "not speakable"),
        ("a fan of *67", "not speakable"),
    ],
)
def test_what_nobody_can_say_is_refused_by_reason(written: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        speakable(written)
    assert caught.value.reason == reason


@pytest.mark.parametrize("written", [written for written, _ in SPOKEN], ids=lambda text: text[:24])
def test_what_was_said_is_english_that_is_said_again_so(written: str) -> None:
    said = speakable(written)
    assert spoken_english(said) == said


def test_code_is_left_out_where_that_is_chosen() -> None:
    assert speakable("Run this:\n```python\nprint(1)\n```\nDone.", drop_code=True) == "Run this: Done."
    assert speakable("so `x = f(y)` it is", drop_code=True) == "so it is"


@pytest.mark.parametrize(
    "foreign",
    [
        "Der Mond zieht das Wasser an, und deshalb steigt das Meer zweimal am Tag an allen Küsten der Welt.",
        "La luna tira de los océanos y por eso el agua sube dos veces cada día en casi todas las costas.",
        "La lune attire les océans, et c'est pour cela que la mer monte deux fois par jour sur nos côtes.",
        "Луна притягивает океаны, и вода поднимается.",
        "月球吸引海水。",
        "القمر يجذب المحيطات",
    ],
)
def test_other_languages_are_refused_as_such(foreign: str) -> None:
    with pytest.raises(RowError) as caught:
        spoken_english(foreign)
    assert caught.value.reason == "not English"


def test_english_with_names_and_loan_words_passes() -> None:
    check_english("We had a café crème in Zürich with Zoë, and it was as good as the one that we had in Málaga.")
    check_english("Yes.")
    check_english("Bees dance, flowers bloom.")
    check_english("Two plus two, ten per day, one plus one, three per week.")


@given(st.text(alphabet=st.sampled_from(list("abcXYZ '\"0123456789.,;:!?-—+*/=#%$€()[]<>_~`|\\\n&@°½²")), max_size=60))
def test_what_comes_out_can_be_said_and_stays_as_it_is(text: str) -> None:
    try:
        said = speakable(text, drop_code=True)
    except RowError:
        return
    assert not any(map(str.isdecimal, said))
    assert set(said) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'.,?!:;— -")
    assert speakable(said) == said


@pytest.mark.parametrize(
    "hostile",
    ["*" * 7_900, "[" * 7_900, "(" * 7_900, "1," * 3_900, "a.b" * 2_600, "<a" * 3_900, "`" * 7_901, "- " * 3_900,
     "_a" * 3_900, "$" * 7_900, "1-" * 3_900, "www." * 1_900, " \n" * 3_900, "a@" * 3_900, "|-" * 3_900],
    ids=lambda text: text[:3],
)  # fmt: skip
def test_no_text_takes_for_ever(hostile: str) -> None:
    begin = time.process_time()
    try:
        speakable(hostile, drop_code=True)
    except RowError:
        pass
    assert time.process_time() - begin < 3


def test_numbers_in_words() -> None:
    assert [cardinal(n) for n in (0, 19, 40, 101, 1000, 1_000_001)] == [
        "zero", "nineteen", "forty", "one hundred one", "one thousand", "one million one",
    ]  # fmt: skip
    assert cardinal(10**18) == " ".join(["one"] + ["zero"] * 18)
    assert [ordinal(n) for n in (1, 5, 9, 20, 33, 100)] == [
        "first", "fifth", "ninth", "twentieth", "thirty-third", "one hundredth",
    ]  # fmt: skip
    assert [year(n) for n in (1066, 1900, 2000, 2019)] == [
        "ten sixty-six", "nineteen hundred", "two thousand", "twenty nineteen",
    ]  # fmt: skip
    assert [decade(n) for n in (1920, 60)] == ["nineteen twenties", "sixties"]


@given(st.integers(0, 10**18 - 1))
def test_every_cardinal_is_words_that_name_it_alone(number: int) -> None:
    def value(words: str) -> int:
        """The number that words say, told another way than they were made."""
        total = part = 0
        ones = {cardinal(n): n for n in range(100)}
        scales = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15}
        for word in words.split():
            if word == "hundred":
                part *= 100
            elif word in scales:
                total, part = total + part * scales[word], 0
            else:
                part += ones[word]
        return total + part

    assert value(cardinal(number)) == number


def test_speech_is_contracted_and_cut_at_sentences() -> None:
    assert contracted("I am sure it is a dog. We do not know, cannot say and will not ask. Let us see.") == (
        "I'm sure it's a dog. We don't know, can't say and won't ask. Let's see."
    )
    assert contracted("what it is, and who I am") == "what it is, and who I am"
    assert first_sentences("One two three. Four five. Six.", 5) == "One two three. Four five."
    assert first_sentences("One two three four.", 2) == "One two three four."

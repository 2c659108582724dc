"""Code that stands in a text without a fence is found, and prose that looks a little like it is still spoken."""

from __future__ import annotations

import contextlib
import time

import pytest

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.codelike import refuse_code
from megatron_most.synthesize.speakable import spoken_english

CODE = [
    # queries
    "You can run SELECT name FROM users for that.",
    "select * from users;",
    "INSERT INTO users VALUES (1)",
    "CREATE TABLE users (id INT)",
    "UPDATE users SET name = 'x'",
    "delete from users where id = 3",
    "SELECT name,\n  age\nFROM users",
    # shells
    "1. pip install numpy\n2. go",
    "sudo apt update",
    "First:\nsudo systemctl restart nginx",
    "apt-get install flite",
    "pip install numpy",
    "Pip install requests",
    "git clone https://github.com/a/b",
    "git commit -m done",
    "git status",
    "rm -rf build",
    "Rm -rf `x`",
    "Then use ls -l to see them",
    "mkdir ~/x",
    "$ make test",
    "cd ..",
    "python train.py",
    "curl https://a.org/x.sh",
    # programs
    "import x",
    "import numpy as np",
    "Try this:\nimport thing\nthing.go",
    "from x import y",
    "From x import y",
    "Import numpy",
    "def f(x, y): return x",
    "class X:\n    pass",
    "for name in sorted(names):\n    go",
    "if ready:\n    count = 3",
    "function add(a, b)",
    "const x = 5",
    "let x = 5;",
    "int x = 5;",
    "x = x + 1;",
    "return x;",
    "return a + b;",
    "#include <stdio.h>",
    "Call console.log(x) there",
    "It is print(x) there",
    "Use my_list.append(3) to add one",
    'Then say print("hello world") to it',
    "It runs close() at the end",
    "so {a: 1} it is",
    "a && b",
    "a || b",
    "std::vector is one",
    "x => x * 2 maps it",
    "a === b",
    "x += 1",
    "x = [1, 2, 3]",
    'print "hello"',
    "npm start",
    "i++;",
    "Use \\n for a new line",
    "bar[0] is the first",
    "x[i] is any",
    "x[1] is the second",
    'the list ["a", "b"]',
    # pages and data
    "<!DOCTYPE html>",
    "<html><body>Hello</body></html>",
    "a <div> is a box",
    "<script>go</script>",
    "a <custom>tag</custom> it is",
    'it is {"name": "Ann"}',
    '"name": "Ann",\n"age": 3',
    # paths
    "look in /etc/passwd for it",
    "save to ~/x/y now",
    "run ./run.sh now",
    "in C:\\Users\\x it is",
    "it is os.path.join there",
]

PROSE = [
    "Import duties rose.",
    "import duties on steel",
    "From here I can see the sea.",
    "From China import duties rose.",
    "Select a seat from the list.",
    "Select one from the menu; where it is does not matter.",
    "Update: we set off.",
    "Delete the letters from him.",
    "Create a table for four.",
    "git gud",
    "Make sure that you come.",
    "make sure of it",
    "class: the best",
    "Class notes:\nthey are long",
    "Return to sender;",
    "For everyone in the room: thank you.",
    "for breakfast:\n  - eggs\n  - toast",
    "If you want:\ncome along",
    "Let x = 5.",
    "It is late (see below) and/or early, either/or.",
    "He/she has the word(s) and the child(ren) of the class(es).",
    "The World Health Organization(WHO) met in Paris(France).",
    "Windows 10 (Home) and 401(k)",
    "- one thing\n- another thing - and more",
    "“Wait” — she said — “I'm coming” -- and left.",
    "That is fun :) but late ;-) you know :D",
    "Find out - if you can - where the cat is.",
    "Cat on the mat. Kill two birds. Touch wood. Echo of it.",
    "Go run along, and go get it.",
    "This is <b>bold</b>, <i>so</i> it is.<br>Next <p>line</p>",
    "A note[1] of it[12] and this[^3]",
    "Menu => Settings => Sound",
    "the 5th class; the 6th grade",
    "Yes / no, on / off, w/o it",
    "She said: “home; sweet; home”",
    "Note: it's due 5/6/2024; pay $5/day.",
    "As Section 2.1(b) says, and mail.uunet.net too.",
    "A heading\n=========\nand its text",
    "Sudo is a program that asks who you are.",
    "Use a function of the state. Define it.",
]


def _reason(text: str, *, drop_code: bool = False) -> str:
    with pytest.raises(RowError) as caught:
        spoken_english(text, drop_code=drop_code)
    return caught.value.reason


@pytest.mark.parametrize("text", CODE)
def test_code_without_a_fence_is_refused(text: str) -> None:
    assert _reason(text) == "holds code"


@pytest.mark.parametrize("text", PROSE)
def test_prose_that_looks_like_code_is_spoken_and_stays(text: str) -> None:
    said = spoken_english(text)
    assert spoken_english(said) == said


@pytest.mark.parametrize("text", ["Name | Age\nAnn | 3", "See:\nName | Age | Town\nAnn | 3 | Rome\nBen | 4 | Bath"])
def test_a_table_without_a_rule_is_a_table(text: str) -> None:
    assert _reason(text) == "holds a table"
    assert _reason(text, drop_code=True) == "holds a table"


@pytest.mark.parametrize("text", ["so f(x) is two", "the area is sin(a)", "it takes O(n) steps"])
def test_a_function_of_mathematics_is_a_formula(text: str) -> None:
    assert _reason(text) == "holds a formula"


def test_lines_of_code_are_left_out_with_what_hangs_on_them() -> None:
    assert spoken_english("Run this:\nimport os\nx = 3\nfor a in range(x):\n    go\nDone.", drop_code=True) == (
        "Run this: Done."
    )
    assert spoken_english("First:\n\nsudo apt update\n$ make test\n\nThat is it.", drop_code=True) == (
        "First: That is it."
    )
    assert spoken_english("It is:\n\nSELECT name\nFROM users;\n\nDone.", drop_code=True) == "It is: Done."


@pytest.mark.parametrize("text", ["Then print(x) shows it", "<html><body>Hello</body></html>", "it is {a: 1} so"])
def test_code_within_a_sentence_is_refused_even_where_code_is_left_out(text: str) -> None:
    assert _reason(text, drop_code=True) == "holds code"


@pytest.mark.parametrize(
    "part",
    ["_", "a(", "f(x,", "x[", "1 000 ", "for a in a(", "a | b\n", "rm a ", "\"a\":", "a.b", "a.bc", "</a ", "/a",
     "SELECT ", "for a in a():", "import a,", "x = ", "return a", "+1 ", "call 12", "1/a", "$1/"],
)  # fmt: skip
def test_no_code_takes_for_ever(part: str) -> None:
    begin = time.process_time()
    for text in (part * (7_900 // len(part)), part.split(" ")[0] + " " + part * (7_800 // len(part))):
        with contextlib.suppress(RowError):
            spoken_english(text, drop_code=True)
        with contextlib.suppress(RowError):
            refuse_code(text)
    assert time.process_time() - begin < 3

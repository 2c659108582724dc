"""The page in a real browser: type, send a sound file, record, read, hear, watch tokens, stop, see what is wrong."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.serve.partners import Parrot, Server, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser here: sudo apt install chromium")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Parrot()) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 900, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.locator("#model", has_text="parrot").wait_for()
    yield page
    expected = [words for words in wrong if "status of 4" in words]  # a refusal that a test provokes
    assert wrong == expected
    context.close()


def wav(seconds: float = 1.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(round(seconds * 16000)) / 5), 16000, format="WAV")
    return file.getvalue()


def last(page: Any) -> Any:
    """The model's last turn, once it has ended."""
    turn = page.locator("li.assistant").last
    turn.locator("xpath=self::*[@data-end]").wait_for()
    return turn


def test_one_types_and_reads_and_sees_each_token(page: Any) -> None:
    page.fill("#words", "hello <b>you</b>")
    page.press("#words", "Enter")
    turn = last(page)
    assert turn.locator(".words").inner_text() == "hello <b>you</b>"  # as text, not as a page
    tokens = turn.locator(".token.text")
    assert tokens.count() == len("hello <b>you</b>") + 1
    assert "text experts" in tokens.first.get_attribute("title")
    assert page.input_value("#words") == ""


def test_a_sound_file_is_heard_and_the_answer_speaks(page: Any) -> None:
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": wav(1.25)})
    page.locator("#heard").wait_for()
    page.check("#speak")
    page.fill("#words", "how long is it")
    page.click("#send")
    turn = last(page)
    assert turn.locator(".words").inner_text() == "how long is it and 1.25 s"
    assert turn.locator(".token.audio").count() == 9  # seven units between their marks
    assert turn.locator(".experts").inner_text() == "26 by text experts, 9 by audio experts"
    length = turn.locator("audio").evaluate(
        "a => new Promise(r => a.duration ? r(a.duration) : a.onloadedmetadata = () => r(a.duration))"
    )
    assert length == pytest.approx(700 / 16000, abs=1e-3)  # seven words, 100 samples each
    assert not page.is_visible("#sound")
    page.fill("#words", "and on it goes")  # what was spoken goes back to the server with the next message
    page.click("#send")
    assert page.locator("li.assistant").nth(1).locator(".words").inner_text() is not None
    assert last(page).locator(".words").inner_text() == "and on it goes"


def test_one_records(page: Any) -> None:
    page.click("#record")
    page.locator("#record.on").wait_for()
    page.wait_for_timeout(700)
    page.click("#record")
    page.locator("#heard").wait_for()
    page.click("#send")
    seconds = float(last(page).locator(".words").inner_text().removesuffix(" s"))
    assert 0.3 < seconds < 5


def test_an_answer_can_be_stopped(page: Any) -> None:
    page.fill("#words", "slow " * 40)
    page.click("#send")
    page.locator("li.assistant .token").nth(5).wait_for()
    page.click("#stop")
    assert last(page).get_attribute("data-end") == "stopped"
    assert page.is_enabled("#send")


def test_what_is_wrong_is_said(page: Any) -> None:
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": b"RIFF and nothing more"})
    page.click("#send")
    page.locator("#wrong").wait_for()
    assert page.inner_text("#wrong").startswith("Unreadable audio: ")  # where it stood is for programs
    assert "messages" not in page.inner_text("#wrong") and page.inner_text("#wrong").endswith(".")
    page.click("#forget")
    page.fill("#words", "now it works")
    page.click("#send")
    assert last(page).locator(".words").inner_text() == "now it works"
    assert not page.is_visible("#wrong")


def choose(page: Any, file: Path) -> str:
    """What is said of it."""
    page.set_input_files("#file", file)
    page.locator("#wrong").wait_for()
    assert not page.is_visible("#sound") and page.input_value("#file") == ""
    return page.inner_text("#wrong")


def test_a_file_beyond_the_servers_limits_is_refused_before_it_is_read(page: Any, tmp_path: Path) -> None:
    page.evaluate("""() => {
        const read = Blob.prototype.arrayBuffer;
        window.reads = 0;
        Blob.prototype.arrayBuffer = function () { window.reads += 1; return read.call(this); };
    }""")
    large = tmp_path / "large.wav"
    with large.open("wb") as file:  # two hours
        file.write(wav(0.1))
        file.truncate(230_000_000)
    assert choose(page, large) == "This file has 230 MB; the server takes at most 12.6 MB."
    long = tmp_path / "long.wav"
    long.write_bytes(wav(90))
    assert choose(page, long) == "This sound lasts 90 s; the server hears at most 60 s."
    assert page.evaluate("window.reads") == 0
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": wav(2)})
    page.locator("#heard").wait_for()
    assert page.evaluate("window.reads") == 1 and not page.is_visible("#wrong")
    page.click("#send")
    assert last(page).locator(".words").inner_text() == "2.00 s"


def test_a_conversation_that_has_outgrown_a_body_says_what_to_do(browser: Any) -> None:
    with serving(Parrot(), body_bytes=100_000) as small:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{small.port}/")
        page.locator("#model", has_text="parrot").wait_for()
        for number in range(2):
            page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": wav(1.5)})
            page.locator("#heard").wait_for()
            page.click("#send")
            page.locator("li.assistant[data-end], li.refused").nth(number).wait_for()
        said = page.inner_text("#wrong")
        page.close()
    assert said.startswith("The conversation with its sounds is larger than 0.1 MB, the most that the server takes")


SIZES = [(1100, 700), (360, 640)]
WATCH = """() => {
    // Made after the page's own observer, so it is told in the same frame, after the page has scrolled.
    window.hidden = -Infinity;
    const under = () => document.querySelector("#turns > :last-child").getBoundingClientRect().bottom
        - document.getElementById("ask").getBoundingClientRect().top;
    const observer = new ResizeObserver(() => { window.hidden = Math.max(window.hidden, under()); });
    observer.observe(document.getElementById("turns"));
}"""


def under_the_form(page: Any) -> bool:
    """Whether any message shows through below the form's own parts."""
    return page.evaluate("""() => {
        const form = document.getElementById("ask"), box = form.getBoundingClientRect();
        const places = [0.1, 0.3, 0.5, 0.7, 0.9].map((part) => box.top + part * box.height);
        const shown = places.flatMap((y) => document.elementsFromPoint(box.left + box.width / 2, y));
        return shown.some((element) => element.closest("#turns"));
    }""")


def say(page: Any, words: str, number: int) -> None:
    """The message of this number, and its answer to the end."""
    page.fill("#words", words)
    page.click("#send")
    page.locator("li.assistant[data-end]").nth(number).wait_for()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_newest_answer_stays_above_the_form_while_it_grows(page: Any, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.check("#speak")
    for number in range(3):
        say(page, "say it once more", number)
    page.evaluate(WATCH)
    say(page, "slow and long " * 8, 3)
    page.wait_for_timeout(200)
    assert -height < page.evaluate("window.hidden") <= 0
    assert page.locator("li").count() == 8 and not under_the_form(page)
    last_box, form = page.locator("li").last.bounding_box(), page.locator("#ask").bounding_box()
    assert 0 < last_box["y"] + last_box["height"] <= form["y"] and form["y"] + form["height"] <= height
    page.mouse.move(width / 2, 20)
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(300)
    assert not under_the_form(page)


def test_who_has_scrolled_up_is_left_there_until_the_next_message(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    for number in range(3):
        say(page, "say it once more", number)
    page.fill("#words", "slow and long " * 8)
    page.click("#send")
    page.locator("li.assistant").nth(3).locator(".token").nth(5).wait_for()
    page.mouse.move(180, 20)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(300)
    seen = page.locator("li").first.bounding_box()["y"]
    assert page.locator("li.assistant[data-end]").count() == 3
    page.locator("li.assistant[data-end]").nth(3).wait_for()
    assert page.locator("li").first.bounding_box()["y"] == seen
    say(page, "next", 4)
    last_box = page.locator("li").last.bounding_box()
    assert last_box["y"] + last_box["height"] <= page.locator("#ask").bounding_box()["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 380, "height": 700})
    page.check("#speak")
    page.fill("#words", "a long answer " * 12)
    page.click("#send")
    last(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (sum(numbers(ink)) < sum(numbers(paper))) == (scheme == "light")


def numbers(colour: str) -> list[int]:
    return [int(number) for number in colour.removeprefix("rgb(").removesuffix(")").split(",")]


if __name__ == "__main__":  # the picture of docs/generation.md: python -m tests.serve.test_serve_page OUT.png
    from playwright.sync_api import sync_playwright

    with serving(Parrot()) as running, sync_playwright() as playwright:
        shown = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        shown.set_viewport_size({"width": 900, "height": 640})
        shown.goto(f"http://127.0.0.1:{running.port}/")
        shown.check("#speak")
        shown.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": wav(1.25)})
        shown.fill("#words", "say this")
        shown.click("#send")
        last(shown)
        shown.screenshot(path=Path(sys.argv[1]))

"""A run's page with all that lies beside it, in a real browser: light and dark, wide and narrow; players that play."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.report import run_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser here: sudo apt install chromium")
SCORE = {"measures": "m", "value": 0.0625, "low": 0.05, "high": 0.07, "items": 120, "total": 500.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    (root / "run").mkdir()
    (root / "asr").mkdir()
    steps = [{"step": n, "loss": 5.0 - n / 9, "seconds": 0.5, "tokens": 5, "skipped": False} for n in range(30)]
    samples = [
        {"step": n, "task": "asr", "document": "d", "prompt": "p", "answer": "a x", "reference": "a b"} for n in (0, 9)
    ]
    for name, lines in (("metrics", steps), ("samples", samples)):
        (root / "run" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"task": "asr/animals/test", "scores": {"wer": SCORE}, "parts": {}}
    (root / "asr" / "result.json").write_text(json.dumps(result))
    tokens = [{"says": f"[Hu{n}]" if n % 3 else "two", "tag": "audio" if n % 3 else "text"} for n in range(90)]
    experts = [[[2, 3] if n % 3 else [0, 1] for n in range(90)]] * 3
    groups = {"text": [0, 1], "audio": [2, 3]}
    routing = {"format": "most-routing-1", "tokens": tokens, "layers": [1, 2, 3], "groups": groups, "experts": experts}
    (root / "routing.json").write_text(json.dumps(routing))
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(16000) / 5), 16000, format="WAV")
    (root / "a.wav").write_bytes(file.getvalue())
    beside = ["--evaluation", str(root / "asr"), "--sound", f"said={root}/a.wav", "--routing", f"{root}/routing.json"]
    run_report([str(root / "run"), *beside, "--out", str(root / "report.html")])
    return root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1100, 380])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_is_legible_and_can_be_heard(browser: Any, made: Path, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    page.goto(made.as_uri())
    assert page.locator("h2").all_inner_texts()[:3] == ["Evaluation", "To be heard", "Routing of one exchange"]
    assert page.get_by_role("cell", name="6.2 %", exact=True).count() == 1
    assert page.get_by_role("heading", name="Word errors").is_visible()
    assert page.locator("html").evaluate("page => page.scrollWidth") <= width
    audio = page.locator("audio")
    audio.evaluate("one => one.load()")
    read = "one => one.readyState >= 1 || new Promise(done => one.onloadedmetadata = () => done(true))"
    assert audio.evaluate(read)  # wait_for_function is eval, which the page forbids
    assert audio.evaluate("one => one.duration") == pytest.approx(1.0)
    table = page.locator(".tokens")
    assert table.evaluate("one => one.scrollHeight > one.clientHeight")  # long ones scroll in their place
    for name in ("s1", "s2"):
        cell = page.locator(f'.tokens td[style*="--{name}"]').first
        ink = cell.evaluate("one => getComputedStyle(one).color")
        card = page.locator(".scroll").first.evaluate("one => getComputedStyle(one).backgroundColor")
        assert contrast(ink, card) >= 3
    assert wrong == []
    context.close()


def contrast(one: str, other: str) -> float:
    """As the WCAG has it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = np.array([int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

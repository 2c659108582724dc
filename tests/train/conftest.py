"""One blend for all files of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.phases import make_blend


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """asr, tts and text-lm datasets of a made-up corpus, and their token map."""
    return make_blend(tmp_path_factory.mktemp("data"))

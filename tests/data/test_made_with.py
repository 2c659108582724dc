"""What data was made with, as checkpoints keep it: another codec or tokenizer than the model's is refused by hash."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_most.data import MadeWith
from megatron_most.data.encoders import TokenizerIdentity
from megatron_most.errors import DataError
from megatron_most.speech import CodecIdentity
from megatron_most.speech.frames import MfccFrames

CODEC = CodecIdentity("mfcc", "a" * 64, 16, 16000, 0.04)
TOKENIZER = TokenizerIdentity("hf", "b" * 64, 300)
WHOLE = MadeWith(CODEC, TOKENIZER, (("chat", "c" * 64),))
FRAMES = MfccFrames().identity
WORDED = replace(WHOLE, wordings=((hashlib.sha256(b"{}").hexdigest(), "{}"),))


def test_it_is_read_as_it_was_written_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "made_with.json"
    for made in (WHOLE, MadeWith(), replace(WHOLE, frames=FRAMES), WORDED):
        path.write_text(made.to_json())
        assert MadeWith.load(path) == made
    for damage in ("", "[]", "{}", WHOLE.to_json().replace("16000", "16e3"), WHOLE.to_json().replace("codec", "codek"),
                   WORDED.to_json().replace(': "{}"', ': "[]"')):  # fmt: skip
        path.write_text(damage)
        with pytest.raises(DataError, match="cannot be read as what data was made with"):
            MadeWith.load(path)


def test_a_later_phase_adds_to_what_is_known() -> None:
    text = MadeWith(None, TOKENIZER, (("plain", "d" * 64),))
    both = WHOLE.then(text, "phase 2")
    assert both.codec == CODEC and both.templates == (*WHOLE.templates, *text.templates)
    heard = both.then(MadeWith(frames=FRAMES), "phase 3")
    assert heard == replace(both, frames=FRAMES) and heard.then(WHOLE, "phase 4").frames == FRAMES
    assert "frames" not in both.to_json()  # checkpoints of units are as they were
    assert both.then(WORDED, "phase 3").then(WHOLE, "phase 4").wordings == WORDED.wordings
    assert MadeWith().then(WHOLE, "phase 1") == WHOLE and WHOLE.then(WHOLE, "again") == WHOLE


@pytest.mark.parametrize(
    "other",
    [
        replace(WHOLE, codec=replace(CODEC, hash="f" * 64)),
        replace(WHOLE, codec=replace(CODEC, precision="bf16")),
        replace(WHOLE, tokenizer=replace(TOKENIZER, sha256="f" * 64)),
        replace(WHOLE, frames=replace(FRAMES, hash="f" * 64)),
    ],
    ids=["codec", "precision", "tokenizer", "frames"],
)
def test_data_of_another_make_is_refused(other: MadeWith) -> None:
    with pytest.raises(DataError, match="phase 2: made with another (codec|tokenizer|source of frames)"):
        replace(WHOLE, frames=FRAMES).then(other, "phase 2")


def test_speech_and_text_of_another_make_are_refused() -> None:
    WHOLE.require_codec(CODEC.hash, "mfcc", "run")
    WHOLE.require_tokenizer(TOKENIZER, "file", "run")
    with pytest.raises(DataError, match="codec eeeeeeeeeeee, but the model at run has learnt units of mfcc"):
        WHOLE.require_codec("e" * 64, "other", "run")
    with pytest.raises(DataError, match="has learnt from no units"):
        replace(WHOLE, codec=None).require_codec(CODEC.hash, "mfcc", "run")
    unknown = MadeWith()
    with pytest.raises(DataError, match="does not say which codec made the units .*--trust-codec"):
        unknown.require_codec(CODEC.hash, "mfcc", "run")
    unknown.trusting(CODEC).require_codec(CODEC.hash, "mfcc", "run")
    assert WHOLE.trusting(replace(CODEC, hash="f" * 64)) == WHOLE, "what is said is not talked over"
    with pytest.raises(DataError, match="tokenizer eeeeeeeeeeee"):
        WHOLE.require_tokenizer(replace(TOKENIZER, sha256="e" * 64), "file", "run")

"""The partner that is a model: with its tokenizer, and with a codec and a vocoder where it shall hear and speak."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_most.converse import Ears, Heard, Opened, Talker, frame_ears, hears_frames, open_any, open_ears
from megatron_most.errors import MostError
from megatron_most.generate import Answer, CoreModel, Prompt, Settings, generate
from megatron_most.runtime import get_logger
from megatron_most.serve.partner import Part, Turn, Wave
from megatron_most.speech import SpeechCodec, load_codec
from megatron_most.speech.vocoder import Vocoder
from megatron_most.speech.vocoder_files import load_vocoder
from megatron_most.vocab import TAG_NAMES

_log = get_logger(__name__)
_NO_CODEC_RATE = 16000  # where there is neither codec nor vocoder, and so no sound


class ModelPartner:
    """See partner.Partner."""

    def __init__(self, talker: Talker, name: str, vocoder: Vocoder | None, why_deaf: str = "") -> None:
        self._talker, self._vocoder = talker, vocoder
        self._hearing = threading.Lock()  # a codec's model is not for many threads at once
        self.name, self.tokens = name, talker.context.token_map
        self.why_deaf = why_deaf
        num_voices = 0 if vocoder is None else vocoder.num_speakers
        self.voices: Sequence[str] = [f"voice-{n}" for n in range(num_voices)]
        rates = [talker.ears.sample_rate] if talker.ears else []
        rates += [vocoder.sample_rate] if vocoder else []
        self.sample_rate = (rates or [_NO_CODEC_RATE])[0]
        self._groups = _groups(talker.opened)

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """See Partner."""
        return self._talker.chat([(turn.role, [self._part(part) for part in turn.parts]) for turn in turns])

    def answer(
        self,
        prompts: Sequence[Prompt],
        settings: Sequence[Settings],
        on_token: Callable[[int, int, int], None],
        is_cancelled: Callable[[int], bool],
    ) -> list[Answer]:
        """See Partner."""
        return generate(self._talker.opened.model, prompts, settings, on_token, is_cancelled)

    def text(self, ids: Sequence[int]) -> str:
        """See Partner."""
        return self._talker.tokenizer.decode(ids)

    def speak(self, units: Iterable[int], voice: str) -> Iterator[Wave]:
        """See Partner."""
        assert self._vocoder is not None, "a partner without voices is not asked to speak"
        return self._vocoder.stream(units, speaker=self.voices.index(voice))

    def group(self, tag: int) -> str:
        """See Partner."""
        return self._groups[tag]

    def _part(self, part: Part) -> str | Heard:
        if isinstance(part, str | tuple):
            return part
        with self._hearing:
            return self._talker.hear_wave(part, "the recording")


@contextmanager
def open_partner(
    model: Path, *, tokenizer: Path | None, codec: Path | None, vocoder: Path | None, templates: str | None,
    device: str, name: str | None, encoder: Path | None = None, trust_templates: bool = False,
    trust_codec: bool = False,
) -> Iterator[ModelPartner]:  # fmt: skip
    """Everything is opened and proven to belong together before the first request.

    `encoder`: the HuBERT of the codec, or of the frames that the model hears, where it has moved.
    """
    units = load_codec(codec, model=encoder) if codec else None
    mouth = load_vocoder(vocoder) if vocoder else None
    with open_any(model, device=device) as opened:  # type: ignore[arg-type]
        if trust_codec:
            opened = opened.trusting(units, mouth)
        ears, why_deaf = _ears(opened, units, encoder)
        talker = Talker(
            opened, tokenizer=tokenizer, templates=templates, trust_templates=trust_templates, ears=ears
        )  # fmt: skip
        if mouth is not None:
            opened.made_with.require_codec(mouth.codec_hash, str(vocoder), str(opened.folder))
        yield ModelPartner(talker, name or model.resolve().name, mouth, why_deaf)


def _ears(opened: Opened, codec: SpeechCodec | None, encoder: Path | None) -> tuple[Ears | None, str]:
    """The model's, or why it has none. It can be talked to without: only what was asked for must be there."""
    if not hears_frames(opened):
        return open_ears(opened, codec), "" if codec else "this server was started without a codec"
    if codec is not None:
        opened.made_with.require_codec(codec.identity.hash, codec.identity.name, str(opened.folder))
    try:
        return frame_ears(opened, encoder), ""
    except MostError as error:
        if encoder is not None:
            raise
        _log.warning("text alone is taken: %s", error)
        return None, "the model hears by an encoder that this server does not have"


def _groups(opened: Opened) -> list[str]:
    """Of each tag; where the model does not say, tags have their usual groups."""
    if isinstance(opened.model, CoreModel):
        moe = opened.model.plan.moe
        if moe is None:
            return ["dense"] * len(TAG_NAMES)
        return ["shared" if place is None else moe.group_names[place] for place in moe.group_of_tag]
    return [*TAG_NAMES[:2], "shared"]

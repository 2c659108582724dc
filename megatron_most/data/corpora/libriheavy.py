"""LibriHeavy: its published Lhotse cuts, spans of the long LibriLight recordings of audio books.

Each cut carries its text twice: from the book, with case and punctuation, and as a recogniser heard it, in capitals.
Start and duration are honoured; speech that no cut covers is in no row. Speakers are LibriVox readers, named as those
of LibriSpeech are, so that a reader in both is seen to be one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_most.data.corpora.audio_root import AudioRoot, Recording
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import make_cut
from megatron_most.data.corpora.cuts import label, number, open_cut, supervisions
from megatron_most.data.corpora.lines import read_lines
from megatron_most.data.manifest import load_json_line
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError


@dataclass(frozen=True, kw_only=True)
class LibriHeavy(Corpus):
    """LibriHeavy's cuts over LibriLight's audio."""

    cuts: tuple[Path, ...]
    """The published lists, libriheavy_cuts_*.jsonl.gz."""
    audio_root: Path
    """Folder of LibriLight's audio, with small/, medium/ and large/ in it."""
    strip_prefix: str = "download/librilight/"
    """Taken off the front of the lists' audio paths: where the publisher kept the audio."""
    text: Literal["punctuated", "plain", "given"] = "punctuated"
    """punctuated: as printed in the book; plain: capitals, as a recogniser heard it; given: the cut's own text, in
    lists that the publisher's scripts have cut down to one text."""
    licence: str = "Public domain (LibriVox audio, LibriLight); Apache-2.0 (cut lists)"
    source: str = "LibriHeavy cut lists (k2-fsa/libriheavy) over LibriLight audio"
    language: str | None = "en"

    @property
    def corpus(self) -> str:
        return "libriheavy"

    @property
    def audio_folder(self) -> Path:
        return self.audio_root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.audio_root, self.strip_prefix)
        opened, recording = None, None  # cuts of one recording come together
        for path in self.cuts:
            for line_number, line in read_lines(path):
                id = f"{path.name}:{line_number}"
                try:
                    row = load_json_line(line)
                    id = label(row, "id") or id
                    facts = [row.get(key) for key in ("type", "recording", "transforms")]
                    if recording is None or facts != opened:
                        recording, opened = open_cut(row, audio), facts
                    yield self._cut(row, recording, normalise)
                except RowError as error:
                    yield Reject.of(id, error)

    def _cut(self, row: dict[str, Any], recording: Recording, normalise: Normaliser) -> dict[str, Any]:
        said = supervisions(row)
        if len(said) != 1:
            raise RowError("malformed row", f"{len(said)} supervisions; a cut of LibriHeavy has one")
        id, speaker = label(row, "id"), label(said[0], "speaker")
        if not id:
            raise RowError("malformed row", "no id")
        return make_cut(
            id=f"libriheavy-{id}",
            recording=recording,
            start=number(row, "start"),
            duration=number(row, "duration"),
            text=transcript(self._text(said[0]), normalise),
            speaker=None if speaker is None else f"librivox-{speaker}",
            language=self.language,
        )

    def _text(self, said: dict[str, Any]) -> object:
        if self.text == "given":
            return said.get("text")
        custom = said.get("custom")
        texts = custom.get("texts") if isinstance(custom, dict) else None
        if not isinstance(texts, list) or len(texts) != 2:
            raise RowError("missing text", "no pair of texts in the cut; is this a list with --text given?")
        return texts[0 if self.text == "punctuated" else 1]

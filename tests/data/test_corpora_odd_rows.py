"""Whatever a list says in whatever place, each of its rows becomes a row of the manifest or a reject."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data.corpora import Chat, Corpus, Cuts, JsonLines, LibriHeavy, Release, write_manifest
from megatron_most.data.manifest import open_manifest
from tests.data_files import cut

ODD: list[Any] = [
    None, True, "", "x", "half \ud800", "zero\0", "two\nlines", "../x", "/etc/passwd",
    0, -1, 1, 1.5, float("nan"), float("inf"), 1e308, 10**400,
    [], [0], [[]], [None], [{}], ["x"], {}, {"a": 1}, {"word": 5}, {"word": [1]},
]  # fmt: skip
GONE = object()

SAID = {"text": "Hi.", "speaker": 7, "language": "en", "alignment": {"word": [["Hi", 0.1, 0.4]]}}
CUT = cut("c", "a/b.flac", 1.5, 2.0, 10.0, custom={"texts": ["Hi.", "HI"]}, **SAID)
TWO = {**CUT, "supervisions": [*CUT["supervisions"], {**CUT["supervisions"][0], "id": "d"}]}
LINE = {"audio": "a/b.flac", "id": "x", "start": 1.5, "duration": 2, "channel": 0, "words": [["hi", 0.1, 0.4]], **SAID}
PARTS = [{"type": "text", "text": "a"}, {"speech": "x"}, {"units": [1, 2]}]
CHAT = {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "b"}]}
RECORD = {"id": "a", "instruction": "Do", "input": "[Hu1][Hu2]", "output": "x", "metadata": {}}

READERS: dict[str, tuple[dict[str, Any], Callable[..., Corpus]]] = {
    "libriheavy": (CUT, lambda root, files, **of: LibriHeavy(cuts=files, audio_root=root, **of)),
    "cuts": (CUT, lambda root, files, **of: Cuts(name="n", cuts=files, audio_root=root, **of)),
    "cuts of several": (TWO, lambda root, files, **of: Cuts(name="n", cuts=files, audio_root=root, **of)),
    "jsonl": (LINE, lambda root, files, **of: JsonLines(name="n", files=files, audio_root=root, **of)),
    "chat": (CHAT, lambda root, files, **of: Chat(files=files, **of)),
    "release": (RECORD, lambda root, files, **of: Release(files=files, **of)),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*at, key)
        yield from places(below, (*at, key))


def spoilt(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row with each odd value in each place."""
    for *way, last in places(row):
        for odd in (*ODD, GONE):
            one = inner = copy.deepcopy(row)
            for key in way:
                inner = inner[key]
            if odd is GONE:
                del inner[last]
            else:
                inner[last] = odd
            yield one


@pytest.mark.parametrize("name", READERS)
def test_a_row_is_a_row_or_a_reject_whatever_stands_in_it(tmp_path: Path, name: str) -> None:
    row, make = READERS[name]
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "b.flac", np.zeros(160000), 16000)
    given = [row, *spoilt(row)]
    path = tmp_path / ("list.json" if name == "release" else "list.jsonl")
    path.write_text(json.dumps(given) if name == "release" else "".join(json.dumps(one) + "\n" for one in given))
    header = write_manifest(make(tmp_path, (path,), out=tmp_path / "out", max_reject_rate=1.0))
    rows = list(open_manifest(tmp_path / "out").rows())
    most = 2 * len(given) if name == "cuts of several" else len(given)
    assert header.rows == len(rows) and len(given) <= header.rows + sum(header.rejects.values()) <= most
    assert header.rows >= 1 and len(header.rejects) >= 3  # of either kind there were some
    for line in (tmp_path / "out" / "rejects.jsonl").read_text(encoding="utf-8").splitlines():
        assert str(tmp_path) not in line and len(json.loads(line)["id"]) < 300


@pytest.mark.parametrize("id", ["", [], None])
def test_a_cut_of_libriheavy_without_an_id_is_a_reject(tmp_path: Path, id: Any) -> None:
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "b.flac", np.zeros(160000), 16000)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (CUT, {**CUT, "id": id})))
    listed = LibriHeavy(cuts=(tmp_path / "list.jsonl",), audio_root=tmp_path, out=tmp_path / "out", max_reject_rate=1.0)
    assert write_manifest(listed).rejects == {"malformed row": 1}
    [row] = open_manifest(tmp_path / "out").rows()
    assert row.id == "libriheavy-c"

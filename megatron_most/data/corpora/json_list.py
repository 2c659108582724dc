"""One large JSON list, or the list under the key "data" of an object, item by item in bounded memory.

Damage inside a list cannot be stepped over, for nothing tells where the next item starts: it raises UnreadableFile.
Bytes that are no UTF-8 stay inside their item, as surrogates that the caller refuses.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_most.data.corpora.common import UnreadableFile
from megatron_most.data.corpora.lines import open_bytes

LARGEST = 1 << 26  # characters of one item
_CHUNK = 1 << 20
_KEY = "data"


def read_json_list(path: Path) -> Iterator[Any]:
    """The list's items in order."""
    with open_bytes(path) as file:
        text = _Text(path, file)
        first = text.skip_space()
        if first == "{":
            text.enter_object()
        elif first != "[":
            text.fail('neither a list nor an object with a list under "data"')
        text.take()  # the bracket
        if text.skip_space() == "]":
            return
        while True:
            yield text.value()
            text.items += 1
            sign = text.skip_space()
            text.take()
            if sign == "]":
                return
            if sign != ",":
                text.fail(
                    f"{sign!r} where a comma or the list's end should be" if sign else "the file ends in the list"
                )


class _Text:
    """What has been read and not yet used of a file."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._parse = json.JSONDecoder().raw_decode
        self._buffer, self._at, self._is_whole = "", 0, False
        self.items = 0
        if self.skip_space() == "\ufeff":
            self.take()

    def skip_space(self) -> str:
        """The next character that is no white space, left where it is; "" at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if not self._more(_CHUNK):
                return ""

    def take(self) -> None:
        self._at += 1

    def value(self) -> Any:
        """The JSON value that starts at the next character."""
        self.skip_space()
        size = _CHUNK
        while True:
            try:
                value, end = self._parse(self._buffer, self._at)
                # A number at the buffer's end may go on behind it.
                if end < len(self._buffer) or not self._more(_CHUNK):
                    self._at = end
                    return value
            except RecursionError:
                self.fail("nested too deeply")
            except ValueError as error:
                if len(self._buffer) - self._at > LARGEST:
                    self.fail(f"no end of an item within {LARGEST} characters")
                if not self._more(size):
                    self.fail(str(error)[:120])
                size *= 2  # so that a large item is not parsed once for each chunk

    def enter_object(self) -> None:
        """Go to the list under the key."""
        self.take()
        while self.skip_space() == '"':
            key = self.value()
            if self.skip_space() != ":":
                self.fail("a key without a colon")
            self.take()
            if key == _KEY:
                if self.skip_space() == "[":
                    return
                self.fail('"data" is no list')
            self.value()
            if self.skip_space() == ",":
                self.take()
        self.fail('an object without a list under "data"')

    def fail(self, wrong: str) -> None:
        raise UnreadableFile(self._path.name, f"after item {self.items}", wrong)

    def _more(self, size: int) -> bool:
        """Read on; False at the end."""
        if self._is_whole:
            return False
        try:
            data = self._file.read(size)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            self.fail(str(error)[:120])
        self._is_whole = not data
        self._buffer = self._buffer[self._at :] + self._decode(data, self._is_whole)
        self._at = 0
        return bool(data)

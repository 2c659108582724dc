"""What a file of sound is, and whether it is all there, from its bytes alone.

`identify` looks at the first bytes; a name is asked only where the format has no mark of its own (raw G.722). That
also keeps play lists and other texts that name files or hosts away from the decoders. `what_is_missing` compares the
sizes that the container itself states with the file: a wave file's chunks, an MP3's Xing header, the boxes of MP4,
the segment of WebM, the last page of Ogg. FLAC states a number of samples instead; its reader judges that.
"""

from __future__ import annotations

import os
from typing import BinaryIO

_MARKS = (  # offset, bytes there, format
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"RF64", "wav"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (0, b".snd", "au"),
    (0, b"caff", "caf"),
    (0, b"NIST_1A", "nist"),
    (4, b"ftyp", "m4a"),
    (4, b"moov", "m4a"),
    (4, b"mdat", "m4a"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
    (0, b"#!AMR", "amr"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # what writers to a pipe put where they could not go back
_MP3_FRAME = 4  # bytes of a frame's header


def identify(file: BinaryIO, name: str) -> str | None:
    """The format of an open file, or None. The file's extension does not matter, save `.g722`."""
    head = _at(file, 0, 64)
    for offset, mark, found in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return found
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        return "aiff"
    if head[:3] == b"ID3":
        after = _at(file, _id3_size(head), 4)
        return "flac" if after == b"fLaC" else _mpeg(after) or "mp3"
    if name.lower().endswith(".g722"):
        return "g722"
    return _mpeg(head)


def what_is_missing(file: BinaryIO, found: str) -> str | None:
    """How the file is shorter than it says, in words; None where it is whole or does not say."""
    size = os.fstat(file.fileno()).st_size
    check = {"wav": _riff, "aiff": _form, "ogg": _ogg, "m4a": _boxes, "mp3": _xing, "webm": _segment}.get(found)
    return check(file, size) if check else None


def has_xing(file: BinaryIO) -> bool:
    """Whether an MP3 says how many frames it has."""
    return _find_xing(file)[1] is not None


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)


def _mpeg(head: bytes) -> str | None:
    """MPEG audio layer II or III, or AAC in ADTS, from the four bytes of a frame's header."""
    if len(head) < _MP3_FRAME or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "aac"
    version, layer, bitrate, rate = (head[1] >> 3) & 3, (head[1] >> 1) & 3, head[2] >> 4, (head[2] >> 2) & 3
    return "mp3" if version != 1 and layer in (1, 2) and bitrate not in (0, 15) and rate != 3 else None


def _id3_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag at the start; its size is written in sevens of bits."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if head[5] & 0x10 else 0)


def _short(promised: int, size: int) -> str | None:
    return f"it says {promised} bytes and has {size}" if promised > size else None


def _riff(file: BinaryIO, size: int) -> str | None:
    offset, wide = 12, None
    while len(head := _at(file, offset, 8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"ds64":  # RF64 keeps the sizes that need 64 bits here
            wide = int.from_bytes(_at(file, offset + 16, 8), "little")
        if name == b"data":
            if wide is not None and length == 0xFFFFFFFF:
                length = wide
            return None if length in _UNKNOWN_SIZES else _short(offset + 8 + length, size)
        offset += 8 + length + length % 2
    return f"it ends at byte {size}, before its samples"


def _form(file: BinaryIO, size: int) -> str | None:
    return _short(8 + int.from_bytes(_at(file, 4, 4), "big"), size)


def _boxes(file: BinaryIO, size: int) -> str | None:
    offset = 0
    while offset < size:
        head = _at(file, offset, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # up to the end
            return None
        if length < 8:
            return f"a box at byte {offset} has {length} bytes"
        offset += length
    return _short(offset, size)


def _ogg(file: BinaryIO, size: int) -> str | None:
    """The last page must be whole and carry the mark of the end. A page has at most 65307 bytes."""
    tail = _at(file, max(0, size - 131072), 131072)
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26] or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "its last page is cut"
    return None if page[5] & 4 else "no page is marked as the last"


def _find_xing(file: BinaryIO) -> tuple[int, bytes | None]:
    """Where the first MP3 frame starts, and its Xing header from the name on."""
    start = _id3_size(_at(file, 0, 10))
    frame = _at(file, start, 64)
    if len(frame) < 64:
        return start, None
    mpeg1, mono = (frame[1] >> 3) & 3 == 3, frame[3] >> 6 == 3
    at = _MP3_FRAME + {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[mpeg1, mono]
    return start, frame[at:] if frame[at : at + 4] in (b"Xing", b"Info") else None


def _xing(file: BinaryIO, size: int) -> str | None:
    start, xing = _find_xing(file)
    if xing is None or not xing[7] & 2:
        return None
    at = 12 if xing[7] & 1 else 8  # the number of frames comes first
    return _short(start + int.from_bytes(xing[at : at + 4], "big"), size)


def _segment(file: BinaryIO, size: int) -> str | None:
    """The EBML header and then the segment, which holds the rest; a live stream's segment has no size."""
    offset = 4 + _vint(file, 4)[1] + (_vint(file, 4)[0] or 0)
    if _at(file, offset, 4) != b"\x18\x53\x80\x67":
        return None
    length, width = _vint(file, offset + 4)
    return None if length is None else _short(offset + 4 + width + length, size)


def _vint(file: BinaryIO, offset: int) -> tuple[int | None, int]:
    """An EBML number and the bytes it takes; None where all its bits are set, which means unknown."""
    head = _at(file, offset, 8)
    if not head or head[0] == 0:
        return None, 1
    width = 9 - head[0].bit_length()
    value = int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width

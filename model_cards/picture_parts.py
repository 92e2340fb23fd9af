"""What picture files are made of: the parts of PNG, JPEG and WebP that could say more than pixels do.

A list of known harmless parts: who looks for texts in known places alone misses those of the next program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PROFILE = "colour profile"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_PNG_PLAIN = frozenset(b"IHDR PLTE IDAT IEND tRNS cHRM gAMA sBIT sRGB bKGD pHYs cICP".split())
_WEBP_PLAIN = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH"})
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # others stand within the coded pixels
_JPEG_END, _JPEG_SCAN, _JPEG_COMMENT = 0xD9, 0xDA, 0xFE
_JPEG_APPS = range(0xE0, 0xF0)
_JPEG_PLAIN_APPS = (  # without a thumbnail, of a fixed length
    (0xE0, b"JFIF\0", 14),
    (0xEE, b"Adobe", 12),
)


def telling_parts(content: bytes) -> list[str]:
    """The names of the parts that may hold text, each once, PROFILE among them, in the order of the file.

    Args:
        content: of a whole PNG, JPEG or WebP file.

    Raises:
        ValueError: it is none of the three, or ends within a part.
    """
    if content.startswith(_PNG_START):
        parts = _of_png(content)
    elif content.startswith(b"\xff\xd8"):
        parts = _of_jpeg(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        parts = _of_webp(content)
    else:
        raise ValueError("it is neither PNG nor JPEG nor WebP, whatever its name says")
    return list(dict.fromkeys(parts))


def _of_png(content: bytes) -> Iterator[str]:
    place, kind = len(_PNG_START), b""
    while kind != _PNG_END:
        size, kind = int.from_bytes(_cut(content, place, 4), "big"), _cut(content, place + 4, 4)
        if kind == b"iCCP":
            yield PROFILE
        elif kind not in _PNG_PLAIN:
            yield f"the chunk {_shown(kind)}"
        place += 12 + size
    yield from _rest(content, place)


def _of_webp(content: bytes) -> Iterator[str]:
    end, place = 8 + int.from_bytes(content[4:8], "little"), 12
    while place < end:
        kind, size = _cut(content, place, 4), int.from_bytes(_cut(content, place + 4, 4), "little")
        if kind == b"ICCP":
            yield PROFILE
        elif kind not in _WEBP_PLAIN:
            yield f"the chunk {_shown(kind)}"
        place += 8 + size + size % 2
    yield from _rest(content, end)


def _of_jpeg(content: bytes) -> Iterator[str]:
    place, is_scan = 2, False
    while True:
        found = _JPEG_MARKER.search(content, place)
        if found is None:
            raise ValueError("it ends before its last part")
        if found.start() > place and not is_scan:
            yield "data between its parts"
        marker = found[1][0]
        if marker == _JPEG_END:
            yield from _rest(content, found.end())
            return
        size = int.from_bytes(_cut(content, found.end(), 2), "big")
        said = _cut(content, found.end() + 2, size - 2)
        if marker == 0xE2 and said.startswith(b"ICC_PROFILE\0"):
            yield PROFILE
        elif marker == _JPEG_COMMENT:
            yield "a comment"
        elif marker in _JPEG_APPS and not any(
            (marker, len(said)) == (app, length) and said.startswith(start) for app, start, length in _JPEG_PLAIN_APPS
        ):
            yield f"the segment APP{marker - 0xE0}"
        place, is_scan = found.end() + size, marker == _JPEG_SCAN


def _rest(content: bytes, place: int) -> Iterator[str]:
    """What stands behind the end of the picture, but for zeros that fill up."""
    if content[place:].strip(b"\0"):
        yield "data behind its end"


def _cut(content: bytes, place: int, size: int) -> bytes:
    part = content[place : place + size]
    if size < 0 or len(part) < size:
        raise ValueError("it ends before its last part")
    return part


def _shown(kind: bytes) -> str:
    return kind.decode("ascii", errors="replace").strip()

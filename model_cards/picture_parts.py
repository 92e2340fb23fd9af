"""What picture files are made of: the parts of PNG, JPEG and WebP that could say more than pixels do.

A list of known harmless parts: who looks for texts in known places alone misses those of the next program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PROFILE = "colour profile"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_PNG_SIZES = {  # bytes that the specification allows, whatever the colour type
    b"IHDR": range(13, 14), b"IEND": range(1), b"IDAT": range(2**31), b"cHRM": range(32, 33), b"gAMA": range(4, 5),
    b"sRGB": range(1, 2), b"pHYs": range(9, 10), b"cICP": range(4, 5),
}  # fmt: skip
_PNG_SIZES_BY_COLOUR = {  # colour type of IHDR -> bytes
    b"sBIT": {0: (1,), 2: (3,), 3: (3,), 4: (2,), 6: (4,)},
    b"bKGD": {0: (2,), 2: (6,), 3: (1,), 4: (2,), 6: (6,)},
    b"tRNS": {0: (2,), 2: (6,), 3: range(1, 257)},
    b"PLTE": {3: range(3, 769, 3)},
}
_PNG_COLOUR_PLACE = 25  # of the byte in the file, within IHDR
_WEBP_PLAIN = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH"})
_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L"})
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # others stand within the coded pixels
_JPEG_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_JPEG_END, _JPEG_SCAN, _JPEG_INTERVAL, _JPEG_COMMENT = 0xD9, 0xDA, 0xDD, 0xFE
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
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
    place, kind, seen = len(_PNG_START), b"", set()
    colour = _cut(content, _PNG_COLOUR_PLACE, 1)[0]
    while kind != _PNG_END:
        size, kind = int.from_bytes(_cut(content, place, 4), "big"), _cut(content, place + 4, 4)
        if kind == b"iCCP":
            yield PROFILE
        else:
            sizes = _PNG_SIZES.get(kind, _PNG_SIZES_BY_COLOUR.get(kind, {}).get(colour, ()))
            if size not in sizes or (kind in seen and kind != b"IDAT"):
                yield f"the chunk {_shown(kind)}"
        seen.add(kind)
        place += 12 + size
    yield from _rest(content, place)


def _of_webp(content: bytes) -> Iterator[str]:
    end, place = 8 + int.from_bytes(content[4:8], "little"), 12
    seen: set[bytes] = set()
    while place < end:
        kind, size = _cut(content, place, 4), int.from_bytes(_cut(content, place + 4, 4), "little")
        if kind == b"ICCP":
            yield PROFILE
        elif kind not in _WEBP_PLAIN or kind in seen or (kind in _WEBP_PIXELS and seen & _WEBP_PIXELS):
            yield f"the chunk {_shown(kind)}"
        seen.add(kind)
        place += 8 + size + size % 2
    yield from _rest(content, end)


def _of_jpeg(content: bytes) -> Iterator[str]:
    place, is_scan, frame, interval, scan = 2, False, b"", 0, b""
    while True:
        found = _JPEG_MARKER.search(content, place)
        if found is None:
            raise ValueError("it ends before its last part")
        if found.start() > place and not is_scan:
            yield "data between its parts"
        if is_scan and len(_JPEG_RESTART.findall(content, place, found.start())) > _num_restarts(frame, scan, interval):
            yield "data behind its pixels"
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
        if marker in _JPEG_FRAMES:
            frame = said
        elif marker == _JPEG_INTERVAL:
            interval = int.from_bytes(said[:2], "big")
        elif marker == _JPEG_SCAN:
            scan = said
        place, is_scan = found.end() + size, marker == _JPEG_SCAN


def _num_restarts(frame: bytes, scan: bytes, interval: int) -> int:
    """How many restart markers stand in the coded pixels of a scan of JPEG.

    Args:
        frame, scan: the contents of its headers, SOF and SOS.
        interval: blocks from one marker to the next; 0: there are none.
    """
    if not interval or len(frame) < 6 or not scan:
        return 0
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = {frame[i]: (frame[i + 1] >> 4, frame[i + 1] & 15) for i in range(6, len(frame) - 2, 3)}
    widest, highest = (max((pair[axis] for pair in factors.values()), default=1) for axis in (0, 1))
    across, down = 1, 1  # of a scan of all components a block is as large as the widest and the highest need
    if scan[0] == 1:
        across, down = factors.get(scan[1], (1, 1))
    num_blocks = _up(_up(width * across, widest), 8) * _up(_up(height * down, highest), 8)
    return max(_up(num_blocks, interval) - 1, 0)


def _up(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // max(divisor, 1))


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

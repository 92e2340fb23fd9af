"""What the directories of a TIFF file ask of its reader, looked at before one reads it.

A small file can ask for gigabytes and hours: Pillow loads all that a directory names into memory, walks all directories
to count the frames, and a decoder makes room for whole tiles. Source of the layout: TIFF 6.0, section 2; BigTIFF has
8 bytes where it has 2 or 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

MAX_DIRECTORIES = 10_000  # Pillow counts as many frames in a second, and twice as many in three times that
MAX_NAMED_SHARE = 4  # of the file: bytes that all directories may name; a sound file names each of its bytes about once
FREE_BYTES, FREE_PIXELS = 2**20, 2**20  # that a file may name, and a tile may have, however small file and picture are
TIFF_HEADS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")  # all that Pillow takes for a TIFF
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
WHOLE_TYPES = {1: "B", 3: "H", 4: "L", 16: "Q"}
SIZE_TAGS = (256, 257)  # width and height of the picture
TILE_TAGS = (322, 323)


def check_tiff(stream: BinaryIO, item: str) -> None:
    """Nothing, the stream as it was; also for a file that is no TIFF, or breaks off, which its reader says better.

    Args:
        stream: binary, from whose beginning the file is read; it can seek.
        item: what messages call the file.

    Raises:
        ValueError: the directories loop, are too many or name far more bytes than the file has; a tile does not fit the
            picture.
    """
    place = stream.tell()
    try:
        for tags in _directories(stream, item):
            _check_tile(tags, item)
    except struct.error:  # it breaks off
        return
    finally:
        stream.seek(place)


def _directories(stream: BinaryIO, item: str) -> Iterator[dict[int, int | None]]:
    """Of every directory the sizes that it tells, by tag; None for one that is no single whole number."""
    num_bytes = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(16)
    if head[:4] not in TIFF_HEADS:
        return
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2] == 43  # as Pillow has it
    count, entry, offset = (order + form for form in (("Q", "HHQ8s", "Q") if is_big else ("H", "HHL4s", "L")))
    (place,) = struct.unpack_from(offset, head, 8 if is_big else 4)
    entry_bytes = struct.calcsize(entry)
    seen: set[int] = set()
    num_named = 0
    while 0 < place < num_bytes:
        if place in seen or len(seen) == MAX_DIRECTORIES:
            fault = "come back to one before" if place in seen else f"are more than {MAX_DIRECTORIES:,}"
            raise ValueError(f"{item} is a TIFF whose directories {fault}. Export it again, a long stack in parts.")
        seen.add(place)
        stream.seek(place)
        (num_tags,) = struct.unpack(count, stream.read(struct.calcsize(count)))
        end = stream.tell() + num_tags * entry_bytes
        num_named += num_tags * entry_bytes
        entries = stream.read(min(end, num_bytes) - stream.tell())  # Pillow reads what is there of one that breaks off
        entries = entries[: len(entries) // entry_bytes * entry_bytes]
        tags: dict[int, int | None] = {}
        for tag, kind, length, value in struct.iter_unpack(entry, entries):
            num_named += TYPE_BYTES.get(kind, 0) * length
            if tag in (*SIZE_TAGS, *TILE_TAGS):
                whole = kind in WHOLE_TYPES and length == 1 and TYPE_BYTES[kind] <= len(value)
                tags[tag] = struct.unpack_from(order + WHOLE_TYPES[kind], value)[0] if whole else None
        if num_named > max(MAX_NAMED_SHARE * num_bytes, FREE_BYTES):
            raise ValueError(
                f"{item} is a TIFF of {num_bytes:,} bytes whose directories name at least {num_named:,}, "
                "which no sound file's do. Export it again."
            )
        yield tags
        stream.seek(min(end, num_bytes))
        (place,) = struct.unpack(offset, stream.read(struct.calcsize(offset)))


def _check_tile(tags: dict[int, int | None], item: str) -> None:
    """Nothing, or a ValueError for tiles that are far larger than their picture."""
    tile, size = ([tags.get(tag, 1) for tag in pair] for pair in (TILE_TAGS, SIZE_TAGS))
    sides = [side for side in (*tile, *size) if side is not None]
    if len(sides) < 4 or sides[0] * sides[1] > max(4 * sides[2] * sides[3], FREE_PIXELS):
        raise ValueError(
            f"{item} is a TIFF whose tiles, {tile[0]} x {tile[1]}, do not fit its {size[0]} x {size[1]} pixels; a "
            "decoder makes room for a whole tile. Export it again."
        )

"""What the directories of a TIFF file, or of EXIF data, ask of their reader, looked at before it reads them.

A small file can ask for gigabytes and hours: Pillow loads all that a directory names into memory, walks all directories
to count the frames, and a decoder makes room for whole tiles. Source of the layout: TIFF 6.0, section 2; BigTIFF has
8 bytes where it has 2 or 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO

MAX_DIRECTORIES = 6_000  # Pillow counts as many frames in about half a second
MAX_TAGS = 250_000  # of all directories; a page has about 20
MAX_NAMED_SHARE = 4  # of the file: bytes that all directories may name; a sound file names each of its bytes about once
FREE_BYTES = 2**20  # that a file may name however small it is
MAX_EXIF_BYTES = 2**20  # that one EXIF directory may name: Pillow makes objects of them, up to 60 times as large
FREE_PIXELS = 2**24  # that a tile may have however small its picture is
TIFF_HEADS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")  # all that Pillow takes for a TIFF
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
WHOLE_TYPES = {1: "B", 3: "H", 4: "L", 6: "B", 8: "H", 9: "L", 13: "L", 16: "Q", 17: "Q", 18: "Q"}  # below 0: vast
SIZE_TAGS = (256, 257)  # width and height of the picture
TILE_TAGS = (322, 323)
EXIF_TAGS = (34665, 34853, 40965)  # directories of EXIF, GPS and interoperability, which Pillow reads with a TIFF
_TOLD = frozenset((*SIZE_TAGS, *TILE_TAGS, *EXIF_TAGS))
_USUAL_BYTES = 512  # a directory is rarely longer
_EXIF_HEAD = b"Exif\0\0"


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
        _Directories(stream, f"{item} is a TIFF").check_all()
    except struct.error:  # it breaks off
        return
    finally:
        stream.seek(place)


def check_exif(content: bytes, item: str) -> None:
    """Nothing, or a ValueError where the first directory of EXIF data, which Pillow reads, names too much."""
    for _ in range(4):
        content = content.removeprefix(_EXIF_HEAD)
    if content.startswith(_EXIF_HEAD):  # Pillow takes off one at a time, each time copying the rest
        raise ValueError(f"{item} has EXIF data that begin again and again. Export it again.")
    try:
        found = _Directories(BytesIO(content), f"{item} has EXIF data")
        found.check_exif(found.first)
    except struct.error:
        return


class _Directories:
    """The directories of a TIFF file; `item` is how messages begin. struct.error where the file breaks off."""

    def __init__(self, stream: BinaryIO, item: str):
        self.stream, self.item = stream, item
        self.num_bytes = stream.seek(0, 2)
        self.num_tags = 0
        stream.seek(0)
        head = stream.read(16)
        self.order = "<" if head[:2] == b"II" else ">"
        is_big = head[2:3] == b"+"  # as Pillow has it
        forms = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHL4s", "L")
        self.count, self.entry, self.offset = (struct.Struct(self.order + form) for form in forms)
        is_tiff = head[:4] in TIFF_HEADS
        self.first = self.offset.unpack_from(head, 8 if is_big else 4)[0] if is_tiff else 0

    def check_all(self) -> None:
        """Nothing, or a ValueError for what `check_tiff` refuses."""
        place, num_named, seen = self.first, 0, set()
        while 0 < place < self.num_bytes:
            if place in seen or len(seen) == MAX_DIRECTORIES:
                fault = "come back to one before" if place in seen else f"are more than {MAX_DIRECTORIES:,}"
                raise ValueError(f"{self.item} whose directories {fault}. Export it again, a long stack in parts.")
            seen.add(place)
            tags, named, following = self._read(place)
            num_named += named
            if num_named > max(MAX_NAMED_SHARE * self.num_bytes, FREE_BYTES):
                raise self._names_too_much(num_named)
            if tags.keys() & TILE_TAGS:
                self._check_tile(tags)
            for tag in tags.keys() & EXIF_TAGS:
                self.check_exif(tags[tag])
            if following is None:  # it breaks off
                return
            place = following

    def check_exif(self, place: int | None, inner: Sequence[int] = EXIF_TAGS[2:]) -> None:
        """Nothing, or a ValueError where the directory of EXIF at `place`, if one is there, names too much."""
        if place is None:
            raise ValueError(f"{self.item} that says in no single number where its EXIF data are. Export it again.")
        if 0 < place < self.num_bytes:
            tags, named, _ = self._read(place)
            if named > MAX_EXIF_BYTES:
                raise self._names_too_much(named)
            for tag in inner:
                self.check_exif(tags.get(tag, 0), inner=())

    def _read(self, place: int) -> tuple[dict[int, int | None], int, int | None]:
        """Of a directory: the numbers of _TOLD by tag, None for no single whole one; the bytes it names; what follows.

        Where it breaks off, what is there of it, as Pillow reads it, and None follows.
        """
        self.stream.seek(place)
        data = self.stream.read(_USUAL_BYTES)
        (num_tags,) = self.count.unpack_from(data)
        self.num_tags += num_tags
        if self.num_tags > MAX_TAGS:
            raise ValueError(f"{self.item} whose directories have more than {MAX_TAGS:,} tags. Export it again.")
        start, named = self.count.size, num_tags * self.entry.size
        end = start + named
        if end + self.offset.size > len(data):
            data += self.stream.read(end + self.offset.size - len(data))
        whole = min(end, start + (len(data) - start) // self.entry.size * self.entry.size)  # of one that breaks off
        tags: dict[int, int | None] = {}
        num_bytes = self.num_bytes
        for tag, kind, length, value in self.entry.iter_unpack(memoryview(data)[start:whole]):
            size = TYPE_BYTES.get(kind, 0) * length
            named += size if size < num_bytes else num_bytes  # of a broken length no more is loaded
            if tag in _TOLD:
                is_whole = length == 1 and kind in WHOLE_TYPES and size <= len(value)
                tags[tag] = struct.unpack_from(self.order + WHOLE_TYPES[kind], value)[0] if is_whole else None
        following = data[end : end + self.offset.size]
        return tags, named, self.offset.unpack(following)[0] if len(following) == self.offset.size else None

    def _names_too_much(self, named: int) -> ValueError:
        return ValueError(
            f"{self.item} of {self.num_bytes:,} bytes whose directories name at least {named:,}, which no sound file's "
            "do. Export it again."
        )

    def _check_tile(self, tags: dict[int, int | None]) -> None:
        """Nothing, or a ValueError for tiles that are far larger than their picture, and than the file."""
        tile, size = ([tags.get(tag, 1) for tag in pair] for pair in (TILE_TAGS, SIZE_TAGS))
        sides = [side for side in (*tile, *size) if side is not None]
        most = max(FREE_PIXELS, self.num_bytes)  # a file that holds the tile unpacked is as large
        if len(sides) < 4 or sides[0] * sides[1] > max(4 * sides[2] * sides[3], most):
            raise ValueError(
                f"{self.item} whose tiles, {tile[0]} x {tile[1]}, do not fit its {size[0]} x {size[1]} pixels; a "
                "decoder makes room for a whole tile. Export it again."
            )

"""What Pillow's decoders raise for broken files, found by truncating and corrupting 5,100 of them; what is too large."""

import struct
import zlib

from PIL import Image

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def check_num_pixels(width: int, height: int, item: str) -> None:
    """Nothing, or a ValueError for a picture with more pixels than Pillow takes for safe (`Image.MAX_IMAGE_PIXELS`)."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise too_many_pixels(f"{item} has {width} x {height} pixels")


def too_many_pixels(statement: str) -> ValueError:
    """The error for a picture too large to be safe, which `statement` names."""
    return ValueError(
        f"{statement}; at most {Image.MAX_IMAGE_PIXELS:,} are read, because a small file can hold a picture that fills "
        "the memory. If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS; or cut it into tiles or make it smaller."
    )

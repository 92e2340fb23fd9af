"""What Pillow's decoders raise for broken files, found by damaging 5,100 of them; what is too large or unchosen."""

import struct
import zlib
from numbers import Integral
from typing import Any

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


def chosen_index(index: int | None, count: int, item: str, *, things: str, option: str) -> int:
    """The index of the one thing to read out of `count`, from 0.

    Args:
        index: what the user chose; None is enough where there is one.
        count: how many there are.
        item: what messages call the file.
        things: what they are, for instance "frames".
        option: the argument by which one is chosen.

    Raises:
        ValueError: several and no choice, a choice that is not there, or none to choose from.
    """
    rule = f"choose one by {option}=0 to {option}={count - 1}" if count > 1 else f"leave {option} out"
    if count < 1:
        raise ValueError(f"{item} has {count} {things}; it must have at least one. Fetch the file again.")
    if index is None and count > 1:
        raise ValueError(f"{item} has {count} {things}; an image is one of them: {rule}.")
    is_whole = isinstance(index, Integral) and not isinstance(index, bool)
    if index is not None and not (is_whole and 0 <= index < count):
        raise ValueError(f"{item} has {count} {things}, and {option} is {index!r}; {rule}.")
    return int(index or 0)


def plain_index(index: Any) -> Any:
    """The same choice as JSON holds it: numpy's whole numbers as int, arrays and ranges as lists, the rest as it is."""
    plain = index.tolist() if hasattr(index, "tolist") else index
    return [plain_index(one) for one in plain] if isinstance(plain, (list, tuple, range)) else plain

"""What Pillow's decoders raise for broken files: found by truncating and corrupting 5,100 of them."""

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

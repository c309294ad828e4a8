"""Columns of numbers as short texts, which a page unpacks with what every browser has.

A column is a little-endian array, its bytes shuffled (all first bytes, all second bytes, ...),
compressed by deflate and written in base64 after its number of bytes (four bytes). Each is a piece
of a stream that is flushed at its end: pieces in any order, with `END` after them, are one stream,
so a page inflates many columns at once.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numcodecs import BitRound, Shuffle
from numpy.typing import NDArray

DIGITS = 6
"""Digits to which values are kept."""

END = b"\x03\x00"
"""The last, empty block of a stream of columns."""

# Twenty bits round to half a unit of the sixth digit, or less. With the twelve bits before them
# they fill half of a float64; the other half is zero, and left out.
_KEPT_BITS = 20


def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to `DIGITS` digits as the page does, in binary."""
    bits = BitRound(_KEPT_BITS).encode(np.ascontiguousarray(values, np.float64))
    return np.asarray(bits).view(np.float64)


def values(numbers: NDArray[np.float64]) -> str:
    """Write numbers, rounded to `DIGITS` digits; NaN and infinity stay."""
    return _packed(rounded(numbers.ravel()).view("<u4")[1::2])


def exact(numbers: NDArray[np.float64]) -> str:
    """Write numbers as they are."""
    return _packed(np.asarray(numbers, "<f8"))


def codes(numbers: NDArray[np.uint8]) -> str:
    """Write numbers from 0 to 255."""
    return _packed(np.asarray(numbers, np.uint8))


def _packed(array: NDArray[np.generic]) -> str:
    plain = np.ascontiguousarray(array)
    shuffled = Shuffle(plain.itemsize).encode(plain) if plain.itemsize > 1 else plain
    content = np.asarray(shuffled).tobytes()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    return base64.b64encode(len(content).to_bytes(4, "little") + piece).decode("ascii")

"""How the numbers of a store are cut into chunks and files."""

from __future__ import annotations

import math
from collections.abc import Sequence

CHUNK_BYTES = 4 * 2**20
"""The most that is read at once."""

SHARD_BYTES = 64 * 2**20
"""The most that one file holds, unless one chunk alone is larger."""

# Readers take whole steps and whole layers, so these are cut first and the rest stays together.
_CUT_FIRST = ("step", "depth_point", "node", "replicate", "seed", "cell")


def pack(
    dims: Sequence[str], shape: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Choose chunks (what is read at once) and shards (what is one file).

    Parameters
    ----------
    dims : sequence of str
        Names of the dimensions.
    shape : sequence of int
        Their sizes.
    itemsize : int
        Bytes of one number.

    Returns
    -------
    chunks, shards : tuple of int
        ``shards`` is None for a variable that fits into one chunk. Shards are whole multiples of
        chunks and stay below `SHARD_BYTES`, unless one chunk alone is larger.
    """
    chunks = [max(1, size) for size in shape]

    def nbytes(block: Sequence[int]) -> int:
        return math.prod(block) * itemsize

    if nbytes(chunks) <= CHUNK_BYTES:
        return tuple(chunks), None
    order = [dims.index(name) for name in _CUT_FIRST if name in dims]
    order += [axis for axis in range(len(shape)) if axis not in order]
    for axis in order:
        pieces = min(shape[axis], math.ceil(nbytes(chunks) / CHUNK_BYTES))
        chunks[axis] = math.ceil(shape[axis] / pieces)
    shards = list(chunks)
    for axis in reversed(order):
        blocks = math.ceil(shape[axis] / chunks[axis])
        room = max(1, SHARD_BYTES // nbytes(shards))
        files = math.ceil(blocks / room)
        shards[axis] = chunks[axis] * math.ceil(blocks / files)
    return tuple(chunks), tuple(shards)

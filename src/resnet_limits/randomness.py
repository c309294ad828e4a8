"""Named streams of random numbers.

A stream is found by its name, such as ``("embedding", seed)``, and by the root seed of the
experiment, never by a position in some order of use. What is drawn therefore does not depend on
batching, on the device, on the order of jobs, or on the other values of a sweep.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable
from typing import SupportsIndex

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

_BLOCK = 1 << 18


def _bit_generator(root_seed: SupportsIndex, name: tuple[str | SupportsIndex, ...]) -> Philox:
    state = hashlib.blake2b(digest_size=16, person=b"resnet-limits")
    for part in (root_seed, *name):
        raw = (f"s{part}" if isinstance(part, str) else f"i{operator.index(part)}").encode()
        # The length before each part keeps ("ab", "c") apart from ("a", "bc").
        state.update(len(raw).to_bytes(8, "big"))
        state.update(raw)
    return Philox(key=int.from_bytes(state.digest(), "big"))


def generator(root_seed: SupportsIndex, *name: str | SupportsIndex) -> Generator:
    """Open a named stream at its beginning.

    Parameters
    ----------
    root_seed : int
        Root of every stream of an experiment.
    *name : str or int
        The stream's name; ``1`` and ``"1"`` are different names.

    Returns
    -------
    numpy.random.Generator
        Always the same one for the same root seed and name.
    """
    return Generator(_bit_generator(root_seed, name))


def _uniform(u: Array) -> Array:
    return math.sqrt(3.0) * (2.0 * u - 1.0)


def _rademacher(u: Array) -> Array:
    return np.where(u < 0.5, -1.0, 1.0)


LAWS: dict[str, Callable[[Array], Array]] = {
    "gaussian": ndtri,
    "uniform": _uniform,
    "rademacher": _rademacher,
}
"""Quantiles of the initial laws, all of mean 0 and variance 1."""


def draw(stream: Generator, law: str, size: tuple[int, ...]) -> Array:
    """Draw independent numbers of a law.

    Parameters
    ----------
    stream : numpy.random.Generator
        From `generator`.
    law : str
        A key of :data:`LAWS`.
    size : tuple of int
        The array's shape.
    """
    return stream.standard_normal(size) if law == "gaussian" else LAWS[law](stream.random(size))


def law_rows(
    law: str, root_seed: SupportsIndex, *name: str | SupportsIndex, rows: int, columns: int
) -> Array:
    """Draw a table of independent numbers of a law, row by row.

    Every entry takes one word of the stream and is found from it by inversion, so that the table
    is the beginning of any longer one with as many columns, bit for bit.

    Parameters
    ----------
    law : str
        A key of :data:`LAWS`.
    root_seed, *name
        As for `generator`.
    rows, columns : int
        Size of the table.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
    """
    bits = _bit_generator(root_seed, name)
    flat = np.empty(rows * columns)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        # 52 bits and a half are exact in float64 and never give 0 or 1; with 53 bits the largest
        # word would round to 1, whose quantile is infinite.
        block[:] = bits.random_raw(block.size) >> np.uint64(12)
        block += 0.5
        block *= 2.0**-52
        block[:] = LAWS[law](block)
    return flat.reshape(rows, columns)


def normal_rows(
    root_seed: SupportsIndex, *name: str | SupportsIndex, rows: int, columns: int
) -> Array:
    """Draw a table of standard normal numbers; see `law_rows`."""
    return law_rows("gaussian", root_seed, *name, rows=rows, columns=columns)


def permutation(
    root_seed: SupportsIndex, *name: str | SupportsIndex, size: int
) -> NDArray[np.intp]:
    """Draw a uniform permutation of 0 to size - 1.

    Parameters
    ----------
    root_seed, *name
        As for `generator`.
    size : int
        Number of things to permute.

    Returns
    -------
    ndarray of int, shape (size,)
    """
    # Sorting raw words does not change between versions of numpy; Generator.permutation may.
    return np.argsort(_bit_generator(root_seed, name).random_raw(size), kind="stable")

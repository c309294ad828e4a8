"""Expectations over the Gaussian weights of one residual unit.

Only the projections of a unit's weights on the span of the embedding matter (theory.md, "Why the
limits are small problems"), so the expectation is over ``n = (a + c) r`` standard normals. Where
g is linear every expectation is of second moments and a cubature of 2n points is exact. Otherwise
scrambled Sobol' points with sign flips are used, several scramblings at a time, whose scatter is an
honest standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from resnet_limits import randomness

Array = NDArray[np.float64]

CUBATURE = "cubature"
SOBOL = "sobol"


@dataclass(frozen=True)
class UnitSample:
    """Initial weights of the quadrature's units, all of equal weight.

    Attributes
    ----------
    in_vectors : Tensor, shape (replicates, points, a, r)
        Standard normal (before ``s_in``).
    out_vectors : Tensor, shape (replicates, points, c, r)
        Standard normal (before ``s_out``).
    """

    in_vectors: Tensor
    out_vectors: Tensor

    @property
    def replicates(self) -> int:
        """Number of independent scramblings."""
        return self.in_vectors.shape[0]

    @property
    def points(self) -> int:
        """Number of points of each replicate."""
        return self.in_vectors.shape[1]


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions in R^r, the ones that matter most first, one a column.

    The first coordinates of a Sobol' sequence are its best, so they go to the directions along
    which units first see the data. Any rotation leaves the normal law as it is.

    Attributes
    ----------
    incoming, outgoing : ndarray, shape (r, r)
        For the in-vectors (inputs' principal directions, then targets') and the out-vectors (the
        other way round).
    """

    incoming: Array
    outgoing: Array

    @classmethod
    def of_data(cls, hidden: Array, readout: Array) -> Directions:
        """Order directions by the data.

        Parameters
        ----------
        hidden : ndarray, shape (r, rows)
            The hidden state at step 0, ``R_e x``.
        readout : ndarray, shape (r, rows)
            The backward state that the targets give at step 0, ``R_u y``.
        """
        return cls(_principal(hidden, readout), _principal(readout, hidden))


def _principal(first: Array, second: Array) -> Array:
    """Complete orthonormal basis: principal directions of `first`, then of `second`."""
    r = len(first)
    basis = np.zeros((r, 0))
    for block in (first, second, np.eye(r)):
        rest = block - basis @ (basis.T @ block)
        vectors, values, _ = np.linalg.svd(rest, full_matrices=False)
        new = vectors[:, values > 1e-8 * max(1.0, float(np.abs(block).max()))]
        basis = np.concatenate([basis, new], axis=1)[:, :r]
    orthonormal: Array = np.linalg.qr(basis)[0]
    return orthonormal


def cubature(in_vectors: int, out_vectors: int, dimension: int) -> UnitSample:
    """Spherical-radial cubature of degree 3: the 2n points ``+-sqrt(n) e_i`` in n dimensions.

    Exact for the second moments, hence for linear units.

    Parameters
    ----------
    in_vectors, out_vectors, dimension : int
        a, c and r; ``n = (a + c) r``.
    """
    n = (in_vectors + out_vectors) * dimension
    half = torch.eye(n, dtype=torch.float64) * n**0.5
    both = torch.cat([half, -half]).view(1, 2 * n, in_vectors + out_vectors, dimension)
    return UnitSample(both[:, :, :in_vectors].contiguous(), both[:, :, in_vectors:].contiguous())


def sobol(
    in_vectors: int,
    out_vectors: int,
    directions: Directions,
    *,
    points: int,
    replicates: int,
    root_seed: int,
    flip_inputs: bool,
) -> UnitSample:
    """Scrambled Sobol' points mapped to normals, closed under sign flips.

    Parameters
    ----------
    in_vectors, out_vectors : int
        a and c.
    directions : Directions
        The rotation of the normals.
    points : int
        Points of one replicate, a power of two and at least 4; the flips are among them, so that
        a longer sample contains a shorter one's sequence.
    replicates : int
        Independent scramblings.
    root_seed : int
        Replicate i is a function of (root_seed, i) and of the shapes alone.
    flip_inputs : bool
        Flip the signs of the in-vectors too: worth its points unless g is odd, for which
        (-I, -O) behaves as (I, O) does.
    """
    r = len(directions.incoming)
    vectors = in_vectors + out_vectors
    flips = 4 if flip_inputs else 2
    base = max(1, points // flips)
    exponent = base.bit_length() - 1
    incoming, outgoing = [], []
    for replicate in range(replicates):
        # scipy spawns children of the seed that it is given, which a plain integer allows.
        seed = int(randomness.generator(root_seed, "quadrature", replicate).integers(2**63))
        sequence = qmc.Sobol(vectors * r, scramble=True, rng=seed).random_base2(exponent)
        # Half of the last of the sequence's 30 bits keeps the inverse finite at both ends.
        normal = ndtri(sequence + 2.0**-31).reshape(base, r, vectors).transpose(0, 2, 1)
        inner = normal[:, :in_vectors] @ directions.incoming.T
        outer = normal[:, in_vectors:] @ directions.outgoing.T
        signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)][:flips]
        incoming.append(np.concatenate([si * inner for si, _ in signs]))
        outgoing.append(np.concatenate([so * outer for _, so in signs]))
    return UnitSample(torch.from_numpy(np.stack(incoming)), torch.from_numpy(np.stack(outgoing)))

"""Expectations over the Gaussian weights of one residual unit.

Only the projections of a unit's weights on the span of the embedding matter
(docs/concepts/limits.md), so the expectation is over ``n = (a + c) r`` standard normals. Where
g is linear every expectation is of second moments and a cubature of 2n points is exact. Otherwise
scrambled Sobol' points with sign flips are used, several scramblings at a time, whose scatter is an
honest standard error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import qmc
from torch import Tensor

from resnet_limits import randomness
from resnet_limits.threads import workers

Array = NDArray[np.float64]

CUBATURE = "cubature"
SOBOL = "sobol"
INDEPENDENT = "independent"
# Points that are drawn at a time, which bounds temporary arrays.
_BLOCK = 1 << 15


@dataclass(frozen=True)
class UnitSample:
    """Initial weights of the quadrature's units, all of equal weight.

    Attributes
    ----------
    in_vectors : Tensor, shape (replicates, points, a, r)
        Standard normal (before ``s_in``).
    out_vectors : Tensor, shape (replicates, points, c, r)
        Standard normal (before ``s_out``).
    group : int
        So many consecutive points differ in their signs alone and stay together.
    shared : bool
        Every depth node gets all the points. Otherwise they are dealt out to the nodes.
    """

    in_vectors: Tensor
    out_vectors: Tensor
    group: int = 1
    shared: bool = False

    @property
    def replicates(self) -> int:
        """Number of independent scramblings."""
        return self.in_vectors.shape[0]

    @property
    def points(self) -> int:
        """Number of points of each replicate."""
        return self.in_vectors.shape[1]

    def of(self, replicate: int) -> UnitSample:
        """Give one replicate alone."""
        one = slice(replicate, replicate + 1)
        return replace(self, in_vectors=self.in_vectors[one], out_vectors=self.out_vectors[one])

    def at_nodes(self, shares: Array) -> list[tuple[Tensor, Tensor]]:
        """Return the in- and the out-vectors of each depth node.

        A node gets a run of consecutive points as long as its share, the first points the first
        node. A point's number over the number of points is thus a depth, whatever the nodes, and
        all points together sample units and depth with equal weights.

        Parameters
        ----------
        shares : ndarray, shape (nodes,)
            Positive, of sum 1.

        Returns
        -------
        list of tuple of Tensor, shapes (replicates, points of the node, a or c, r)

        Raises
        ------
        ValueError
            If a node gets no points.
        """
        if self.shared:
            return [(self.in_vectors, self.out_vectors)] * len(shares)
        ends = np.rint(np.cumsum(shares) * (self.points // self.group)).astype(int) * self.group
        runs = np.diff(ends, prepend=0)
        if runs.min() <= 0:
            raise ValueError(f"{self.points} points are too few for {len(shares)} depth nodes")
        sizes = runs.tolist()
        used = self.in_vectors[:, : ends[-1]], self.out_vectors[:, : ends[-1]]
        return list(zip(*(vectors.split(sizes, dim=1) for vectors in used), strict=True))


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
    return UnitSample(both[:, :, :in_vectors], both[:, :, in_vectors:], shared=True)


def sobol(
    in_vectors: int,
    out_vectors: int,
    directions: Directions,
    *,
    points: int,
    replicates: range,
    root_seed: int,
    flip_inputs: bool,
    branch: int = 0,
    dtype: torch.dtype = torch.float64,
) -> UnitSample:
    """Scrambled Sobol' points mapped to normals, closed under sign flips.

    Parameters
    ----------
    in_vectors, out_vectors : int
        a and c.
    directions : Directions
        The rotation of the normals.
    points : int
        Points of one replicate, a multiple of 4. Flips are among them, each point's next to it, so
        that a longer sample begins with a shorter one.
    replicates : range
        Numbers of the independent scramblings.
    root_seed : int
        Replicate i is a function of (root_seed, i, branch) and of the shapes alone.
    flip_inputs : bool
        Flip the signs of the in-vectors too: worth its points unless g is odd, for which
        (-I, -O) behaves as (I, O) does.
    branch : int
        Number of the branch whose units these are; each has its own scramblings.
    dtype : torch dtype
        What the normals, drawn in float64, are rounded to.
    """
    r = len(directions.incoming)
    vectors = in_vectors + out_vectors
    signs = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)][: 4 if flip_inputs else 2]
    flips = torch.tensor(signs, dtype=torch.float64)
    turns = [torch.from_numpy(turn.T.copy()) for turn in (directions.incoming, directions.outgoing)]
    counts = in_vectors, out_vectors
    drawn = [torch.empty(len(replicates), points, count, r, dtype=dtype) for count in counts]

    def draw(index: int) -> None:
        # scipy spawns children of the seed that it is given, which a plain integer allows.
        name = (replicates[index], branch) if branch else (replicates[index],)
        seed = int(randomness.generator(root_seed, "quadrature", *name).integers(2**63))
        sequence = qmc.Sobol(vectors * r, scramble=True, rng=seed)
        for start in range(0, points, _BLOCK):
            stop = min(points, start + _BLOCK)
            needed = (stop - start) // len(signs)
            # The sequence is balanced in runs of a power of two.
            run = sequence.random(1 << (needed - 1).bit_length())[:needed]
            uniform = torch.from_numpy(run)
            # Half of the last of the sequence's 30 bits keeps the inverse finite at both ends.
            normal = torch.special.ndtri(uniform + 2.0**-31).unflatten(1, (r, vectors)).mT
            for target, turn, part, sign in zip(
                drawn, turns, normal.split(counts, dim=1), flips.T, strict=True
            ):
                images = sign[:, None, None] * (part @ turn)[:, None]
                target[index, start:stop] = images.flatten(0, 1)

    with workers() as pool:
        for _ in (pool.map if pool else map)(draw, range(len(replicates))):
            pass
    ins, outs = drawn
    return UnitSample(ins, outs, group=len(signs))


def independent(
    in_vectors: int,
    out_vectors: int,
    dimension: int,
    *,
    points: int,
    replicates: range,
    root_seed: int,
    branch: int = 0,
    dtype: torch.dtype = torch.float64,
) -> UnitSample:
    """Independent points: the units of a network of so many, each replicate another network's.

    Parameters
    ----------
    in_vectors, out_vectors, dimension : int
        a, c and r.
    points, replicates, root_seed, branch, dtype
        As for `sobol`.
    """
    size = points, in_vectors + out_vectors, dimension
    drawn = torch.empty(len(replicates), *size, dtype=dtype)
    for target, replicate in zip(drawn, replicates, strict=True):
        name = (replicate, branch) if branch else (replicate,)
        values = randomness.generator(root_seed, "units", *name).standard_normal(size)
        target.copy_(torch.from_numpy(values))
    return UnitSample(drawn[:, :, :in_vectors], drawn[:, :, in_vectors:])

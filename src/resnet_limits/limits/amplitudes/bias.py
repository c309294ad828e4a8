"""The bias of the outputs of order D/(LM) (docs/concepts/amplitudes-outputs.md).

To first order in kappa = D/(LM) a network differs in its mean from its infinite-width limit for
three reasons: the initial weights of its units see the noise of the states, what they have learned
overlaps with that noise, and a unit sees again what it has itself put into the states. All three
add to what the units of the limit see, by covariances and responses that the limit's own kernels
give. The limit with these additions at a small kappa, on the same points, gives the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.linalg import hadamard
from torch import Tensor

from resnet_limits import randomness
from resnet_limits.dynamics import Dynamics
from resnet_limits.interpolation import interpolation_matrix
from resnet_limits.limits.amplitudes.histories import (
    NOTHING,
    Additions,
    Histories,
    Points,
    Solution,
    replay,
    solve,
)
from resnet_limits.limits.amplitudes.responses import BranchKernels, Steps, branch_kernels
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.threads import workers

CELLS = 16
"""Cells in which noise and responses are carried on, where depth is continuous."""
KAPPA = 1e-4
"""kappa at which the limit with its additions is solved."""
# Variances of the moves of second differences. A map with kinks has second derivatives in the mean
# only, which larger moves find in fewer units.
_DIFFERENCE, _DIFFERENCE_AT_KINKS = 1e-3, 3e-2
# Of the trace of a covariance, what the directions that are left out may have.
_LEFT_OUT = 1e-4
# Units are replayed in chunks of so many bytes, in which so many arrays as large as their histories
# are there at once.
_BYTES, _ARRAYS = 1 << 25, 6


@dataclass(frozen=True)
class Parts:
    """Which parts of the bias are taken. All are of one order.

    Attributes
    ----------
    noise : bool
        What the initial weights see of the noise of the states.
    overlap : bool
        What the trained weights see of it.
    reaction : bool
        What a unit sees again of what it has put into the states.
    """

    noise: bool = True
    overlap: bool = True
    reaction: bool = True


ALL = Parts()


@dataclass(frozen=True)
class Fluctuations:
    """Noise and responses at the edges of the cells, all (edges, Q, Q), over kappa.

    Attributes
    ----------
    hidden, backward : Tensor
        Covariances of h and of b.
    to_hidden : Tensor
        Response of h_k to what is put into b_q at the same depth.
    to_backward : Tensor
        Response of b_k to what is put into h_q at the same depth.
    """

    hidden: Tensor
    backward: Tensor
    to_hidden: Tensor
    to_backward: Tensor


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Give eigenvalues, largest first, and eigenvectors in columns."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


class _Carrier:
    """Carries sources on along the depth, by the kernels of all branches.

    Where depth is layered every branch of every layer is a cell, which reads h before and b after
    it. Where it is continuous there are `CELLS` cells, which read the means of their two edges.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        grid: DepthGrid,
        solution: Solution,
        found: Sequence[BranchKernels],
        cells: int,
    ) -> None:
        self.rows, self.steps = len(dynamics.inputs), dynamics.steps
        self.size = self.rows * self.steps
        self.layered = grid.step > 0
        hidden, backward, noise_h, noise_b = [], [], [], []
        for of, solved in zip(found, solution.branches, strict=True):
            both = solved.factor[:, :, None] * solved.factor[:, None]
            hidden.append(of.forward[0])
            backward.append(both * of.backward[0] + torch.diag_embed(solved.turn))
            noise_h.append(of.forward_noise[0])
            noise_b.append(both * of.backward_noise[0])
        if self.layered:
            self.hidden, self.backward, self.noise_h, self.noise_b = (
                torch.stack(each, 1).flatten(0, 1) for each in (hidden, backward, noise_h, noise_b)
            )
            self.weight = grid.step
        else:
            middle = (np.arange(cells) + 0.5) / cells
            to_cells = torch.from_numpy(interpolation_matrix(grid.s, middle))
            self.hidden, self.backward, self.noise_h, self.noise_b = (
                torch.einsum("cn,nkq->ckq", to_cells, sum(each, torch.zeros(())))
                for each in (hidden, backward, noise_h, noise_b)
            )
            self.weight = 1.0 / cells
        self.cells = len(self.hidden)
        # What trained embeddings carry on.
        inputs = torch.from_numpy(dynamics.inputs).repeat(self.steps, 1)
        first = Steps.of(dynamics, dynamics.rate_embedding, dynamics.residual_scale)
        last = Steps.of(dynamics, dynamics.rate_unembedding, dynamics.residual_scale)
        self.start = -first.past * (inputs @ inputs.mT)
        grads, factor = solution.cotangents, solution.factor
        self.end = -last.past * (grads @ grads.mT) * torch.outer(factor, factor)
        self.end = self.end + torch.diag(solution.turn)

    def _edges(self, jumps: Tensor, *, down: bool) -> tuple[Tensor, Tensor]:
        """Add up what cells put in: the states at the edges, and what the cells read of them."""
        zero = jumps.new_zeros(1, *jumps.shape[1:])
        if down:
            edges = torch.cat([jumps.flip(0).cumsum(0).flip(0), zero])
            read = edges[1:]
        else:
            edges = torch.cat([zero, jumps.cumsum(0)])
            read = edges[:-1]
        return edges, read if self.layered else (edges[1:] + edges[:-1]) / 2

    def carry(
        self, h_edges: Tensor, h_read: Tensor, b_edges: Tensor, b_read: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give h and b at the edges, (edges, Q, sources), for sources there and as cells read them.

        The problem is causal in the step: h_k needs earlier b's, b_k needs h's up to k.
        """
        h_edges, h_read, b_edges, b_read = (
            each.clone() for each in (h_edges, h_read, b_edges, b_read)
        )
        for step in range(self.steps):
            now = slice(step * self.rows, (step + 1) * self.rows)
            if step:
                past = slice(0, now.start)
                jumps = self.weight * (self.hidden[:, now, past] @ b_read[:, past])
                edges, read = self._edges(jumps, down=False)
                start = self.start[now, past] @ b_edges[0, past]
                h_edges[:, now] += edges + start
                h_read[:, now] += read + start
            up_to = slice(0, now.stop)
            jumps = self.weight * (self.backward[:, now, up_to] @ h_read[:, up_to])
            edges, read = self._edges(jumps, down=True)
            end = self.end[now, up_to] @ h_edges[-1, up_to]
            b_edges[:, now] += edges + end
            b_read[:, now] += read + end
        return h_edges, b_edges

    def fluctuations(self) -> Fluctuations:
        """Give covariances and responses."""
        size, cells = self.size, self.cells
        eye = torch.eye(size, dtype=torch.float64)
        edges = torch.zeros(cells + 1, size, size, dtype=torch.float64)
        found = Fluctuations(edges, edges.clone(), edges.clone(), edges.clone())

        def roots(covariance: Tensor) -> Tensor:
            values, vectors = _root(self.weight * covariance)
            return vectors * values.sqrt()[:, None]

        of_h, of_b = roots(self.noise_h), roots(self.noise_b)
        nothing = edges.new_zeros(cells, size, size), edges, edges.new_zeros(cells, size, size)
        for cell in range(cells):
            put = nothing[0].clone()
            put[cell] = of_h[cell]
            none_edges, none_read = torch.zeros_like(edges), nothing[2]
            above = self._edges(put, down=False)
            put = nothing[0].clone()
            put[cell] = of_b[cell]
            below = self._edges(put, down=True)
            for sources in (
                (*above, none_edges, none_read),
                (none_edges, none_read, *below),
            ):
                h, b = self.carry(*sources)
                found.hidden.add_(h @ h.mT)
                found.backward.add_(b @ b.mT)
        for edge in range(cells + 1):
            kick_edges, kick_read = torch.zeros_like(edges), torch.zeros_like(nothing[2])
            kick_edges[edge:], kick_read[edge:] = eye, eye
            none_edges, none_read = torch.zeros_like(edges), torch.zeros_like(nothing[2])
            found.to_backward[edge] = self.carry(kick_edges, kick_read, none_edges, none_read)[1][
                edge
            ]
            kick_edges, kick_read = torch.zeros_like(edges), torch.zeros_like(nothing[2])
            kick_edges[: edge + 1], kick_read[:edge] = eye, eye
            found.to_hidden[edge] = self.carry(none_edges, none_read, kick_edges, kick_read)[0][
                edge
            ]
        return found

    def at(self, grid: DepthGrid, branch: int, branches: int, found: Fluctuations) -> Fluctuations:
        """Give them where a branch sees them, at the nodes: h before it and b after it."""
        if self.layered:
            before = torch.arange(grid.nodes) * branches + branch
            return Fluctuations(
                found.hidden[before],
                found.backward[before + 1],
                found.to_hidden[before],
                found.to_backward[before + 1],
            )
        edges = np.arange(self.cells + 1) / self.cells

        def at_nodes(values: Tensor) -> Tensor:
            return torch.from_numpy(CubicSpline(edges, values.numpy())(grid.s))

        return Fluctuations(*(at_nodes(getattr(found, name)) for name in found.__dict__))


def _noise_drifts(
    dynamics: Dynamics,
    solved: Histories,
    points: Points,
    seen: Fluctuations,
    generator: np.random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Give what the noise that the initial weights see adds to the drifts, over kappa.

    Half the trace of the second derivative times the covariance, by second differences along sums
    with signs of the covariance's main directions: the products of two directions cancel in the
    mean over signs. These are all rows of a Hadamard matrix, for which they cancel for every unit,
    or, with a generator, one random row of signs for each unit, whose scatter is that over units
    for the most part.
    """
    branch, phi = solved.branch, solved.factor
    variance = _DIFFERENCE if branch.unit.is_smooth else _DIFFERENCE_AT_KINKS
    of_p = branch.input_std**2 * phi[:, :, None] * seen.hidden * phi[:, None]
    of_r, dtype = branch.output_std**2 * seen.backward, points[0].dtype
    sides = [
        (vectors, (variance**0.5 * _main_directions(covariance)).to(dtype))
        for vectors, covariance in ((branch.unit.in_vectors, of_p), (branch.unit.out_vectors, of_r))
    ]
    splits = [vectors * directions.shape[-1] for vectors, directions in sides]
    vectors = sum(count for count, _ in sides)
    numbers = len(solved.w) * vectors * solved.g.shape[-1]
    together = max(1, _BYTES // (8 * _ARRAYS * numbers))
    totals = [torch.zeros_like(each) for each in (solved.w, solved.z)]
    count = points[0].shape[1]
    for first in range(0, count, together):
        units = (points[0][:, first : first + together], points[1][:, first : first + together])
        plain = replay(dynamics, solved, units, NOTHING)[:2]
        drawn = _signs(generator, (len(solved.w), units[0].shape[1]), sum(splits))
        weight = units[0].shape[1] / count / variance / len(drawn) / 2
        for signs in drawn:
            moves = [
                torch.einsum("npvx,nqx->npvq", part.unflatten(-1, (of, -1)), directions)
                for part, (of, directions) in zip(
                    signs.to(dtype).split(splits, -1), sides, strict=True
                )
            ]
            for sign in (1.0, -1.0):
                more = Additions(to_p=sign * moves[0], to_r=sign * moves[1])
                moved = replay(dynamics, solved, units, more)[:2]
                for i in (0, 1):
                    totals[i] += weight * (moved[i] - plain[i])
    return totals[0], totals[1]


def _signs(generator: np.random.Generator | None, units: tuple[int, int], columns: int) -> Tensor:
    """Give signs of each unit, (draws, nodes, points, columns), or of all of them at once."""
    if generator is None:
        rows = hadamard(1 << (columns - 1).bit_length(), dtype=np.int8)[:, :columns]
        return torch.from_numpy(rows.copy())[:, None, None]
    return torch.from_numpy(2 * generator.integers(0, 2, (1, *units, columns), np.int8) - 1)


def _main_directions(covariance: Tensor) -> Tensor:
    """Give the covariance's main directions by their standard deviations, (nodes, Q, count)."""
    values, directions = _root(covariance)
    trace = values.sum(1)
    left = 1.0 - values.cumsum(1).sum(0) / trace.sum() if float(trace.sum()) else values[0]
    count = min(values.shape[1], int((left > _LEFT_OUT).sum()) + 1)
    return directions[..., :count] * values[:, None, :count].sqrt()


@dataclass(frozen=True)
class Numerics:
    """How precisely the bias is found.

    Attributes
    ----------
    cells : int
        Cells in which noise and responses are carried on, where depth is continuous.
    noise : sequence of UnitSample, optional
        More units, by which the part of the noise is found, and along random directions. That part
        scatters most by far.
    root_seed : int
        Root of the random directions' streams.
    """

    cells: int = CELLS
    noise: Sequence[UnitSample] | None = None
    root_seed: int = 0


def output_bias(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    samples: Sequence[UnitSample],
    *,
    parts: Parts = ALL,
    numerics: Numerics | None = None,
) -> Tensor:
    """Give the bias of the outputs of order D/(LM).

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    root : ndarray, shape (r, r)
        Root of the Gram matrix: the limit's, or that of a network's own embedding.
    grid : DepthGrid
        Continuous, or layered with every layer a node, for networks of that depth.
    samples : sequence of UnitSample
        Units of every branch, to be dealt out to the nodes, as many to each.
    parts : Parts
        Which parts of it are taken.
    numerics : Numerics, optional
        How precisely.

    Returns
    -------
    Tensor, shape (replicates, K, rows, d_out)
        A of each scrambling: the mean of a network's outputs, less those of its infinite-width
        limit, is A (D - r) / (L M) to first order in 1/(L M), beside what units that are drawn
        independently give in the span of the embedding, which does not grow with D.

    Raises
    ------
    LimitError
        If a fixed point over depth does not converge.
    """
    how = numerics or Numerics()

    def one(replicate: int) -> Tensor:
        return _bias(dynamics, root, grid, samples, replicate, parts, how)

    # Arrays are too small to be shared by torch's own threads.
    with workers() as pool:
        return torch.stack(list((pool.map if pool else map)(one, range(samples[0].replicates))))


def _bias(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    samples: Sequence[UnitSample],
    replicate: int,
    parts: Parts,
    how: Numerics,
) -> Tensor:
    points = [_double(_points(sample, replicate, grid.nodes)) for sample in samples]
    plain = solve(dynamics, root, grid, points)
    found = [
        _kernels(dynamics, solved, of, sample.group)
        for solved, of, sample in zip(plain.branches, points, samples, strict=True)
    ]
    carrier = _Carrier(dynamics, grid, plain, found, how.cells)
    edges = carrier.fluctuations()
    additions = []
    for number, solved in enumerate(plain.branches):
        branch = solved.branch
        seen = carrier.at(grid, number, len(points), edges)
        more = Additions()
        if parts.noise:
            units, generator = points[number], None
            if how.noise is not None:
                units = _points(how.noise[number], replicate, grid.nodes)
                stream = ("amplitudes: signs", replicate, number)
                generator = randomness.generator(how.root_seed, *stream)
            forward, backward = _noise_drifts(dynamics, solved, units, seen, generator)
            more = replace(more, drift_h=KAPPA * forward, drift_b=KAPPA * backward)
        if parts.overlap:
            more = replace(more, overlap_h=KAPPA * seen.hidden, overlap_b=KAPPA * seen.backward)
        if parts.reaction:
            gain = KAPPA * branch.scale / branch.ratio
            phi, rho = solved.factor, solved.learned_in.initial
            again_p = phi[:, :, None] * seen.to_hidden * phi[:, None] * torch.outer(rho, rho)
            rho = solved.learned_out.initial
            again_r = seen.to_backward * torch.outer(rho, rho)
            more = replace(
                more,
                again_p=gain * branch.input_std**2 * again_p,
                again_r=gain * branch.output_std**2 * again_r,
            )
        additions.append(more)
    end = KAPPA * edges.hidden[-1] if parts.overlap else None
    moved = solve(dynamics, root, grid, points, additions, end)
    return (moved.output - plain.output) / KAPPA


def _points(sample: UnitSample, replicate: int, nodes: int) -> Points:
    """Deal a scrambling out to the nodes, as many units to each, in its own arithmetic."""
    ins, outs = zip(*sample.at_nodes(np.full(nodes, 1.0 / nodes)), strict=True)
    fewest = min(each.shape[1] for each in ins)

    def dealt(vectors: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([each[replicate, :fewest] for each in vectors])

    return dealt(ins), dealt(outs)


def _double(points: Points) -> Points:
    return points[0].double(), points[1].double()


def _kernels(dynamics: Dynamics, solved: Histories, points: Points, group: int) -> BranchKernels:
    """Find the kernels at the states of a solution, by its units."""
    nodes = len(points[0])
    ins, outs = (each[None].flatten(1, 2) for each in points)
    sample = UnitSample(ins, outs, group)
    states = solved.u[None], solved.z[None]
    return branch_kernels(dynamics, solved.branch, sample, np.full(nodes, 1.0 / nodes), *states)

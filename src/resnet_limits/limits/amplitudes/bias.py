"""The bias of the outputs of order D/(LM), from the limit alone (docs/concepts/amplitudes-outputs.md).

To first order in kappa = D/(LM) a network differs in its mean from its infinite-width limit for
three reasons: the initial weights of its units see the noise of the states, what they have learned
overlaps with that noise, and a unit sees again what it has itself put into the states. All three
add to what the units of the limit see, by covariances and responses that the limit's own kernels
give. The limit with these additions at a small kappa, on the same points, gives the bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from resnet_limits.dynamics import Dynamics
from resnet_limits.interpolation import interpolation_matrix
from resnet_limits.limits.amplitudes.histories import (
    Additions,
    Histories,
    Learned,
    Points,
    Solution,
    replay,
    solve,
)
from resnet_limits.limits.depth import Array, DepthGrid

CELLS = 32
"""Cells in which noise and responses are carried on, where depth is continuous."""
KAPPA = 1e-4
"""kappa at which the limit with its additions is solved."""
_DIFFERENCE = 1e-3
# Of the trace of a covariance, what the directions that are left out may have.
_LEFT_OUT = 1e-4
_BYTES = 1 << 28


@dataclass(frozen=True)
class Kernels:
    """Kernels of one branch at the nodes of a depth grid, all (nodes, Q, Q).

    Attributes
    ----------
    hidden : Tensor
        K^h: the drift of h_k is ``sum_q K^h_kq b_q``.
    backward : Tensor
        K^b: the drift of -b_k, before its pull-back, is ``sum_q K^b_kq u_q``.
    outputs, cotangents : Tensor
        ``E[g_k . g_q]`` and ``E[dp_k . dp_q]``.
    """

    hidden: Tensor
    backward: Tensor
    outputs: Tensor
    cotangents: Tensor


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


def _chunks(count: int, solved: Histories, per_direction: int) -> Iterator[range]:
    """Deal directions out so that the units of some fit into memory."""
    units = solved.unit
    numbers = solved.g.shape[-1] * (units.in_vectors + units.out_vectors) * solved.points
    each = 8 * numbers * len(solved.w) * per_direction * 3
    together = max(1, int(_BYTES // each))
    for first in range(0, count, together):
        yield range(first, min(count, first + together))


def _points_of(solved: Histories) -> Points:
    branch = solved.branch
    return solved.ins / branch.input_std, solved.outs / branch.output_std


def kernels(dynamics: Dynamics, solved: Histories) -> Kernels:
    """Give the kernels of one branch, by central differences along the units' trajectories.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    solved : Histories
        The branch's units in a solution.
    """
    branch, size = solved.branch, solved.g.shape[-1]
    points, nodes = _points_of(solved), len(solved.w)
    outputs = torch.einsum("npck,npcq->nkq", solved.g, solved.g) / solved.points
    cotangents = torch.einsum("npak,npaq->nkq", solved.dp, solved.dp) / solved.points
    slopes = []
    for side, vectors in (("to_r", branch.unit.out_vectors), ("to_p", branch.unit.in_vectors)):
        found = torch.zeros(nodes, size, size, dtype=torch.float64)
        for vector in range(vectors):
            for chosen in _chunks(size, solved, 2):
                both = 2 * len(chosen)
                change = torch.zeros(1, both, solved.points, vectors, size, dtype=torch.float64)
                for number, q in enumerate(chosen):
                    change[:, 2 * number, :, vector, q] = _DIFFERENCE
                    change[:, 2 * number + 1, :, vector, q] = -_DIFFERENCE
                change = change.flatten(1, 2)
                many = points[0].repeat(1, both, 1, 1), points[1].repeat(1, both, 1, 1)
                _, _, units = replay(dynamics, solved, many, Additions(**{side: change}))
                values = (units.g if side == "to_r" else units.dp)[:, :, vector]
                means = values.unflatten(1, (len(chosen), 2, solved.points)).mean(3)
                slope = (means[:, :, 0] - means[:, :, 1]) / (2 * _DIFFERENCE)
                found[:, :, chosen.start : chosen.stop] += slope.mT
        slopes.append(found)
    past_out, past_in = solved.learned_out, solved.learned_in
    hidden = branch.output_std**2 * past_out.initial[:, None] * slopes[0]
    backward = branch.input_std**2 * past_in.initial[:, None] * slopes[1]
    return Kernels(
        branch.scale * (hidden - past_out.past * outputs),
        branch.scale * (backward - past_in.past * cotangents),
        outputs,
        cotangents,
    )


def drift_defect(solved: Histories, found: Kernels, drift: Tensor) -> float:
    """Give how far ``sum_q K^h_kq z_q`` is from the drift of w_k, at the most."""
    return float((found.hidden @ solved.z - drift).abs().max())


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
        found: Sequence[Kernels],
        cells: int,
    ) -> None:
        self.rows, self.steps = len(dynamics.inputs), dynamics.steps
        self.size = self.rows * self.steps
        self.layered = grid.step > 0
        hidden, backward, noise_h, noise_b = [], [], [], []
        for of, solved in zip(found, solution.branches, strict=True):
            branch, ratio = solved.branch, solved.branch.ratio
            phi = solved.factor
            hidden.append(of.hidden)
            read = phi[:, :, None] * of.backward * phi[:, None]
            backward.append(read + torch.diag_embed(solved.turn))
            rho = solved.learned_out.initial * branch.scale * branch.output_std
            noise_h.append(torch.outer(rho, rho) * of.outputs / ratio)
            rho = solved.learned_in.initial * branch.scale * branch.input_std * phi
            noise_b.append(rho[:, :, None] * rho[:, None] * of.cotangents / ratio)
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
        first = Learned.of(dynamics, dynamics.rate_embedding, dynamics.residual_scale)
        last = Learned.of(dynamics, dynamics.rate_unembedding, dynamics.residual_scale)
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


def _noise_drifts(dynamics: Dynamics, solved: Histories, seen: Fluctuations) -> tuple[Tensor, Tensor]:
    """Give what the noise that the initial weights see adds to the drifts, over kappa.

    Half the trace of the second derivative times the covariance, from second differences along the
    covariance's main directions.
    """
    branch, size = solved.branch, solved.g.shape[-1]
    points = _points_of(solved)
    plain = replay(dynamics, solved, points, Additions())[:2]
    totals = [torch.zeros_like(each) for each in plain]
    phi = solved.factor
    sides = (
        ("to_p", branch.unit.in_vectors, branch.input_std**2, phi[:, :, None] * seen.hidden * phi[:, None]),
        ("to_r", branch.unit.out_vectors, branch.output_std**2, seen.backward),
    )
    for side, vectors, variance, covariance in sides:
        values, directions = _root(variance * covariance)
        trace = values.sum(1)
        left = 1.0 - values.cumsum(1).sum(0) / trace.sum() if float(trace.sum()) else values[0]
        count = min(size, int((left > _LEFT_OUT).sum()) + 1)
        kept = directions[..., :count] * values[:, None, :count].sqrt()
        for vector in range(vectors):
            for chosen in _chunks(count, solved, 2):
                moves = _DIFFERENCE**0.5 * kept[..., chosen.start : chosen.stop].mT
                both = torch.stack([moves, -moves], 2).flatten(1, 2)
                change = both.new_zeros(len(both), both.shape[1], solved.points, vectors, size)
                change[:, :, :, vector] = both[:, :, None]
                repeats = both.shape[1]
                many = points[0].repeat(1, repeats, 1, 1), points[1].repeat(1, repeats, 1, 1)
                more = Additions(**{side: change.flatten(1, 2)})
                moved = replay(dynamics, solved, many, more)[:2]
                for total, now, before in zip(totals, moved, plain, strict=True):
                    total += len(chosen) * (now - before) / _DIFFERENCE
    return totals[0], totals[1]


def output_bias(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    points: Sequence[Points],
    *,
    parts: Parts = ALL,
    cells: int = CELLS,
) -> Tensor:
    """Give the bias of the outputs over kappa = D/(LM).

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    root : ndarray, shape (r, r)
        Root of the Gram matrix: the limit's, or that of a network's own embedding.
    grid : DepthGrid
        Continuous, or layered with every layer a node, for networks of that depth.
    points : sequence of Points
        Units of every branch: one scrambling.
    parts : Parts
        Which parts of it are taken.
    cells : int
        Cells in which noise and responses are carried on, where depth is continuous.

    Returns
    -------
    Tensor, shape (K, rows, d_out)
        A: the outputs of networks of width M and embedding dimension D are on average by A (D - r) /
        (L M) from those of their infinite-width limit, to first order in 1 / (L M), and by what the
        projection of the noise on the span of the embedding gives.

    Raises
    ------
    LimitError
        If a fixed point over depth does not converge.
    """
    points = [(ins.double(), outs.double()) for ins, outs in points]
    plain = solve(dynamics, root, grid, points)
    found = [kernels(dynamics, solved) for solved in plain.branches]
    carrier = _Carrier(dynamics, grid, plain, found, cells)
    edges = carrier.fluctuations()
    additions = []
    for number, solved in enumerate(plain.branches):
        branch = solved.branch
        seen = carrier.at(grid, number, len(points), edges)
        more = Additions()
        if parts.noise:
            forward, backward = _noise_drifts(dynamics, solved, seen)
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

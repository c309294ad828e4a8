"""How the units of a branch answer to a change of what they see, and the noise that they make.

A unit sees the projections ``p0 = I_0^T u`` and ``r0 = O_0^T z`` of all steps and rows on its
initial weights; its map from these to all g and dp = Dg(p)^T r is its skeleton map. What a network
of finite width does to a coordinate of its states follows from two things: the mean derivative of
the skeleton map, and the second moments of g and dp. See docs/concepts/amplitudes.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.depth import Array
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.rules import table
from resnet_limits.threads import workers
from resnet_limits.units import Unit

# By how much of its RMS a projection is moved where a unit's map has kinks.
_FINITE_STEP = 0.1
# Dual numbers are one thread's at a time.
_DUAL = Lock()


@dataclass(frozen=True)
class BranchKernels:
    """What a branch does to the coordinates of the states, at the depth nodes.

    Rows and columns are Q = K R pairs (step, row), the row running fastest.

    Attributes
    ----------
    forward, backward : Tensor, shape (replicates, nodes, Q, Q)
        ``K^h`` and ``K^b``: the drift of h is ``K^h b``, that of -b before the norm ``K^b u``.
    forward_noise, backward_noise : Tensor, shape (replicates, nodes, Q, Q)
        Covariance of the increments of h and of b, before the norm, in units of D ds/(L M).
    """

    forward: Tensor
    backward: Tensor
    forward_noise: Tensor
    backward_noise: Tensor


class Steps(NamedTuple):
    """How weights at a step follow from their initial values and the gradients' factors.

    Attributes
    ----------
    initial : Tensor, shape (Q,)
        rho of each step, for each row.
    past : Tensor, shape (Q, Q)
        ``C_kj / (alpha R_j)`` of each pair of steps, for each pair of rows.
    """

    initial: Tensor
    past: Tensor

    @classmethod
    def of(cls, dynamics: Dynamics, rate: float, scale: float) -> Steps:
        """Give those of a rate, for gradients that are sums over rows divided by `scale` R."""
        steps, rows = dynamics.steps, len(dynamics.inputs)
        initial, gradients = (torch.from_numpy(part) for part in table(dynamics.rule, rate, steps))
        past = torch.zeros(steps, steps, dtype=torch.float64)
        for j in range(steps - 1):
            past[:, j] = gradients[:, j] / (scale * dynamics.batch_size(j))
        spread = past.repeat_interleave(rows, 0).repeat_interleave(rows, 1)
        return cls(initial.repeat_interleave(rows), spread)

    def to(self, dtype: torch.dtype) -> Steps:
        """Give them in another arithmetic."""
        return Steps(self.initial.to(dtype), self.past.to(dtype))


class _Answer(ABC):
    """How one step's g and dp answer to changes of that step's p and r.

    Changes and answers are (rows, vectors, seeds, points).
    """

    @abstractmethod
    def __call__(self, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Give the changes of g and dp."""


def _to_unit(values: Tensor) -> Tensor:
    """Turn (rows, vectors, ..., points) to (..., points, vectors, rows), without a copy."""
    return values.movedim(0, -1).movedim(0, -2)


def _from_unit(values: Tensor) -> Tensor:
    return values.movedim(-2, 0).movedim(-1, 0)


class _Tangent(_Answer):
    """Exact derivatives, of a map without kinks: one matrix for every sample and unit."""

    def __init__(self, unit: Unit, p: Tensor, r: Tensor) -> None:
        rows, a, points = p.shape
        tokens, c = unit.tokens, unit.out_vectors
        samples = rows // tokens
        of_g = p.new_empty(samples, tokens * c, tokens * a, points)
        of_dp = p.new_empty(samples, tokens * a, tokens * a, points)
        # All columns of a sample's matrix at once, (columns, points, vectors, rows).
        columns = tokens * a
        basis = torch.eye(columns).to(p).view(columns, 1, tokens, a).repeat(1, samples, 1, 1)
        tangents = basis.view(columns, 1, rows, a).mT.repeat(1, points, 1, 1)
        many = _to_unit(p).repeat(columns, 1, 1, 1)
        with _DUAL, forward_ad.dual_level():
            moved = forward_ad.make_dual(many, tangents)
            values = unit.forward(moved)
            change = unit.backward(moved, values, _to_unit(r))
            for place, array, vectors in ((of_g, values, c), (of_dp, change, a)):
                tangent = forward_ad.unpack_dual(array).tangent
                if tangent is None:
                    place.zero_()
                    continue
                # (columns, points, vectors, rows) -> (samples, tokens, vectors, columns, points)
                split = tangent[..., :vectors, :].unflatten(-1, (samples, tokens))
                place.copy_(split.permute(3, 4, 2, 0, 1).reshape(place.shape))
        self.of_g, self.of_dp = of_g, of_dp

    def __call__(self, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Give the changes of g and dp, to first order."""
        samples = len(self.of_g)
        ps, rs = (x.reshape(samples, -1, *x.shape[2:]) for x in (p, r))
        g = _applied(self.of_g, ps)
        dp = _applied(self.of_dp, ps) + _applied(self.of_g.transpose(1, 2), rs)
        return g.view(r.shape), dp.view(p.shape)


def _applied(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Apply the matrix of each sample and point, (samples, x, y, points), to (samples, y, ...)."""
    if matrix.shape[1:3] == (1, 1):
        return matrix * vectors
    return torch.einsum("nxyp,nysp->nxsp", matrix, vectors).contiguous()


class _Difference(_Answer):
    """Differences of a map that may have kinks, where the mean has a derivative and it has none."""

    def __init__(self, unit: Unit, p: Tensor, r: Tensor, g: Tensor, dp: Tensor) -> None:
        self.unit, self.p, self.r, self.g, self.dp = unit, p, r, g, dp

    def __call__(self, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Give the changes of g and dp."""
        moved = _to_unit(self.p[:, :, None] + p)
        values = self.unit.forward(moved)
        change = self.unit.backward(moved, values, _to_unit(self.r[:, :, None] + r))
        g = _from_unit(values[..., : self.unit.out_vectors, :]) - self.g[:, :, None]
        return g.contiguous(), (_from_unit(change) - self.dp[:, :, None]).contiguous()


class _Chunk:
    """Some units at one node: their trajectory, and their answers to changes.

    Parameters
    ----------
    unit : Unit
        The unit.
    incoming, outgoing : Tensor, shapes (points, a, r), (points, c, r)
        Initial weights.
    u, z : Tensor, shape (Q, r)
        What the units see.
    ins, outs : Steps
        How their weights move.
    rows : int
        R.
    """

    def __init__(
        self,
        unit: Unit,
        incoming: Tensor,
        outgoing: Tensor,
        u: Tensor,
        z: Tensor,
        ins: Steps,
        outs: Steps,
        rows: int,
    ) -> None:
        self.unit, self.rows, self.steps = unit, rows, len(u) // rows
        self.points = len(incoming)
        dtype = incoming.dtype
        self.of_p, self.of_r = (
            (steps.past * (x @ x.T)).to(dtype) for steps, x in ((ins, u), (outs, z))
        )
        self.rho_p, self.rho_r = ins.initial.to(dtype), outs.initial.to(dtype)
        p0, r0 = (
            rho[:, None, None] * torch.einsum("qr,pvr->qvp", x.to(dtype), weights)
            for rho, x, weights in ((self.rho_p, u, incoming), (self.rho_r, z, outgoing))
        )
        self.g, self.dp = torch.empty_like(r0), torch.empty_like(p0)
        self.sizes = self._sizes(p0, r0)
        self.answers: list[_Answer] = []
        for step in range(self.steps):
            here = self._rows(step)
            p = p0[here] - self._past(self.of_p, self.dp, step, 0)
            r = r0[here] - self._past(self.of_r, self.g, step, 0)
            p_unit = _to_unit(p)
            values = unit.forward(p_unit)
            self.g[here] = _from_unit(values[..., : unit.out_vectors, :])
            self.dp[here] = _from_unit(unit.backward(p_unit, values, _to_unit(r)))
            self.answers.append(
                _Tangent(unit, p, r)
                if unit.is_smooth
                else _Difference(unit, p, r, self.g[here], self.dp[here])
            )

    def _sizes(self, p0: Tensor, r0: Tensor) -> tuple[tuple[float, float], ...]:
        """Give the changes of p and r that answers are found for, and divided by."""
        if self.unit.is_smooth:
            return ((1.0, 1.0),)
        p, r = (_FINITE_STEP * (float(x.square().mean().sqrt()) or 1.0) for x in (p0, r0))
        return ((p, r), (-p, -r))

    def _rows(self, step: int) -> slice:
        return slice(step * self.rows, (step + 1) * self.rows)

    def _past(self, coefs: Tensor, seen: Tensor, step: int, first: int) -> Tensor:
        """Sum over the rows of the steps from `first` to before `step`; `seen` begins there."""
        used = coefs[self._rows(step), first * self.rows : step * self.rows]
        past = seen[: (step - first) * self.rows].flatten(1)
        return (used @ past).view(self.rows, *seen.shape[1:])

    def _seeds(self, step: int) -> tuple[Tensor, Tensor]:
        """Give the changes of p and r at the step at which they begin.

        Returns
        -------
        p, r : Tensor, shapes (rows, a, seeds, 1), (rows, c, seeds, 1)
            Seeds are, for each size, those of p, then those of r, each by row and vector.
        """
        counts = self.unit.in_vectors, self.unit.out_vectors
        rhos = self.rho_p[self._rows(step)][0], self.rho_r[self._rows(step)][0]
        blocks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for size in self.sizes:
            for moved in (0, 1):
                seeds = self.rows * counts[moved]
                for place in (0, 1):
                    block = self.g.new_zeros(self.rows * counts[place], seeds)
                    if place == moved:
                        block += size[place] * rhos[place] * torch.eye(seeds).to(block)
                    blocks[place].append(block)
        p, r = (torch.cat(block, dim=1) for block in blocks)
        return p.view(self.rows, counts[0], -1, 1), r.view(self.rows, counts[1], -1, 1)

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Sum over the units ``sum_c d g_k,c / d r0_q,c`` and ``sum_a d dp_k,a / d p0_q,a``.

        Returns
        -------
        of_g, of_dp : Tensor, shape (Q, Q)
            In float64; zero where q is a later step than k.
        """
        size = self.rows * self.steps
        of_g, of_dp = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
        a, c = self.unit.in_vectors, self.unit.out_vectors
        for first in range(self.steps):
            seeds = self._seeds(first)
            count = seeds[0].shape[2]
            left = (self.steps - first) * self.rows
            g = self.g.new_empty(left, c, count, self.points)
            dp = self.g.new_empty(left, a, count, self.points)
            for step in range(first, self.steps):
                at = self._rows(step - first)
                if step == first:
                    p, r = (x.expand(*x.shape[:3], self.points).contiguous() for x in seeds)
                else:
                    p = -self._past(self.of_p, dp, step, first)
                    r = -self._past(self.of_r, g, step, first)
                g[at], dp[at] = self.answers[step](p, r)
                place = self._rows(step), self._rows(first)
                of_g[place], of_dp[place] = self._diagonal(g[at], dp[at])
        return of_g, of_dp

    def _diagonal(self, g: Tensor, dp: Tensor) -> tuple[Tensor, Tensor]:
        """Sum answers to changes of the same vector over vectors and units, by pairs of rows."""
        found = []
        for answer, moved in ((g, 1), (dp, 0)):
            total = answer.sum(-1, dtype=torch.float64).unflatten(-1, (len(self.sizes), -1))
            counts = [self.rows * self.unit.in_vectors, self.rows * self.unit.out_vectors]
            by_kind = total.split(counts, dim=-1)[moved].unflatten(-1, (self.rows, -1))
            scales = by_kind.new_tensor([size[moved] for size in self.sizes])
            found.append(torch.einsum("xvsyv,s->xy", by_kind, 1.0 / scales) / len(scales))
        return found[0], found[1]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Sum ``g_k . g_q`` and ``dp_k . dp_q`` over the units, shape (Q, Q), in float64."""
        g, dp = (x.flatten(1).double() for x in (self.g, self.dp))
        return g @ g.T, dp @ dp.T


def chunk_points(dynamics: Dynamics, branch: Branch) -> int:
    """Give how many units are worked on at once, so that no array is too large."""
    a, c = branch.unit.in_vectors, branch.unit.out_vectors
    rows = len(dynamics.inputs)
    seeds = rows * (a + c) * (1 if branch.unit.is_smooth else 2)
    numbers = dynamics.steps * rows * seeds * max(a, c)
    return max(cost.SMALLEST_CHUNK, cost.CHUNK_ELEMENTS // numbers)


def branch_kernels(
    dynamics: Dynamics,
    branch: Branch,
    sample: UnitSample,
    shares: Array,
    u: Tensor,
    z: Tensor,
) -> BranchKernels:
    """Find the kernels of a branch at the depth nodes.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    branch : Branch
        The branch.
    sample : UnitSample
        Initial weights of its units.
    shares : ndarray, shape (nodes,)
        Of the units, of each node.
    u, z : Tensor, shape (replicates, nodes, Q, r)
        What the branch reads, after its norm, and the backward state after it.
    """
    replicates, nodes, size = u.shape[:3]
    rows = len(dynamics.inputs)
    ins = Steps.of(dynamics, branch.rate_in, branch.scale)
    outs = Steps.of(dynamics, branch.rate_out, branch.scale)
    most = chunk_points(dynamics, branch)
    found = torch.zeros(4, replicates, nodes, size, size, dtype=torch.float64)
    weights = sample.at_nodes(shares)

    def work(place: tuple[int, int]) -> None:
        replicate, node = place
        incoming, outgoing = (vectors[replicate] for vectors in weights[node])
        for start in range(0, len(incoming), most):
            chunk = _Chunk(
                branch.unit,
                branch.input_std * incoming[start : start + most],
                branch.output_std * outgoing[start : start + most],
                u[replicate, node],
                z[replicate, node],
                ins,
                outs,
                rows,
            )
            for place_of, part in enumerate((*chunk.derivatives(), *chunk.moments())):
                found[place_of, replicate, node] += part / len(incoming)

    with workers() as pool:
        places = list(product(range(replicates), range(nodes)))
        for _ in (pool.map if pool else map)(work, places):
            pass
    of_g, of_dp, gg, dd = found
    alpha, s_in, s_out = branch.scale, branch.input_std, branch.output_std
    # The noise of the initial weights, as few units stand for as the branch has.
    noise = alpha**2 / branch.ratio
    pairs = [torch.outer(steps.initial, steps.initial) for steps in (outs, ins)]
    return BranchKernels(
        forward=alpha * (s_out**2 * outs.initial[:, None] * of_g - outs.past * gg),
        backward=alpha * (s_in**2 * ins.initial[:, None] * of_dp - ins.past * dd),
        forward_noise=noise * s_out**2 * pairs[0] * gg,
        backward_noise=noise * s_in**2 * pairs[1] * dd,
    )

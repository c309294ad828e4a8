"""The infinite-width problem with all that its units have seen, and with additions to it.

The same problem as :mod:`resnet_limits.limits.solver` solves, on few points and in another form
(docs/concepts/amplitudes-outputs.md): units keep their first weights and what they have seen,
``p_k = rho_k (I_0 . u_k) - sum_q C_kq <u_q u_k> dp_q``, so that small amounts can be added to what
they see and to the overlaps of states. q and k number (step, row) pairs, the row fastest; there are
Q of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from resnet_limits.dynamics import Branch, Dynamics, Embeddings
from resnet_limits.limits.amplitudes.responses import Steps
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.fixed_point import LimitError
from resnet_limits.norms import Identity

Points = tuple[Tensor, Tensor]
"""First in- and out-vectors of a branch's units, standard normal: (nodes, points, a, r) and (nodes,
points, c, r), with one node where all nodes have the same."""

_TOLERANCE = 1e-12
_ITERATIONS = 200


@dataclass(frozen=True)
class Additions:
    """What is added to what the units of one branch see; zero where it is left out.

    Attributes
    ----------
    to_p, to_r : Tensor, shapes (nodes, points, a, Q), (nodes, points, c, Q), or 0
        Added to ``I_0 . u_q`` and to ``O_0 . z_q``.
    overlap_h, overlap_b : Tensor, shape (nodes, Q, Q), or 0
        Added to the overlaps ``w_k . w_q`` before the branch and ``z_k . z_q`` after it.
    again_p, again_r : Tensor, shape (nodes, Q, Q), or 0
        ``sum_q again_p[k, q] dp_q`` is added to p_k, and ``sum_q again_r[k, q] g_q`` to r_k; the
        first is zero where q is not before k.
    drift_h, drift_b : Tensor, shape (nodes, Q, r), or 0
        Added to the drifts of w_k and of -z_k.
    """

    to_p: Tensor | float = 0.0
    to_r: Tensor | float = 0.0
    overlap_h: Tensor | float = 0.0
    overlap_b: Tensor | float = 0.0
    again_p: Tensor | float = 0.0
    again_r: Tensor | float = 0.0
    drift_h: Tensor | float = 0.0
    drift_b: Tensor | float = 0.0


NOTHING = Additions()


def _of(values: Tensor | float, *where: slice) -> Tensor | float:
    """Take the last axes of an addition."""
    if isinstance(values, float):
        return values
    return values[..., where[0]] if len(where) == 1 else values[..., where[0], where[1]]


class Histories:
    """Units of one branch at all nodes.

    States are (nodes, rows, r). A step is a call of `forward`, one of `backward` and `remember`;
    the first two can be repeated until their states have settled.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    branch : Branch
        The branch.
    points : Points
        Its units.
    nodes : int
        Number of nodes.
    additions : Additions
        What is added.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        branch: Branch,
        points: Points,
        nodes: int,
        additions: Additions = NOTHING,
    ) -> None:
        self.branch, self.unit, self.additions = branch, branch.unit, additions
        self.rows = len(dynamics.inputs)
        dtype = points[0].dtype
        self.learned_in = Steps.of(dynamics, branch.rate_in, branch.scale).to(dtype)
        self.learned_out = Steps.of(dynamics, branch.rate_out, branch.scale).to(dtype)
        self.ins, self.outs = (
            (std * vectors).expand(nodes, -1, -1, -1)
            for std, vectors in zip((branch.input_std, branch.output_std), points, strict=True)
        )
        self.points = self.ins.shape[1]
        empty = self.ins.new_zeros
        self.g = empty(nodes, self.points, self.unit.out_vectors, 0)
        self.dp = empty(nodes, self.points, self.unit.in_vectors, 0)
        self.w = self.u = self.z = empty(nodes, 0, self.ins.shape[-1])
        self.factor = self.turn = empty(nodes, 0)

    def _steps(self, step: int) -> tuple[slice, slice]:
        return slice(step * self.rows, (step + 1) * self.rows), slice(0, step * self.rows)

    def forward(self, step: int, w: Tensor) -> Tensor:
        """Give the drift of w for the states before the branch."""
        (now, past), norm, more = self._steps(step), self.branch.norm, self.additions
        square = w.square().sum(-1)
        if isinstance(more.overlap_h, Tensor):
            square = square + torch.diagonal(more.overlap_h, dim1=1, dim2=2)[:, now]
        factor = torch.ones_like(square) if norm.is_identity else norm.factor(square)
        u = factor[..., None] * w
        between = factor[:, :, None] * self.factor[:, None]
        overlap = u @ self.u.mT + between * _of(more.overlap_h, now, past)
        weights = _of(more.again_p, now, past) - self.learned_in.past[now, past] * overlap
        p = torch.einsum("npar,nkr->npak", self.ins, u) + _of(more.to_p, now)
        self._p = self.learned_in.initial[now] * p
        if step:
            self._p = self._p + torch.einsum("npaq,nkq->npak", self.dp, weights)
        self._values = self.unit.forward(self._p)
        self._g = self._values[..., : self.unit.out_vectors, :]
        self._w, self._u, self._factor = w, u, factor
        self._slope = torch.zeros_like(square) if norm.is_identity else norm.slope(square)
        fresh = torch.einsum("npcr,npck->nkr", self.outs, self._g) / self.points
        seen = torch.einsum("npcq,npck->nkq", self.g, self._g) / self.points
        old = (self.learned_out.past[now, past] * seen) @ self.z
        drift = self.branch.scale * (self.learned_out.initial[now, None] * fresh - old)
        return drift + _of(more.drift_h, now, slice(None))

    def backward(self, step: int, z: Tensor) -> Tensor:
        """Give the drift of -z for the states after the branch, pulled back through its norm."""
        (now, past), more = self._steps(step), self.additions
        overlap = z @ self.z.mT + _of(more.overlap_b, now, past)
        weights = _of(more.again_r, now, past) - self.learned_out.past[now, past] * overlap
        r = torch.einsum("npcr,nkr->npck", self.outs, z) + _of(more.to_r, now)
        r = self.learned_out.initial[now] * r
        if step:
            r = r + torch.einsum("npcq,nkq->npck", self.g, weights)
        if isinstance(more.again_r, Tensor):
            r = r + torch.einsum("npcq,nkq->npck", self._g, more.again_r[:, now, now])
        self._dp, self._z = self.unit.backward(self._p, self._values, r), z
        fresh = torch.einsum("npar,npak->nkr", self.ins, self._dp) / self.points
        seen = torch.einsum("npaq,npak->nkq", self.dp, self._dp) / self.points
        old = (self.learned_in.past[now, past] * seen) @ self.u
        drift = self.branch.scale * (self.learned_in.initial[now, None] * fresh - old)
        # h . v / D is what the units see times what they send back, fluctuations included.
        along = self.branch.scale * (self._p * self._dp).sum(2).mean(1) / self._factor
        self._turn = 2.0 * self._slope * along
        drift = self._factor[..., None] * drift + self._turn[..., None] * self._w
        return drift + _of(more.drift_b, now, slice(None))

    def remember(self) -> None:
        """Keep what was seen at this step."""
        self.g, self.dp = torch.cat([self.g, self._g], -1), torch.cat([self.dp, self._dp], -1)
        self.w, self.u = torch.cat([self.w, self._w], 1), torch.cat([self.u, self._u], 1)
        self.z = torch.cat([self.z, self._z], 1)
        self.factor = torch.cat([self.factor, self._factor], 1)
        self.turn = torch.cat([self.turn, self._turn], 1)


@dataclass
class Solution:
    """A solved problem.

    Attributes
    ----------
    output : Tensor, shape (K, rows, d_out)
        Outputs f.
    branches : list of Histories
        The units of every branch.
    cotangents : Tensor, shape (Q, d_out)
        Those of the outputs; zero outside of a step's batch.
    factor, turn : Tensor, shape (Q,)
        The final norm's factor, and what its pull-back multiplies h by.
    """

    output: Tensor
    branches: list[Histories]
    cotangents: Tensor
    factor: Tensor = field(repr=False)
    turn: Tensor = field(repr=False)


def solve(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    points: Sequence[Points],
    additions: Sequence[Additions] | None = None,
    end_overlap: Tensor | None = None,
) -> Solution:
    """Solve all steps of one problem.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    root : ndarray, shape (r, r)
        Root of the Gram matrix.
    grid : DepthGrid
        Continuous, or layered with every layer a node.
    points : sequence of Points
        The units of every branch.
    additions : sequence of Additions, optional
        What is added, for every branch.
    end_overlap : Tensor, shape (Q, Q), optional
        Added to the overlaps of the states at the end.

    Returns
    -------
    Solution

    Raises
    ------
    LimitError
        If a fixed point over depth does not converge; the message names the step.
    """
    rows, r_in = dynamics.inputs.shape
    nodes, size = grid.nodes, rows * dynamics.steps
    table_ = torch.from_numpy(np.array(root, float))
    # What is learned is read through the norm here, with what is added to the overlaps.
    plain = replace(dynamics, final_norm=Identity())
    embeddings = Embeddings(
        plain, table_[None, :, :r_in].clone(), table_[None, :, r_in:].clone(), 1.0
    )
    learned = Steps.of(dynamics, dynamics.rate_unembedding, dynamics.residual_scale)
    branches = [
        Histories(dynamics, branch, of, nodes, more)
        for branch, of, more in zip(
            dynamics.layer, points, additions or [NOTHING] * len(points), strict=True
        )
    ]
    overlap = table_.new_zeros(size, size) if end_overlap is None else end_overlap
    norm, targets = dynamics.final_norm, torch.from_numpy(dynamics.targets)
    total = torch.from_numpy(grid.total)
    outputs: list[Tensor] = []
    factors, turns = table_.new_zeros(0), table_.new_zeros(0)
    cotangents = table_.new_zeros(0, targets.shape[1])
    for step in range(dynamics.steps):
        now, past = slice(step * rows, (step + 1) * rows), slice(0, step * rows)
        start = embeddings.first()[0].mT
        drift = _settle(start, [units.forward for units in branches], grid, step, backward=False)
        end = start + torch.einsum("n,nkr->kr", total, drift)
        square = end.square().sum(-1) + torch.diagonal(overlap)[now]
        factor = torch.ones_like(square) if norm.is_identity else norm.factor(square)
        slope = torch.zeros_like(square) if norm.is_identity else norm.slope(square)
        unembedding = embeddings.unembedding[0]
        output = factor[:, None] * (end @ unembedding)
        # A trained unembedding holds earlier states, and what is added to their overlaps.
        held = learned.past[now, past] * factor[:, None] * factors * overlap[now, past]
        output = output - held @ cotangents
        cotangent = dynamics.cotangent(output, targets, step)
        turn = 2.0 * slope * (output * cotangent).sum(-1) / factor
        last = factor[:, None] * (cotangent @ unembedding.mT) + turn[:, None] * end
        pulled = _settle(last, [units.backward for units in branches], grid, step, backward=True)
        first = last + torch.einsum("n,nkr->kr", total, pulled)
        for units in branches:
            units.remember()
        outputs.append(output)
        factors, turns = torch.cat([factors, factor]), torch.cat([turns, turn])
        cotangents = torch.cat([cotangents, cotangent])
        if step + 1 < dynamics.steps:
            read = factor[:, None] * end
            embeddings.learn(step, first.mT[None], read.mT[None], cotangent[None])
    return Solution(torch.stack(outputs), branches, cotangents, factors, turns)


def _settle(
    start: Tensor,
    drifts_of: Sequence[Callable[[int, Tensor], Tensor]],
    grid: DepthGrid,
    step: int,
    *,
    backward: bool,
) -> Tensor:
    """Find the states that all branches see, and give the sum of their drifts."""
    sums = torch.from_numpy(grid.backward if backward else grid.forward)
    count = range(len(drifts_of))
    drifts = [start.new_zeros(grid.nodes, *start.shape) for _ in count]
    for _ in range(_ITERATIONS):
        all_of = sum(drifts, start.new_zeros(()))
        common = start + torch.einsum("jn,nkr->jkr", sums, all_of)
        new = []
        for i in count:
            # Inside of a layer a branch sees what the others before it have added.
            before = [drifts[j] for j in count if (j > i if backward else j < i)]
            new.append(drifts_of[i](step, common + grid.step * sum(before, start.new_zeros(()))))
        change = max(float((a - b).abs().max()) for a, b in zip(new, drifts, strict=True))
        size = max(float(a.abs().max()) for a in new)
        drifts = new
        if change <= _TOLERANCE * max(1.0, size):
            return sum(drifts, start.new_zeros(()))
    raise LimitError(f"no fixed point over depth at step {step}, {_ITERATIONS} iterations")


def replay(
    dynamics: Dynamics,
    solved: Histories,
    points: Points,
    additions: Additions,
) -> tuple[Tensor, Tensor, Histories]:
    """Take units with additions through all steps, at the states of a solution.

    All is done in the arithmetic of the points.

    Returns
    -------
    forward, backward : Tensor, shape (nodes, Q, r)
        The drifts that they give.
    units : Histories
        What they have seen.
    """
    units = Histories(dynamics, solved.branch, points, len(solved.w), additions)
    w, z = (states.to(points[0].dtype) for states in (solved.w, solved.z))
    forward, backward = [], []
    for step in range(dynamics.steps):
        now = units._steps(step)[0]
        forward.append(units.forward(step, w[:, now]))
        backward.append(units.backward(step, z[:, now]))
        units.remember()
    return torch.cat(forward, 1), torch.cat(backward, 1), units

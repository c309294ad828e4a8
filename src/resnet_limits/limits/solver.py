"""The causal solver of the infinite-width dynamics.

One solver for every limit: what differs is the root R of the embedding's Gram matrix and the depth
grid (theory.md, "Why the limits are small problems"). Training steps are taken one after the other;
within a step the forward and the backward state are fixed points over the depth grid, and the units
at every node are then updated one by one, as in the finite network.

The fixed points are found on a small part of the units and corrected with all of them, as on the
coarse grid of a multigrid method: see :class:`_Fields`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.dynamics import GROWTH_LIMIT, Dynamics
from resnet_limits.limits import kernels
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.limits.threads import Pool, workers
from resnet_limits.units import Unit

logger = logging.getLogger(__name__)

MAX_ITERATIONS = 300
PICARD_ITERATIONS = 60
ANDERSON_MEMORY = 20
MAX_PASSES = 10
"""Passes over all units in one step, after which all of them are iterated on."""
TIGHT = 1e-11
"""Relative tolerance of the fixed points where nothing looser is asked for."""
# Elements of the activations of one chunk. On a CPU all arrays of a chunk stay in a core's cache;
# on a GPU one kernel has work for the whole device. Compiled kernels see to the cache themselves.
_CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 24, "compiled": 1 << 18}
# Activations are kept for the iterations of a backward pass up to this many.
_KEPT_ELEMENTS = 1 << 27
# The part of the units that does the iteration: large enough for its derivative to be within a few
# per cent of that of all, small enough to cost little beside one pass over all.
_PART_POINTS = 1 << 10
_PART_SHARE = 16
# A part of more than this share saves nothing.
_WHOLE_SHARE = 1 / 8
# The smallest factor that one pass is trusted to leave of an error.
_BEST_GAIN = 1e-3
# In float32 the state that the units see moves in steps of 6e-8.
_SINGLE_TOLERANCE = 2e-7

Found = TypeVar("Found")


class LimitError(RuntimeError):
    """The limit could not be solved; nothing of it may be saved."""


class _UnboundedError(Exception):
    """The dynamics themselves have no bounded state."""


@dataclass(frozen=True)
class Trajectory:
    """States of a solved limit, in coordinates w = R c of the reduced problem.

    Attributes
    ----------
    output : ndarray, shape (replicates, K, rows, d_out)
        Outputs f.
    hidden, backward : ndarray, shape (replicates, K, knots, rows, r)
        Hidden state w and backward state z at the depth grid's knots.
    loss : ndarray, shape (replicates, K)
        Training loss.
    diverged_step : int
        First step at which the dynamics have no bounded state; NaN from there on. -1 if none.
    passes : int
        Passes over all units that gave drifts; zero where all of them were iterated on.
    """

    output: Array
    hidden: Array
    backward: Array
    loss: Array
    diverged_step: int
    passes: int

    @classmethod
    def joined(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """Join solutions of several groups of replicates; the first divergence counts for all."""
        if len(parts) == 1:
            return parts[0]
        diverged = [part.diverged_step for part in parts if part.diverged_step >= 0]
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("output", "hidden", "backward", "loss")
        }
        for values in arrays.values() if diverged else ():
            values[:, min(diverged) :] = np.nan
        passes = max(part.passes for part in parts)
        return cls(**arrays, diverged_step=min(diverged, default=-1), passes=passes)


@dataclass
class _Chunk:
    """Units of one node and some replicates, small enough for a core's cache.

    Attributes
    ----------
    pairs : slice
        Which (node, replicate) pairs, numbered with the replicate running fastest.
    incoming, outgoing : Tensor, shapes (pairs, a, r, points), (pairs, c, r, points)
        The units' weights. The points come last, where they are many and products are fast.
    """

    pairs: slice
    incoming: Tensor
    outgoing: Tensor


def _joined(chunks: list[_Chunk]) -> list[_Chunk]:
    """Join neighbours of as many points: replicates of one node."""
    groups: list[list[_Chunk]] = []
    for chunk in chunks:
        last = groups[-1][-1] if groups else None
        if last is not None and last.incoming.shape[1:] == chunk.incoming.shape[1:]:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return [
        _Chunk(
            slice(group[0].pairs.start, group[-1].pairs.stop),
            torch.cat([chunk.incoming for chunk in group]),
            torch.cat([chunk.outgoing for chunk in group]),
        )
        for group in groups
    ]


def _products(matrices: Tensor, weights: Tensor) -> Tensor:
    """``(pairs, r, rows)`` and ``(pairs, v, r, points)`` to ``(pairs, v, rows, points)``."""
    pairs, vectors, r, points = weights.shape
    left = matrices.transpose(1, 2)
    if vectors > 1:
        left = left[:, None].expand(-1, vectors, -1, -1).flatten(0, 1)
    return torch.bmm(left, weights.view(-1, r, points)).view(pairs, vectors, -1, points)


def _sums(weights: Tensor, values: Tensor) -> Tensor:
    """Sum over points and vectors of weight times value, ``(pairs, r, rows)``, in float64."""
    pairs, vectors, r, points = weights.shape
    each = torch.bmm(weights.view(-1, r, points), values.reshape(-1, values.shape[2], points).mT)
    return each.double().view(pairs, vectors, r, -1).sum(dim=1)


def _add_products(weights: Tensor, state: Tensor, values: Tensor, scale: float) -> None:
    """Add ``scale * state @ values`` to every vector's weights, in place."""
    pairs, vectors, r, points = weights.shape
    if vectors > 1:
        state = state[:, None].expand(-1, vectors, -1, -1).flatten(0, 1)
    flat = values.reshape(pairs * vectors, -1, points)
    weights.view(-1, r, points).baddbmm_(state, flat, alpha=scale)


def _to_unit(values: Tensor) -> Tensor:
    """Turn ``(pairs, vectors, rows, points)`` to the layout of :class:`Unit`, without a copy."""
    return values.permute(0, 3, 1, 2)


def _from_unit(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1)


def _code(unit: Unit, dtype: torch.dtype, device: str) -> int | None:
    """Return what the compiled kernels know the unit by, or None where torch does the work."""
    return kernels.activation_code(unit) if (dtype, device) == (torch.float32, "cpu") else None


class _Units:
    """All units of the quadrature at all depth nodes, and their expectations.

    States are ``(nodes, replicates, r, rows)`` in float64; sums over chunks are in float64 and in
    the chunks' order, whoever computes them.
    """

    def __init__(self, dynamics: Dynamics, chunks: list[_Chunk], pool: Pool | None) -> None:
        self.dynamics = dynamics
        self.unit: Unit = dynamics.unit
        self.chunks = chunks
        self.pool = pool
        first = chunks[0].incoming
        counts = torch.zeros(max(chunk.pairs.stop for chunk in chunks), dtype=torch.float64)
        for chunk in chunks:
            counts[chunk.pairs] += chunk.incoming.shape[-1]
        self.size = int(counts.sum())
        self.dtype = first.dtype
        self.code = _code(dynamics.unit, first.dtype, first.device.type)
        scale = dynamics.residual_scale / counts
        self.scale = scale[:, None, None].to(first.device)

    @classmethod
    def of_sample(
        cls,
        dynamics: Dynamics,
        sample: UnitSample,
        shares: Array,
        dtype: torch.dtype,
        device: str,
        pool: Pool | None,
    ) -> _Units:
        """Deal the sample out to the nodes."""
        rows = len(dynamics.inputs)
        widest = rows * max(dynamics.unit.in_vectors, dynamics.unit.out_vectors)
        compiled = _code(dynamics.unit, dtype, device) is not None
        most = max(16, _CHUNK_ELEMENTS["compiled" if compiled else device] // widest)

        def weights(vectors: Tensor, std: float) -> Tensor:
            return (std * vectors).to(device, dtype).permute(0, 2, 3, 1).contiguous()

        chunks = []
        for node, (ins, outs) in enumerate(sample.at_nodes(shares)):
            points = ins.shape[1]
            # Chunks of equal size and of whole groups of points that differ in signs alone.
            size = math.ceil(points / math.ceil(points / most) / sample.group) * sample.group
            together = max(1, most // size)
            for first in range(0, sample.replicates, together):
                last = min(sample.replicates, first + together)
                for start in range(0, points, size):
                    at = slice(first, last), slice(start, start + size)
                    chunks.append(
                        _Chunk(
                            slice(
                                node * sample.replicates + first, node * sample.replicates + last
                            ),
                            weights(ins[at], dynamics.input_std),
                            weights(outs[at], dynamics.output_std),
                        )
                    )
        return cls(dynamics, chunks, pool)

    def part(self, share: float, group: int) -> _Units:
        """Copy this share of the units, some from every chunk."""
        taken: dict[int, list[_Chunk]] = {}
        for chunk in self.chunks:
            count = math.ceil(chunk.incoming.shape[-1] * share / group) * group
            few = _Chunk(chunk.pairs, chunk.incoming[..., :count], chunk.outgoing[..., :count])
            taken.setdefault(chunk.pairs.start, []).append(few)
        chunks = [
            _Chunk(
                few[0].pairs,
                torch.cat([chunk.incoming for chunk in few], dim=-1),
                torch.cat([chunk.outgoing for chunk in few], dim=-1),
            )
            for few in taken.values()
        ]
        if self.code is not None:
            chunks = _joined(chunks)
        return _Units(self.dynamics, chunks, self.pool)

    def _each(self, work: Callable[[int, _Chunk], Found]) -> Iterable[Found]:
        numbers = range(len(self.chunks))
        if self.pool is None or len(self.chunks) == 1:
            return map(work, numbers, self.chunks)
        # Each thread takes one run of chunks: handing over costs as much as a small chunk.
        bounds = np.linspace(0, len(self.chunks), self.pool.threads + 1).astype(int)

        def several(first: int, stop: int) -> list[Found]:
            return [work(number, self.chunks[number]) for number in range(first, stop)]

        runs = self.pool.executor.map(several, bounds[:-1].tolist(), bounds[1:].tolist())
        return chain.from_iterable(runs)

    def _drifts(self, like: Tensor, work: Callable[[int, _Chunk], list[Tensor]]) -> list[Tensor]:
        """Add up the sums that `work` gives for each chunk, and scale them to drifts."""
        totals: list[Tensor] = []
        for chunk, sums in zip(self.chunks, self._each(work), strict=True):
            totals = totals or [torch.zeros_like(like).flatten(0, 1) for _ in sums]
            for total, part in zip(totals, sums, strict=True):
                total[chunk.pairs] += part
        return [(self.scale * total).view_as(like) for total in totals]

    def _local(self, state: Tensor) -> Tensor:
        """Round a state to the units' arithmetic, (node, replicate) pairs first."""
        return state.flatten(0, 1).to(self.dtype)

    def _activate(self, chunk: _Chunk, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and g(p), in the unit's layout."""
        p = _to_unit(_products(w[chunk.pairs], chunk.incoming))
        return p, self.unit.forward(p)

    def _cotangent(self, chunk: _Chunk, p: Tensor, g: Tensor, z: Tensor) -> Tensor:
        """Return ``Dg(p)^T O^T z``."""
        r = _to_unit(_products(z[chunk.pairs], chunk.outgoing))
        return _from_unit(self.unit.backward(p, g, r))

    def forward_drift(self, w: Tensor) -> Tensor:
        """``alpha E[O g(I^T w)]``."""
        if self.code is not None:
            return self._drifts(w, self._compiled(w, None))[0]
        local = self._local(w)

        def work(_number: int, chunk: _Chunk) -> list[Tensor]:
            return [_sums(chunk.outgoing, _from_unit(self._activate(chunk, local)[1]))]

        return self._drifts(w, work)[0]

    def backward_drift(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """``z -> alpha E[I Dg(p)^T O^T z]``; activations at w are kept where there is room."""
        if self.code is not None:
            # Activations cost less than to keep them.
            return lambda z: self._drifts(z, self._compiled(w, z, forward=False))[0]
        local_w = self._local(w)
        vectors = self.unit.in_vectors + self.unit.out_vectors
        kept: list[tuple[Tensor, Tensor]] = []
        if self.size * vectors * w.shape[-1] <= _KEPT_ELEMENTS:
            kept = list(self._each(lambda _number, chunk: self._activate(chunk, local_w)))

        def drift(z: Tensor) -> Tensor:
            local = self._local(z)

            def work(number: int, chunk: _Chunk) -> list[Tensor]:
                p, g = kept[number] if kept else self._activate(chunk, local_w)
                return [_sums(chunk.incoming, self._cotangent(chunk, p, g, local))]

            return self._drifts(z, work)[0]

        return drift

    def drifts(
        self, w: Tensor, z: Tensor, settled: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both drifts, from one pass over the units.

        With the `settled` states of the step before, each unit takes its gradient step first.
        """
        if self.code is not None:
            forward, backward = self._drifts(w, self._compiled(w, z, settled))
            return forward, backward
        local_w, local_z = self._local(w), self._local(z)
        train = None if settled is None else self._gradient_step(*settled)

        def work(number: int, chunk: _Chunk) -> list[Tensor]:
            if train is not None:
                train(number, chunk)
            p, g = self._activate(chunk, local_w)
            change = self._cotangent(chunk, p, g, local_z)
            return [_sums(chunk.outgoing, _from_unit(g)), _sums(chunk.incoming, change)]

        forward, backward = self._drifts(w, work)
        return forward, backward

    def update(self, w: Tensor, z: Tensor) -> None:
        """Take one gradient step with every unit, at the states of all nodes."""
        for _ in self._each(self._gradient_step(w, z)):
            pass

    def _rates(self, rows: int) -> tuple[float, float]:
        """Return what the sums over rows of a gradient step are multiplied by."""
        scale = -1.0 / (self.dynamics.residual_scale * rows)
        return scale * self.dynamics.rate_in, scale * self.dynamics.rate_out

    def _compiled(
        self,
        w: Tensor | None,
        z: Tensor | None,
        settled: tuple[Tensor, Tensor] | None = None,
        *,
        forward: bool = True,
    ) -> Callable[[int, _Chunk], list[Tensor]]:
        """Return what :func:`kernels.visit` does to a chunk.

        A gradient step at the `settled` states, then the sums of the forward drift at w and, where
        there is a z, of the backward drift.
        """
        wanted = (forward and w is not None, z is not None)
        r, rows = self.chunks[0].incoming.shape[2], len(self.dynamics.inputs)
        pairs = len(self.scale)
        nothing = np.zeros((pairs, rows, r), np.float32)
        turned = np.zeros((pairs, r, rows), np.float32)

        def by_rows(state: Tensor | None) -> NDArray[np.float32]:
            return nothing if state is None else self._local(state).mT.contiguous().numpy()

        here = by_rows(w), by_rows(z)
        there = [nothing, nothing, turned, turned]
        if settled is not None:
            steps = zip(self._rates(rows), settled, strict=True)
            scaled = [(rate * self._local(state)).contiguous().numpy() for rate, state in steps]
            there = [*map(by_rows, settled), *scaled]

        def work(_number: int, chunk: _Chunk) -> list[Tensor]:
            at = chunk.pairs
            sums = np.empty((2, at.stop - at.start, r, rows))
            weights = chunk.incoming[:, 0].numpy(), chunk.outgoing[:, 0].numpy()
            old = tuple(state[at] for state in there)
            w_here, z_here = (state[at] for state in here)
            trains = settled is not None
            kernels.visit(self.code, *weights, trains, old, w_here, z_here, wanted, sums)
            return [torch.from_numpy(sums[i]) for i in (0, 1) if wanted[i]]

        return work

    def _gradient_step(self, w: Tensor, z: Tensor) -> Callable[[int, _Chunk], object]:
        """Return what one gradient step does to a chunk (theory.md, "Gradient step")."""
        if self.code is not None:
            return self._compiled(None, None, (w, z))
        local_w, local_z = self._local(w), self._local(z)
        rate_in, rate_out = self._rates(z.shape[-1])

        def work(_number: int, chunk: _Chunk) -> None:
            p, g = self._activate(chunk, local_w)
            change = self._cotangent(chunk, p, g, local_z)
            _add_products(chunk.incoming, local_w[chunk.pairs], change, rate_in)
            _add_products(chunk.outgoing, local_z[chunk.pairs], _from_unit(g), rate_out)

        return work


class _FixedPoint:
    """Fixed point of ``state = start + accumulate @ drift(state)`` over the depth grid.

    The map is a Volterra operator, so plain (Picard) iteration converges faster than any geometric
    series, whatever the number of nodes. Where its norm is so large that the powers grow beyond
    rounding before they fall, Anderson's acceleration takes over.
    """

    def __init__(self, accumulate: Tensor, tolerance: float, name: str):
        self.accumulate = accumulate
        self.tolerance = tolerance
        self.name = name

    def solve(
        self, start: Tensor, guess: Tensor, drift: Callable[[Tensor], Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the state at the nodes and its drift."""
        state, change, size = guess, np.inf, 1.0
        anderson = _Anderson()
        for iteration in range(MAX_ITERATIONS):
            slope = drift(state)
            new = start + torch.einsum("jk,kbrn->jbrn", self.accumulate, slope)
            change, size = float((new - state).abs().max()), float(new.abs().max())
            if not np.isfinite(change + size):
                raise _UnboundedError
            if change <= self.tolerance * max(1.0, size):
                return new, slope
            if iteration == PICARD_ITERATIONS:
                state = guess
            elif iteration > PICARD_ITERATIONS:
                state = anderson.next(state, new)
            else:
                state = new
        raise LimitError(
            f"{self.name}: the fixed point over depth did not converge at step {step}: it still "
            f"moves by {change / size:.1e} of its size after {MAX_ITERATIONS} iterations"
        )


class _Anderson:
    """Anderson acceleration, each replicate for itself.

    The next state is the combination of the last ones whose images are nearest to themselves.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = self.steps = self.changes = torch.empty(0)

    def next(self, state: Tensor, image: Tensor) -> Tensor:
        def flat(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, 1).flatten(1)

        x, residual = flat(state), flat(image - state)
        if self.count:
            place = (self.count - 1) % ANDERSON_MEMORY
            self.steps[:, place] = x - self.last[0]
            self.changes[:, place] = residual - self.last[1]
        else:
            # All that is remembered, once: with many rows a state is large.
            size = (len(x), ANDERSON_MEMORY, x.shape[1])
            self.steps, self.changes = x.new_empty(size), x.new_empty(size)
        self.last = torch.stack([x, residual])
        self.count += 1
        if self.count == 1:
            return image
        steps, changes = (kept[:, : self.count - 1] for kept in (self.steps, self.changes))
        gram = changes @ changes.mT
        # A ridge at the level of rounding: changes that have become dependent, or have ended in a
        # replicate that has converged before the others, are no obstacle.
        rounding = torch.finfo(gram.dtype)
        ridge = 50 * rounding.eps * gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        ridge = ridge.clamp_min(rounding.tiny)[:, None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram + ridge * eye, changes @ residual[..., None]).mT
        new = x + residual - (weights @ steps + weights @ changes)[:, 0]
        shape = state.transpose(0, 1).shape
        return new.view(shape).transpose(0, 1)


class _Forecast:
    """Extrapolation of a sequence by the polynomial through its last three members."""

    def __init__(self) -> None:
        self.last: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        self.last = [*self.last[-2:], state]

    def next(self) -> Tensor:
        weights = ((), (1.0,), (-1.0, 2.0), (1.0, -3.0, 3.0))[len(self.last)]
        return sum(
            (weight * state for weight, state in zip(weights, self.last, strict=True)),
            start=torch.zeros(()),
        )


def _moved(old: Tensor, new: Tensor) -> float:
    return float((new - old).abs().max()) / max(1.0, float(new.abs().max()))


@dataclass(frozen=True)
class _Settled:
    """States of a step: at the nodes, their drifts, and what they are at s = 1."""

    w: Tensor
    slope: Tensor
    end: Tensor
    output: Tensor
    gradient: Tensor
    z: Tensor
    z_slope: Tensor
    z_end: Tensor


class _Fields:
    """The states over depth of one training step after the other, and the units they train.

    A pass over all units costs far more than one over a few of them, and the map of a few has
    nearly the derivative of the map of all. With F the drift of all units, f that of a part, and
    ``d = F(w) - f(w)`` the defect of the part at the current state, the next state is the fixed
    point of ``f + d``, which is iterated on the part alone. At a state that no longer moves the
    fixed point is that of F. One pass gains what 1 - f'/F' leaves, a factor of 30 to 300, and the
    first state of a step has the defect that the steps before extrapolate to.

    If the passes do not converge, or if the part has no bounded fixed point, the part is all units
    from there on: then this is plain iteration.
    """

    def __init__(
        self, units: _Units, sample: UnitSample, grid: DepthGrid, tolerance: float, name: str
    ):
        device = units.chunks[0].incoming.device

        def put(matrix: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(matrix)).to(device)

        self.units = units
        self.group = sample.group
        self.tolerance = tolerance
        self.name = name
        self.hidden = _FixedPoint(put(grid.forward), tolerance, name)
        self.backward = _FixedPoint(put(grid.backward), tolerance, name)
        self.total = put(grid.total)
        self.passes = 0
        # What one pass has been seen to leave of an error.
        self.gain = 1.0
        self.settled: tuple[Tensor, Tensor] | None = None
        self._take_part(max(_PART_POINTS * sample.replicates / units.size, 1 / _PART_SHARE))

    def _take_part(self, share: float) -> None:
        self.part = self.units if share > _WHOLE_SHARE else self.units.part(share, self.group)
        self.hidden_change, self.backward_change = _Forecast(), _Forecast()
        self.hidden_defect, self.backward_defect = _Forecast(), _Forecast()

    def settle(
        self, start: Tensor, read: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], step: int
    ) -> _Settled:
        """Find the states of a step.

        Parameters
        ----------
        start : Tensor, shape (replicates, r, rows)
            Hidden state at s = 0.
        read : callable
            Output, its gradient, and the backward state at s = 1, given the hidden state there.
        step : int
            For messages.
        """
        while True:
            try:
                return self._settle(start, read, step)
            except (_UnboundedError, LimitError) as error:
                self._train()
                if self.part is self.units:
                    raise
                logger.debug("%s: step %d: %s: from here on with all units", self.name, step, error)
                self._take_part(1.0)

    def train(self, w: Tensor, z: Tensor) -> None:
        """Let the units take their gradient step, all but the part when they are next needed."""
        if self.part is not self.units:
            self.part.update(w, z)
        self.settled = w, z

    def _train(self) -> None:
        settled, self.settled = self.settled, None
        if settled is not None:
            self.units.update(*settled)

    def _settle(
        self, start: Tensor, read: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], step: int
    ) -> _Settled:
        shape = (self.hidden.accumulate.shape[0], *start.shape)
        whole = self.part is self.units
        if whole:
            self._train()
        limit = GROWTH_LIMIT * float(start.abs().max())
        zero = torch.zeros((), dtype=start.dtype, device=start.device)
        hidden_defect = zero if whole else zero + self.hidden_defect.next()
        backward_defect = zero if whole else zero + self.backward_defect.next()

        def forward(guess: Tensor) -> tuple[Tensor, Tensor]:
            return self.hidden.solve(
                start, guess, lambda w: self.part.forward_drift(w) + hidden_defect, step
            )

        def backward(z_end: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
            return self.backward.solve(z_end, guess, lambda z: drift(z) + backward_defect, step)

        def onward(slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            end = start + torch.einsum("k,kbrn->brn", self.total, slope)
            if float(end.abs().max()) > limit:
                raise _UnboundedError
            return end, *read(end)

        w, slope = forward((start + self.hidden_change.next()).expand(shape))
        end, output, gradient, z_end = onward(slope)
        drift = self.part.backward_drift(w)
        z, z_slope = backward(z_end, (z_end + self.backward_change.next()).expand(shape))
        change = math.inf
        for _ in range(0 if whole else MAX_PASSES):
            self.passes += 1
            settled, self.settled = self.settled, None
            forward_all, backward_all = self.units.drifts(w, z, settled)
            hidden_defect = forward_all - self.part.forward_drift(w)
            backward_defect = backward_all - drift(z)
            old, before = (w, z), change
            w, slope = forward(w)
            end, output, gradient, z_end = onward(slope)
            drift = self.part.backward_drift(w)
            z, z_slope = backward(z_end, z)
            change = max(_moved(*pair) for pair in zip(old, (w, z), strict=True))
            if before < math.inf:
                self.gain = min(1.0, max(_BEST_GAIN, change / before))
            if self.gain * change <= self.tolerance:
                break
        else:
            if not whole:
                raise LimitError(
                    f"{self.name}: {MAX_PASSES} passes do not settle step {step}: it still moves "
                    f"by {change:.1e} of its size"
                )
        self.hidden_change.add(w - start)
        self.backward_change.add(z - z_end)
        self.hidden_defect.add(hidden_defect)
        self.backward_defect.add(backward_defect)
        return _Settled(w, slope, end, output, gradient, z, z_slope, z_end)


def solve(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    sample: UnitSample,
    *,
    name: str,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    tolerance: float = TIGHT,
) -> Trajectory:
    """Solve the infinite-width training dynamics for one Gram root and one depth grid.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    root : ndarray, shape (r, r)
        Symmetric root R of the embedding's Gram matrix, input directions first.
    grid : DepthGrid
        Continuous or layered depth.
    sample : UnitSample
        The quadrature over units; its replicates are solved side by side, independently.
    name : str
        What is being solved, for messages.
    dtype : torch dtype
        Arithmetic of the units; states and sums over units are in float64.
    device : str
        ``cpu`` or ``cuda``.
    tolerance : float
        How far from its fixed point a state may be, relative to its largest entry or to 1 if that
        is larger; at least 2e-7 in float32.

    Returns
    -------
    Trajectory
        States of all steps, in float64 on the CPU.

    Raises
    ------
    LimitError
        If a fixed point over depth does not converge; the message names the step.
    """

    def put(array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    rows, r_in = dynamics.inputs.shape
    embedding = put(root[:, :r_in]).expand(sample.replicates, -1, -1).clone()
    unembedding = put(root[:, r_in:]).expand(sample.replicates, -1, -1).clone()
    inputs, targets = put(dynamics.inputs.T), put(dynamics.targets)
    forward_knots, backward_knots = put(grid.forward_knots), put(grid.backward_knots)
    embedding_scale = dynamics.rate_embedding / (dynamics.residual_scale * rows)
    if dtype != torch.float64:
        tolerance = max(tolerance, _SINGLE_TOLERANCE)

    def read(end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = (unembedding.mT @ end).mT
        gradient = dynamics.loss.gradient(output, targets)
        return output, gradient, unembedding @ gradient.mT

    outputs, hiddens, backwards, losses = [], [], [], []
    diverged_step = -1
    with workers() if device == "cpu" else nullcontext() as pool:
        units = _Units.of_sample(dynamics, sample, grid.total, dtype, device, pool)
        fields = _Fields(units, sample, grid, tolerance, name)
        for step in range(dynamics.steps):
            start = embedding @ inputs
            try:
                found = fields.settle(start, read, step)
            except _UnboundedError:
                diverged_step = step
                break
            z_knots = found.z_end + torch.einsum("jk,kbrn->jbrn", backward_knots, found.z_slope)
            outputs.append(found.output)
            losses.append(dynamics.loss.value(found.output, targets))
            hiddens.append(start + torch.einsum("jk,kbrn->jbrn", forward_knots, found.slope))
            backwards.append(z_knots)
            if step + 1 < dynamics.steps:
                fields.train(found.w, found.z)
                if dynamics.rate_embedding:
                    embedding -= embedding_scale * z_knots[0] @ inputs.T
                    unembedding -= embedding_scale * found.end @ found.gradient
            logger.debug("%s: step %d of %d", name, step + 1, dynamics.steps)

    def take(states: list[Tensor], *axes: int) -> Array:
        lost = [torch.full_like(states[0], torch.nan)] * (dynamics.steps - len(states))
        stacked: Array = torch.stack(states + lost).permute(*axes).cpu().numpy()
        # Trajectories of many rows are large: none is there twice while the next is stacked.
        states.clear()
        return stacked

    return Trajectory(
        output=take(outputs, 1, 0, 2, 3),
        hidden=take(hiddens, 2, 0, 1, 4, 3),
        backward=take(backwards, 2, 0, 1, 4, 3),
        loss=take(losses, 1, 0),
        diverged_step=diverged_step,
        passes=fields.passes,
    )

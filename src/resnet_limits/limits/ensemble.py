"""The units of one branch that stand for the quadrature: their drifts and their training steps.

Units sit at the nodes of the depth grid and are trained one by one, as in the finite network
(docs/concepts/limits.md). They are worked on in chunks, by compiled kernels where there are any
for their activation, else by torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits import kernels
from resnet_limits.limits.depth import Array
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.rules import Transition, move
from resnet_limits.threads import Pool

# Elements of the activations of one chunk. On a CPU all arrays of a chunk stay in a core's cache;
# on a GPU one kernel has work for the whole device. Compiled kernels see to the cache themselves.
_CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 24, "compiled": 1 << 18}
# Activations are kept for the iterations of a backward pass up to this many.
_KEPT_ELEMENTS = 1 << 25

Found = TypeVar("Found")


class Seen(NamedTuple):
    """What the units of a branch saw at a step, by which they learn.

    Attributes
    ----------
    step : int
        The step.
    u, z : Tensor, shape (nodes, replicates, r, rows)
        The state that the branch reads, after its norm, and the backward state after the branch.
    """

    step: int
    u: Tensor
    z: Tensor


@dataclass
class _Chunk:
    """Units of one node and some replicates, small enough for a core's cache.

    Attributes
    ----------
    pairs : slice
        Which (node, replicate) pairs, numbered with the replicate running fastest.
    incoming, outgoing : Tensor, shapes (pairs, a, r, points), (pairs, c, r, points)
        The units' weights. The points come last, where they are many and products are fast.
    in_buffers, out_buffers : tuple of Tensor, of the same shapes
        What the training rule keeps beside them.
    """

    pairs: slice
    incoming: Tensor
    outgoing: Tensor
    in_buffers: tuple[Tensor, ...] = ()
    out_buffers: tuple[Tensor, ...] = ()

    def first(self, count: int) -> _Chunk:
        """Give so many of the points, as a view."""
        return replace(
            self,
            incoming=self.incoming[..., :count],
            outgoing=self.outgoing[..., :count],
            in_buffers=tuple(buffer[..., :count] for buffer in self.in_buffers),
            out_buffers=tuple(buffer[..., :count] for buffer in self.out_buffers),
        )


def _joined(chunks: list[_Chunk], pairs: slice, axis: int) -> _Chunk:
    """Join chunks along an axis of their weights."""

    def join(*parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=axis)

    def joined(buffers: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(map(join, *buffers))

    return _Chunk(
        pairs,
        join(*(chunk.incoming for chunk in chunks)),
        join(*(chunk.outgoing for chunk in chunks)),
        joined([chunk.in_buffers for chunk in chunks]),
        joined([chunk.out_buffers for chunk in chunks]),
    )


def _neighbours(chunks: list[_Chunk], most: float) -> list[_Chunk]:
    """Join neighbours of equally many points, replicates of one node, to so many points at most."""
    groups: list[list[_Chunk]] = []
    for chunk in chunks:
        last = groups[-1] if groups else []
        together = sum(len(other.incoming) for other in last) + len(chunk.incoming)
        alike = last and last[-1].incoming.shape[1:] == chunk.incoming.shape[1:]
        if alike and together * chunk.incoming.shape[-1] <= most:
            last.append(chunk)
        else:
            groups.append([chunk])
    return [
        _joined(group, slice(group[0].pairs.start, group[-1].pairs.stop), 0) for group in groups
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


def _learn(
    parts: tuple[Tensor, ...],
    state: Tensor,
    values: Tensor,
    transition: Transition,
    scale: float,
) -> None:
    """Take weights and their buffers through a step, with gradients ``-scale * state @ values``."""
    weights = parts[0]
    pairs, vectors, r, points = weights.shape
    if vectors > 1:
        state = state[:, None].expand(-1, vectors, -1, -1).flatten(0, 1)
    flat = values.reshape(pairs * vectors, -1, points)
    if len(parts) == 1:
        kept, rate = float(transition.matrix[0, 0]), -float(transition.gradient[0])
        weights.view(-1, r, points).baddbmm_(state, flat, beta=kept, alpha=scale * rate)
        return
    gradient = torch.bmm(state, flat).mul_(-scale)
    move(transition, parts, gradient.view_as(weights))


def _to_unit(values: Tensor) -> Tensor:
    """Turn ``(pairs, vectors, rows, points)`` to the layout of :class:`Unit`, without a copy."""
    return values.permute(0, 3, 1, 2)


def _from_unit(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1)


def _code(branch: Branch, dtype: torch.dtype, device: str) -> Any:
    """Return what the compiled kernels know the unit by, or None where torch does the work."""
    return kernels.code_of(branch.unit) if (dtype, device) == (torch.float32, "cpu") else None


def _most(dynamics: Dynamics, branch: Branch, where: str) -> int:
    """Return the most points of a chunk, a key of _CHUNK_ELEMENTS given."""
    unit = branch.unit
    widest = len(dynamics.inputs) * max(unit.in_vectors, unit.out_vectors + unit.kept_vectors)
    return max(16, _CHUNK_ELEMENTS[where] // widest)


class Units:
    """Units of one branch at all depth nodes, and their expectations.

    States are ``(nodes, replicates, r, rows)`` in float64: u is what the branch reads, after its
    norm, and z the backward state after the branch. Sums over chunks are in float64 and in the
    chunks' order, whoever computes them.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        branch: Branch,
        chunks: list[_Chunk],
        group: int,
        pool: Pool | None,
    ) -> None:
        self.dynamics, self.branch, self.unit = dynamics, branch, branch.unit
        self.chunks, self.group, self.pool = chunks, group, pool
        first = chunks[0].incoming
        counts = torch.zeros(max(chunk.pairs.stop for chunk in chunks), dtype=torch.float64)
        for chunk in chunks:
            counts[chunk.pairs] += chunk.incoming.shape[-1]
        self.size = int(counts.sum())
        self.dtype, self.device = first.dtype, first.device
        self.code = _code(branch, first.dtype, first.device.type)
        scale = self.branch.scale / counts
        self.scale = scale[:, None, None].to(first.device)

    @classmethod
    def of_sample(
        cls,
        dynamics: Dynamics,
        branch: Branch,
        sample: UnitSample,
        shares: Array,
        dtype: torch.dtype,
        device: str,
        pool: Pool | None,
    ) -> Units:
        """Deal the sample out to the nodes."""
        compiled = _code(branch, dtype, device) is not None
        most = _most(dynamics, branch, "compiled" if compiled else device)

        def weights(vectors: Tensor, std: float) -> Tensor:
            return (std * vectors).to(device, dtype).permute(0, 2, 3, 1).contiguous()

        def buffers(weights: Tensor, rate: float) -> tuple[Tensor, ...]:
            needed = range(dynamics.rule.buffers if rate else 0)
            return tuple(torch.zeros_like(weights) for _ in needed)

        chunks = []
        for node, (ins, outs) in enumerate(sample.at_nodes(shares)):
            points = ins.shape[1]
            # Chunks of equal size and of whole groups of points that differ in signs alone.
            size = math.ceil(points / math.ceil(points / most) / sample.group) * sample.group
            together = max(1, most // size)
            for first in range(0, sample.replicates, together):
                last = min(sample.replicates, first + together)
                pairs = slice(node * sample.replicates + first, node * sample.replicates + last)
                for start in range(0, points, size):
                    at = slice(first, last), slice(start, start + size)
                    incoming = weights(ins[at], branch.input_std)
                    outgoing = weights(outs[at], branch.output_std)
                    chunks.append(
                        _Chunk(
                            pairs,
                            incoming,
                            outgoing,
                            buffers(incoming, branch.rate_in),
                            buffers(outgoing, branch.rate_out),
                        )
                    )
        return cls(dynamics, branch, chunks, sample.group, pool)

    def part(self, share: float) -> Units:
        """Copy this share of the units, some from every chunk, as they are before training."""
        taken: dict[int, list[_Chunk]] = {}
        for chunk in self.chunks:
            count = math.ceil(chunk.incoming.shape[-1] * share / self.group) * self.group
            few = chunk.first(count)
            taken.setdefault(chunk.pairs.start, []).append(few)
        chunks = [_joined(few, few[0].pairs, -1) for few in taken.values()]
        # Compiled kernels see to the cache themselves.
        most = (
            math.inf
            if self.code is not None
            else _most(self.dynamics, self.branch, self.device.type)
        )
        chunks = _neighbours(chunks, most)
        return Units(self.dynamics, self.branch, chunks, self.group, self.pool)

    def _each(self, work: Callable[[int, _Chunk], Found]) -> Iterable[Found]:
        numbers = range(len(self.chunks))
        if self.pool is None or len(self.chunks) == 1:
            return map(work, numbers, self.chunks)
        # Each thread takes one run of chunks: handing over costs as much as a small chunk.
        bounds = np.linspace(0, len(self.chunks), self.pool.threads + 1).astype(int)

        def several(first: int, stop: int) -> list[Found]:
            return [work(number, self.chunks[number]) for number in range(first, stop)]

        runs = self.pool.map(several, bounds[:-1].tolist(), bounds[1:].tolist())
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

    def _activate(self, chunk: _Chunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and the unit's values, in its layout."""
        p = _to_unit(_products(u[chunk.pairs], chunk.incoming))
        return p, self.unit.forward(p)

    def _output(self, values: Tensor) -> Tensor:
        """Return g, ``(pairs, c, rows, points)``, of the unit's values."""
        return _from_unit(values[..., : self.unit.out_vectors, :])

    def _cotangent(self, chunk: _Chunk, p: Tensor, values: Tensor, z: Tensor) -> Tensor:
        """Return ``Dg(p)^T O^T z``."""
        r = _to_unit(_products(z[chunk.pairs], chunk.outgoing))
        return _from_unit(self.unit.backward(p, values, r))

    def forward_drift(self, u: Tensor) -> Tensor:
        """``alpha E[O g(I^T u)]``.

        Parameters
        ----------
        u : Tensor, shape (nodes, replicates, r, rows)

        Returns
        -------
        Tensor, the shape of `u`
        """
        if self.code is not None:
            return self._drifts(u, self._compiled(u, None))[0]
        local = self._local(u)

        def work(_number: int, chunk: _Chunk) -> list[Tensor]:
            return [_sums(chunk.outgoing, self._output(self._activate(chunk, local)[1]))]

        return self._drifts(u, work)[0]

    def backward_drift(self, u: Tensor) -> Callable[[Tensor], Tensor]:
        """``z -> alpha E[I Dg(p)^T O^T z]``; activations at u are kept where there is room.

        Parameters
        ----------
        u : Tensor, shape (nodes, replicates, r, rows)

        Returns
        -------
        callable
            From a z to its drift, both of the shape of `u`.
        """
        if self.code is not None:
            # Activations cost less than to keep them.
            return lambda z: self._drifts(z, self._compiled(u, z, forward=False))[0]
        local_u = self._local(u)
        vectors = self.unit.in_vectors + self.unit.out_vectors + self.unit.kept_vectors
        kept: list[tuple[Tensor, Tensor]] = []
        if self.size * vectors * u.shape[-1] <= _KEPT_ELEMENTS:
            kept = list(self._each(lambda _number, chunk: self._activate(chunk, local_u)))

        def drift(z: Tensor) -> Tensor:
            local = self._local(z)

            def work(number: int, chunk: _Chunk) -> list[Tensor]:
                p, values = kept[number] if kept else self._activate(chunk, local_u)
                return [_sums(chunk.incoming, self._cotangent(chunk, p, values, local))]

            return self._drifts(z, work)[0]

        return drift

    def drifts(self, u: Tensor, z: Tensor, settled: Seen | None = None) -> tuple[Tensor, Tensor]:
        """Both drifts, from one pass over the units.

        With what the units saw at the step before, each takes its training step first.

        Parameters
        ----------
        u, z : Tensor, shape (nodes, replicates, r, rows)
        settled : Seen, optional
            The step before.

        Returns
        -------
        forward, backward : Tensor, the shape of `u`
        """
        if self.code is not None:
            forward, backward = self._drifts(u, self._compiled(u, z, settled))
            return forward, backward
        local_u, local_z = self._local(u), self._local(z)
        train = None if settled is None else self._training_step(settled)

        def work(number: int, chunk: _Chunk) -> list[Tensor]:
            if train is not None:
                train(number, chunk)
            p, values = self._activate(chunk, local_u)
            change = self._cotangent(chunk, p, values, local_z)
            return [_sums(chunk.outgoing, self._output(values)), _sums(chunk.incoming, change)]

        forward, backward = self._drifts(u, work)
        return forward, backward

    def update(self, seen: Seen) -> None:
        """Take one training step with every unit."""
        for _ in self._each(self._training_step(seen)):
            pass

    def _transitions(self, step: int) -> tuple[Transition, Transition]:
        """Return the steps of the in- and of the out-vectors after a state."""
        rule, branch = self.dynamics.rule, self.branch
        return rule.transition(step, branch.rate_in), rule.transition(step, branch.rate_out)

    def _scale(self, step: int) -> float:
        """Return what sums over rows are multiplied by to be the negative of gradients."""
        return -1.0 / (self.branch.scale * self.dynamics.batch_size(step))

    def _compiled(
        self,
        u: Tensor | None,
        z: Tensor | None,
        settled: Seen | None = None,
        *,
        forward: bool = True,
    ) -> Callable[[int, _Chunk], list[Tensor]]:
        """Return what :func:`kernels.visit` does to a chunk.

        A training step at the `settled` states, then the sums of the forward drift at u and, where
        there is a z, of the backward drift.
        """
        wanted = (forward and u is not None, z is not None)
        r, rows = self.chunks[0].incoming.shape[2], len(self.dynamics.inputs)
        pairs = len(self.scale)
        nothing = np.zeros((pairs, rows, r), np.float32)
        turned = np.zeros((pairs, r, rows), np.float32)

        def by_rows(state: Tensor | None) -> NDArray[np.float32]:
            return nothing if state is None else self._local(state).mT.contiguous().numpy()

        here = by_rows(u), by_rows(z)
        adds = self.dynamics.rule.is_additive(self.dynamics.steps)
        stays = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
        there: tuple[NDArray[np.float32], ...] = (nothing, nothing, turned, turned)
        steps: list[tuple[NDArray[np.float32], ...]] = [stays, stays]
        if settled is not None:
            there, steps = self._settled(settled, by_rows)

        def buffers(weights: Tensor, kept: tuple[Tensor, ...]) -> tuple[NDArray[np.float32], ...]:
            return tuple(buffer.numpy() for buffer in kept or (weights,))

        def work(_number: int, chunk: _Chunk) -> list[Tensor]:
            at = chunk.pairs
            sums = np.empty((2, at.stop - at.start, r, rows))
            weights = chunk.incoming.numpy(), chunk.outgoing.numpy()
            moves = None
            if not adds:
                ins = buffers(chunk.incoming, chunk.in_buffers)
                moves = *steps, ins, buffers(chunk.outgoing, chunk.out_buffers)
            old = tuple(state[at] for state in there)
            u_here, z_here = (state[at] for state in here)
            trains = settled is not None
            kernels.visit(self.code, *weights, trains, old, moves, u_here, z_here, wanted, sums)
            return [torch.from_numpy(sums[i]) for i in (0, 1) if wanted[i]]

        return work

    def _settled(
        self, seen: Seen, by_rows: Callable[[Tensor], NDArray[np.float32]]
    ) -> tuple[tuple[Any, ...], list[Any]]:
        """Return what :func:`kernels.visit` needs to know of a training step."""
        scale, states = self._scale(seen.step), (seen.u, seen.z)
        rates = self.branch.rate_in, self.branch.rate_out
        scaled: list[NDArray[np.float32]] = []
        steps: list[tuple[NDArray[np.float32], ...]] = []
        for state, rate, transition in zip(
            states, rates, self._transitions(seen.step), strict=True
        ):
            matrix, gradient = transition if rate else (np.eye(1), np.zeros(1))
            # What only adds takes the gradient's factor at once.
            factor = float(gradient[0]) if np.array_equal(matrix, [[1.0]]) else 1.0
            scaled.append((-scale * factor * self._local(state)).contiguous().numpy())
            steps.append((matrix.astype(np.float32), gradient.astype(np.float32)))
        return (*map(by_rows, states), *scaled), steps

    def _training_step(self, seen: Seen) -> Callable[[int, _Chunk], object]:
        """Return what one training step does to a chunk (docs/concepts/scaling.md)."""
        if self.code is not None:
            return self._compiled(None, None, seen)
        local_u, local_z = self._local(seen.u), self._local(seen.z)
        of_ins, of_outs = self._transitions(seen.step)
        scale = self._scale(seen.step)

        def work(_number: int, chunk: _Chunk) -> None:
            p, values = self._activate(chunk, local_u)
            change = self._cotangent(chunk, p, values, local_z)
            if self.branch.rate_in:
                ins = chunk.incoming, *chunk.in_buffers
                _learn(ins, local_u[chunk.pairs], change, of_ins, scale)
            if self.branch.rate_out:
                outs = chunk.outgoing, *chunk.out_buffers
                _learn(outs, local_z[chunk.pairs], self._output(values), of_outs, scale)

        return work

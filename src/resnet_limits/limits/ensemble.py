"""The ensemble of units that stands for the quadrature: their drifts and their gradient steps.

Units sit at the nodes of the depth grid and are trained one by one, as in the finite network
(docs/concepts/limits.md). They are worked on in chunks, by compiled kernels where there are any
for their activation, else by torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits import kernels
from resnet_limits.limits.depth import Array
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.threads import Pool
from resnet_limits.units import Unit

# Elements of the activations of one chunk. On a CPU all arrays of a chunk stay in a core's cache;
# on a GPU one kernel has work for the whole device. Compiled kernels see to the cache themselves.
_CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 24, "compiled": 1 << 18}
# Activations are kept for the iterations of a backward pass up to this many.
_KEPT_ELEMENTS = 1 << 27

Found = TypeVar("Found")


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


def _code(unit: Unit, dtype: torch.dtype, device: str) -> Any:
    """Return what the compiled kernels know the unit by, or None where torch does the work."""
    return kernels.code_of(unit) if (dtype, device) == (torch.float32, "cpu") else None


class Units:
    """All units of the quadrature at all depth nodes, and their expectations.

    States are ``(nodes, replicates, r, rows)`` in float64; sums over chunks are in float64 and in
    the chunks' order, whoever computes them.
    """

    def __init__(self, dynamics: Dynamics, chunks: list[_Chunk], pool: Pool | None) -> None:
        self.dynamics = dynamics
        self.branch = dynamics.layer[0]
        self.unit: Unit = self.branch.unit
        self.chunks = chunks
        self.pool = pool
        first = chunks[0].incoming
        counts = torch.zeros(max(chunk.pairs.stop for chunk in chunks), dtype=torch.float64)
        for chunk in chunks:
            counts[chunk.pairs] += chunk.incoming.shape[-1]
        self.size = int(counts.sum())
        self.dtype = first.dtype
        self.code = _code(self.unit, first.dtype, first.device.type)
        scale = self.branch.scale / counts
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
    ) -> Units:
        """Deal the sample out to the nodes."""
        rows = len(dynamics.inputs)
        branch = dynamics.layer[0]
        unit = branch.unit
        widest = rows * max(unit.in_vectors, unit.out_vectors)
        compiled = _code(unit, dtype, device) is not None
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
                            weights(ins[at], branch.input_std),
                            weights(outs[at], branch.output_std),
                        )
                    )
        return cls(dynamics, chunks, pool)

    def part(self, share: float, group: int) -> Units:
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
        return Units(self.dynamics, chunks, self.pool)

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

    def _activate(self, chunk: _Chunk, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and g(p), in the unit's layout."""
        p = _to_unit(_products(w[chunk.pairs], chunk.incoming))
        return p, self.unit.forward(p)

    def _cotangent(self, chunk: _Chunk, p: Tensor, g: Tensor, z: Tensor) -> Tensor:
        """Return ``Dg(p)^T O^T z``."""
        r = _to_unit(_products(z[chunk.pairs], chunk.outgoing))
        return _from_unit(self.unit.backward(p, g, r))

    def forward_drift(self, w: Tensor) -> Tensor:
        """``alpha E[O g(I^T w)]``.

        Parameters
        ----------
        w : Tensor, shape (nodes, replicates, r, rows)

        Returns
        -------
        Tensor, the shape of `w`
        """
        if self.code is not None:
            return self._drifts(w, self._compiled(w, None))[0]
        local = self._local(w)

        def work(_number: int, chunk: _Chunk) -> list[Tensor]:
            return [_sums(chunk.outgoing, _from_unit(self._activate(chunk, local)[1]))]

        return self._drifts(w, work)[0]

    def backward_drift(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """``z -> alpha E[I Dg(p)^T O^T z]``; activations at w are kept where there is room.

        Parameters
        ----------
        w : Tensor, shape (nodes, replicates, r, rows)

        Returns
        -------
        callable
            From a z to its drift, both of the shape of `w`.
        """
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

        Parameters
        ----------
        w, z : Tensor, shape (nodes, replicates, r, rows)
        settled : tuple of Tensor, optional
            The w and the z of the step before, of the same shape.

        Returns
        -------
        forward, backward : Tensor, the shape of `w`
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
        """Take one gradient step with every unit, at the states of all nodes.

        Parameters
        ----------
        w, z : Tensor, shape (nodes, replicates, r, rows)
        """
        for _ in self._each(self._gradient_step(w, z)):
            pass

    def _rates(self, rows: int) -> tuple[float, float]:
        """Return what the sums over rows of a gradient step are multiplied by."""
        scale = -1.0 / (self.branch.scale * rows)
        return scale * self.branch.rate_in, scale * self.branch.rate_out

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
            weights = chunk.incoming.numpy(), chunk.outgoing.numpy()
            old = tuple(state[at] for state in there)
            w_here, z_here = (state[at] for state in here)
            trains = settled is not None
            kernels.visit(self.code, *weights, trains, old, w_here, z_here, wanted, sums)
            return [torch.from_numpy(sums[i]) for i in (0, 1) if wanted[i]]

        return work

    def _gradient_step(self, w: Tensor, z: Tensor) -> Callable[[int, _Chunk], object]:
        """Return what one gradient step does to a chunk (docs/concepts/scaling.md)."""
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

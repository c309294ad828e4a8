"""The implicit engine: networks exactly in law, without their block weights.

Each block weight matrix is a :class:`~resnet_limits.networks.conditioned.Conditioned` one: drawn
only as far as its products have seen it. This module has what lies between the products: the units
of a layer, which hold the raw vectors, and the passes over the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.dynamics import Dynamics
from resnet_limits.kinds import Shape
from resnet_limits.networks import cost
from resnet_limits.networks.base import Network
from resnet_limits.networks.conditioned import Conditioned, Noise
from resnet_limits.networks.workers import Workers
from resnet_limits.threads import one_thread
from resnet_limits.units import Unit

Array = NDArray[np.float64]

# Numbers of one temporary array: all seeds' raw vectors over a few units.
_CHUNK_ELEMENTS = 1 << 18
# A layer's raw vectors are kept over one pass where they are at most so many numbers (128 MiB), and
# computed again for each of its products above.
_KEPT_ELEMENTS = cost.IMPLICIT_KEPT


class _Chunk:
    """Raw vectors of some units of one layer, in float64, each computed at most once.

    Vectors are laid out ``(S, steps x N, units x vectors)``.

    Parameters
    ----------
    unit : Unit
        The residual unit.
    p, r : Tensor
        What the units have seen at the first steps, of the in- and the out-vectors; r may lack the
        last step.
    rows : int
        N.
    """

    def __init__(self, unit: Unit, p: Tensor, r: Tensor, rows: int) -> None:
        self.unit, self.rows = unit, rows
        self.p, self.r = p.double(), r.double()
        self._g: Tensor | None = None
        self._dp: Tensor | None = None

    def _by_unit(self, vectors: Tensor, count: int) -> Tensor:
        """View as the unit wants it, ``(S, steps, units, vectors, N)``."""
        return (
            vectors.unflatten(1, (-1, self.rows)).unflatten(3, (-1, count)).permute(0, 1, 3, 4, 2)
        )

    def _flat(self, states: Tensor) -> Tensor:
        return states.permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)

    def evaluate(self, p: Tensor) -> Tensor:
        """``g(p)``."""
        return self._flat(self.unit.forward(self._by_unit(p, self.unit.in_vectors)))

    @property
    def g(self) -> Tensor:
        """``g(p)`` at all steps of p."""
        if self._g is None:
            self._g = self.evaluate(self.p)
        return self._g

    @property
    def dp(self) -> Tensor:
        """``Dg(p)^T r`` at all steps of r."""
        if self._dp is None:
            self._dp = self.pull_back(slice(0, self.r.shape[1]), self.r)
        return self._dp

    def pull_back(self, at: slice, r: Tensor) -> Tensor:
        """``Dg(p)^T r`` at some steps."""
        a, c = self.unit.in_vectors, self.unit.out_vectors
        p, g = self._by_unit(self.p[:, at], a), self._by_unit(self.g[:, at], c)
        return self._flat(self.unit.backward(p, g, self._by_unit(r, c)))

    def append_p(self, p: Tensor) -> Tensor:
        """Take p with one step more; return the ``g(p)`` of that step."""
        before, self.p = self.g, p.double()
        new = self.evaluate(self.p[:, before.shape[1] :])
        self._g = torch.cat([before, new], 1) if before.shape[1] else new
        return new

    def append_r(self, r: Tensor) -> Tensor:
        """Take r with one step more, up to p's last one; return the ``Dg(p)^T r`` of that step."""
        before, self.r = self.dp, r.double()
        at = slice(before.shape[1], self.r.shape[1])
        new = self.pull_back(at, self.r[:, at])
        self._dp = torch.cat([before, new], 1) if before.shape[1] else new
        return new


def _combined(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of ``coefficients^T vectors`` over pairs of both, ``(S, n, N)`` and ``(S, n, units)``."""
    (coefficients, vectors), *others = pairs
    total = torch.bmm(coefficients.mT, vectors)
    for coefficients, vectors in others:
        if vectors.shape[1]:
            total.baddbmm_(coefficients.mT, vectors)
    return total


_Raw = Callable[[_Chunk], tuple[Tensor, Tensor]]


def _incoming(chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Raw vectors t and v of the incoming matrix."""
    return chunk.p, chunk.dp


def _outgoing(chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Raw vectors t and v of the outgoing matrix."""
    return chunk.r, chunk.g


class _Layer:
    """One layer of all seeds: two conditioned matrices and what its units have seen."""

    def __init__(self, network: ImplicitNetwork, noise: Callable[[str], Noise]) -> None:
        dynamics, shape = network.dynamics, network.shape
        branch = dynamics.layer[0]
        unit = branch.unit
        self.unit, self.workers = unit, network.workers
        self.rows = rows = len(dynamics.inputs)
        seeds, steps = network.seeds, dynamics.steps
        self.probes = probes = steps * rows
        like = network.hidden
        a, c = unit.in_vectors, unit.out_vectors
        root = float(np.sqrt(shape.embed_dim))
        scale = 1.0 / (branch.scale * rows)

        def matrix(vectors: int, std: float, rate: float, left: str, right: str) -> Conditioned:
            return Conditioned(
                seeds,
                shape.embed_dim,
                shape.width * vectors,
                steps,
                rows,
                root * std,
                scale * rate,
                like.dtype,
                noise(left),
                noise(right),
                like.device,
            )

        self.incoming = matrix(a, branch.input_std, branch.rate_in, "read", "write_back")
        self.outgoing = matrix(c, branch.output_std, branch.rate_out, "read_back", "write")
        self.p = like.new_empty((seeds, probes, shape.width * a))
        self.r = like.new_empty((seeds, probes, shape.width * c))
        vectors = 2 * (a + c) * probes * seeds
        size = max(64, _CHUNK_ELEMENTS // vectors)
        self.places = [
            (slice(units.start * a, units.stop * a), slice(units.start * c, units.stop * c))
            for units in self.workers.blocks(shape.width, size)
        ]
        self.keeps = vectors * shape.width <= _KEPT_ELEMENTS
        self.kept: dict[int, _Chunk] = {}

    def _sweep(
        self, work: Callable[[_Chunk, slice, slice], Sequence[Tensor]], p_steps: int, r_steps: int
    ) -> list[Array]:
        """Go through the units and add up what `work` returns for each chunk of them.

        It is given the chunk with its first steps of p and r, and its places in p and r.
        """

        def one(places: tuple[slice, slice]) -> Sequence[Tensor]:
            p_at, r_at = places
            chunk = self.kept.get(p_at.start)
            if chunk is None:
                p = self.p[:, : p_steps * self.rows, p_at]
                r = self.r[:, : r_steps * self.rows, r_at]
                chunk = _Chunk(self.unit, p, r, self.rows)
                if self.keeps:
                    self.kept[p_at.start] = chunk
            return work(chunk, p_at, r_at)

        parts = self.workers.run(one, self.places, self.p[:, : p_steps * self.rows].numel())
        return [reduce(torch.add, terms).cpu().numpy() for terms in zip(*parts, strict=True)]

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.p.device)

    def _laid_out(self, with_t: Array, with_v: Array) -> Array:
        """Lay inner products with the first raw vectors t and v out by the raw vectors' numbers."""
        laid_out = np.zeros((len(with_t), 2 * self.probes, with_t.shape[2]))
        laid_out[:, : with_t.shape[1]] = with_t
        laid_out[:, self.probes : self.probes + with_v.shape[1]] = with_v
        return laid_out

    def read(self, h: Tensor, step: int) -> Array:
        """``p = I^T h / D``; return the inner products of ``g(p)`` for :meth:`write`."""
        sides = _incoming, _outgoing
        return self._left(self.incoming, h, step, self.p, *sides, _Chunk.append_p, step)

    def write(self, inner: Array, step: int) -> Tensor:
        """``O g``, shape (S, N, D), after :meth:`read`."""
        return self._right(self.outgoing, inner, step, _outgoing, step)

    def read_back(self, b: Tensor, step: int) -> Array:
        """``r = O^T b / D``; return the inner products of ``Dg(p)^T r`` for :meth:`write_back`."""
        sides = _outgoing, _incoming
        return self._left(self.outgoing, b, step, self.r, *sides, _Chunk.append_r, step + 1)

    def write_back(self, inner: Array, step: int) -> Tensor:
        """``I Dg(p)^T r``, shape (S, N, D), after :meth:`read_back`."""
        return self._right(self.incoming, inner, step, _incoming, step + 1)

    def _left(
        self,
        matrix: Conditioned,
        u: Tensor,
        step: int,
        products: Tensor,
        own: _Raw,
        other: _Raw,
        append: Callable[[_Chunk, Tensor], Tensor],
        p_steps: int,
    ) -> Array:
        """Product with a block of left probes, kept with the `products` t of earlier steps.

        `own` are the matrix's raw vectors t and v; `append` takes the new t and gives the new v of
        the `other` matrix, whose inner products with that matrix's raw vectors are returned.
        """
        at, stop, asked = step * self.rows, (step + 1) * self.rows, matrix.right_probes
        places = 0 if products is self.p else 1
        new = matrix.ask_left(u)
        noise = products[:, at : stop if new.count else at]
        projected = None
        if new.count:
            matrix.noise_left.fill(noise, new.found, matrix.std)

            def project(chunk: _Chunk, *where: slice) -> Sequence[Tensor]:
                _, v = own(chunk)
                return (torch.bmm(v, noise[:, :, where[places]].double().mT),)

            (projected,) = self._sweep(project, p_steps, step)
        coefficients, mixing = (self._tensor(x) for x in matrix.product_left(new, projected))
        on_t, on_v = coefficients[:, :at], coefficients[:, self.probes : self.probes + asked]

        def combine(chunk: _Chunk, *where: slice) -> Sequence[Tensor]:
            (t, v), here = own(chunk), where[places]
            fresh = _combined((on_t, t), (on_v, v), (mixing, noise[:, :, here].double()))
            products[:, at:stop, here] = fresh
            # What is stored is what all that follows must see.
            probes = append(chunk, products[:, :stop, here])
            t, v = other(chunk)
            return torch.bmm(t, probes.mT), torch.bmm(v, probes.mT)

        return self._laid_out(*self._sweep(combine, p_steps, step))

    def _right(
        self,
        matrix: Conditioned,
        inner: Array,
        step: int,
        raw: _Raw,
        r_steps: int,
    ) -> Tensor:
        """Product with a block of right probes, whose remainder is formed where it is small."""
        at = step * self.rows
        new, gamma, toward, certain = matrix.ask_right(inner)
        if not certain:
            known = self._tensor(-matrix.tau[:, :at, : matrix.rights] @ gamma)

            def form(chunk: _Chunk, *_: slice) -> Sequence[Tensor]:
                t, v = raw(chunk)
                rest = _combined((known, v[:, :at])) + v[:, at:]
                return torch.bmm(t, rest.mT), torch.bmm(v, rest.mT), torch.bmm(rest, rest.mT)

            with_t, with_v, gram = self._sweep(form, step + 1, r_steps)
            laid_out = self._laid_out(with_t, with_v)
            new, gamma, toward = matrix.refine_right(gamma, laid_out, gram)
        self.kept = {}
        return matrix.product_right(new, gamma, toward)


class ImplicitNetwork(Network):
    """A batch of residual networks of one shape, one for each seed, without block weights.

    The same interface as :class:`resnet_limits.networks.dense.DenseNetwork`, and the same law of
    every hidden and backward state and output; not the same draws.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    shape : Shape
        Depth L, width M, embedding dimension D.
    seeds : sequence of int
        Seeds of the fresh noise, S of them.
    embedding : ndarray, shape (S, D, r)
        Embedding rows ``[W_e Q, W_u]`` of every seed.
    root_seed : int
        Root of the random streams.
    dtype, device : torch dtype and device
        Storage and the arithmetic in embedding space. Units are always evaluated in float64, a few
        at a time: inner products decide what is new in a probe. Draws are made on the CPU.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        shape: Shape,
        seeds: Sequence[int],
        embedding: Array,
        root_seed: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(dynamics, shape, embedding, dtype, device)
        self.seeds = len(seeds)
        self.workers = Workers(self.hidden.device)

        def noise(layer: int, product: str) -> Noise:
            return Noise(root_seed, (*shape, layer, product), seeds, self.workers)

        self.layers = [_Layer(self, partial(noise, number)) for number in range(shape.depth)]

    def forward_pass(self) -> Tensor:
        """Compute all hidden states; return the outputs, shape (S, rows, d_out)."""
        self.hidden[0] = self.inputs @ self.embedding.mT
        with one_thread():
            for number, layer in enumerate(self.layers):
                inner = layer.read(self.hidden[number], self.step)
                written = layer.write(inner, self.step)
                torch.add(
                    self.hidden[number], written, alpha=self.gains[0], out=self.hidden[number + 1]
                )
        return self._read_out()

    def backward_pass(self, cotangent: Tensor, *, update: bool) -> None:
        """Compute all cotangents; the training terms of the step count from now on.

        Without an update, the pass must be the network's last.
        """
        self._start_back(cotangent)
        with one_thread():
            for number in reversed(range(self.shape.depth)):
                layer = self.layers[number]
                inner = layer.read_back(self.backward[number + 1], self.step)
                written = layer.write_back(inner, self.step)
                torch.add(
                    self.backward[number + 1],
                    written,
                    alpha=self.gains[0],
                    out=self.backward[number],
                )
        if update:
            self._learn_embedding(cotangent)
        self.step += 1

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

from resnet_limits.config import InputError
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.kinds import Shape
from resnet_limits.networks import cost
from resnet_limits.networks.base import Network
from resnet_limits.networks.conditioned import Conditioned, Course, Noise
from resnet_limits.networks.workers import Workers
from resnet_limits.rules import table
from resnet_limits.threads import one_thread
from resnet_limits.units import Unit

Array = NDArray[np.float64]

# Initial weights are known through trained ones up to the rounding of a vector over this share.
_LEAST = {torch.float64: 1e-7, torch.float32: 1e-3}
# Numbers of one temporary array: all seeds' raw vectors over a few units.
_CHUNK_ELEMENTS = cost.IMPLICIT_CHUNK
# A layer's raw vectors are kept over one pass where they are at most so many numbers (128 MiB), and
# computed again for each of its products above.
_KEPT_ELEMENTS = cost.IMPLICIT_KEPT


class _Chunk:
    """Raw vectors of some units of one branch, in float64, each computed at most once.

    Vectors are laid out ``(S, steps x N, vectors x units)``, units side by side: a unit that mixes
    its vectors or rows then works on long runs of numbers.

    Parameters
    ----------
    unit : Unit
        The residual unit.
    p, r : Tensor, shape (S, steps x N, vectors, units)
        What the units have seen at the first steps, of the in- and the out-vectors; r may lack the
        last step.
    rows : int
        N.
    """

    def __init__(self, unit: Unit, p: Tensor, r: Tensor, rows: int) -> None:
        self.unit, self.rows, self.units = unit, rows, p.shape[3]
        self.keeps = unit.kept_vectors > 0
        self.p, self.r = p.double().flatten(2), r.double().flatten(2)
        self._values: Tensor | None = None
        self._dp: Tensor | None = None

    def _by_unit(self, vectors: Tensor) -> Tensor:
        """View as the unit wants it, ``(S, steps, units, vectors, N)``."""
        split = vectors.reshape(
            len(vectors), -1, self.rows, vectors.shape[2] // self.units, self.units
        )
        return split.permute(0, 1, 4, 3, 2)

    def _flat(self, states: Tensor) -> Tensor:
        split = states.permute(0, 1, 4, 3, 2)
        return split.reshape(len(split), -1, split.shape[3] * split.shape[4])

    @property
    def values(self) -> Tensor:
        """``g(p)`` at all steps of p, and what the unit keeps beside it."""
        if self._values is None:
            self._values = self._evaluate(self.p)
        return self._values

    def _evaluate(self, p: Tensor) -> Tensor:
        return self._flat(self.unit.forward(self._by_unit(p)))

    def _of_g(self, values: Tensor) -> Tensor:
        return values[:, :, : self.unit.out_vectors * self.units] if self.keeps else values

    @property
    def g(self) -> Tensor:
        """``g(p)`` at all steps of p."""
        return self._of_g(self.values)

    @property
    def dp(self) -> Tensor:
        """``Dg(p)^T r`` at all steps of r."""
        if self._dp is None:
            self._dp = self._pull_back(slice(0, self.r.shape[1]))
        return self._dp

    def _pull_back(self, at: slice) -> Tensor:
        """``Dg(p)^T r`` at some steps."""
        p, values, r = (self._by_unit(x[:, at]) for x in (self.p, self.values, self.r))
        return self._flat(self.unit.backward(p, values, r))

    def append_p(self, p: Tensor) -> Tensor:
        """Take p with one step more; return the ``g(p)`` of that step."""
        before, self.p = self.values, p.double()
        new = self._evaluate(self.p[:, before.shape[1] :])
        self._values = torch.cat([before, new], 1) if before.shape[1] else new
        return self._of_g(new)

    def append_r(self, r: Tensor) -> Tensor:
        """Take r with one step more, up to p's last one; return the ``Dg(p)^T r`` of that step."""
        before, self.r = self.dp, r.double()
        new = self._pull_back(slice(before.shape[1], self.r.shape[1]))
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


class _Branch:
    """One branch of one layer, of all seeds: two conditioned matrices and what its units have seen.

    Parameters
    ----------
    network : ImplicitNetwork
        The network.
    branch : Branch
        Which of its layer's branches.
    courses : tuple of Course
        Of the incoming and of the outgoing weights.
    noise : callable
        Noise of a kind of product.
    """

    def __init__(
        self,
        network: ImplicitNetwork,
        branch: Branch,
        courses: tuple[Course, Course],
        noise: Callable[[str], Noise],
    ) -> None:
        dynamics, embed_dim = network.dynamics, network.shape.embed_dim
        self.unit = unit = branch.unit
        self.workers = network.workers
        width = branch.width(network.shape.width)
        self.rows = rows = len(dynamics.inputs)
        seeds, steps = network.seeds, dynamics.steps
        self.probes = probes = steps * rows
        like = network.hidden
        a, c = unit.in_vectors, unit.out_vectors
        root = float(np.sqrt(embed_dim))

        def matrix(vectors: int, std: float, course: Course, left: str, right: str) -> Conditioned:
            return Conditioned(
                seeds,
                embed_dim,
                width * vectors,
                steps,
                rows,
                root * std,
                course,
                like.dtype,
                noise(left),
                noise(right),
                like.device,
            )

        first, second = courses
        self.incoming = matrix(a, branch.input_std, first, "read", "write_back")
        self.outgoing = matrix(c, branch.output_std, second, "read_back", "write")
        self.p = like.new_empty((seeds, probes, a, width))
        self.r = like.new_empty((seeds, probes, c, width))
        vectors = (2 * (a + c) + unit.kept_vectors) * probes * seeds
        size = max(64, _CHUNK_ELEMENTS // vectors)
        self.places = self.workers.blocks(width, size)
        self.keeps = vectors * width <= _KEPT_ELEMENTS
        self.kept: dict[int, _Chunk] = {}

    def _sweep(
        self, work: Callable[[_Chunk, slice], Sequence[Tensor]], p_steps: int, r_steps: int
    ) -> list[Array]:
        """Go through the units and add up what `work` returns for each chunk of them.

        It is given the chunk with its first steps of p and r, and its units.
        """

        def one(units: slice) -> Sequence[Tensor]:
            chunk = self.kept.get(units.start)
            if chunk is None:
                p = self.p[:, : p_steps * self.rows, :, units]
                r = self.r[:, : r_steps * self.rows, :, units]
                chunk = _Chunk(self.unit, p, r, self.rows)
                if self.keeps:
                    self.kept[units.start] = chunk
            return work(chunk, units)

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
        new = matrix.ask_left(u)
        noise = products[:, at : stop if new.count else at]
        projected = None
        if new.count:
            matrix.noise_left.fill(noise.flatten(2), new.found, matrix.std)

            def project(chunk: _Chunk, units: slice) -> Sequence[Tensor]:
                _, v = own(chunk)
                return (torch.bmm(v, noise[..., units].double().flatten(2).mT),)

            (projected,) = self._sweep(project, p_steps, step)
        coefficients, mixing = (self._tensor(x) for x in matrix.product_left(new, projected))
        on_t, on_v = coefficients[:, :at], coefficients[:, self.probes : self.probes + asked]

        def combine(chunk: _Chunk, units: slice) -> Sequence[Tensor]:
            t, v = own(chunk)
            drawn = noise[..., units].double().flatten(2)
            fresh = _combined((on_t, t), (on_v, v), (mixing, drawn))
            products[:, at:stop, :, units] = fresh.unflatten(2, (-1, chunk.units))
            # What is stored is what all that follows must see.
            probes = append(chunk, products[:, :stop, :, units].flatten(2))
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
        """Product with a block of right probes, of which small remainders are formed."""
        at = step * self.rows
        asked = matrix.ask_right(inner)
        while asked.vectors is not None:
            coefficients = self._tensor(np.concatenate(asked.vectors, axis=1))

            def form(chunk: _Chunk, _units: slice, by: Tensor = coefficients) -> Sequence[Tensor]:
                t, v = raw(chunk)
                formed = _combined((by[:, at:], v[:, at:]), (by[:, :at], v[:, :at]))
                return tuple(torch.bmm(x, formed.mT) for x in (t, v, formed))

            with_t, with_v, gram = self._sweep(form, step + 1, r_steps)
            asked = matrix.refine_right(asked, self._laid_out(with_t, with_v), gram)
        self.kept = {}
        return matrix.product_right(asked)


def refusal(dynamics: Dynamics, dtype: torch.dtype) -> str:
    """Say why the implicit engine does not train a problem; nothing if it does.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    dtype : torch dtype
        Storage of the vectors.
    """
    if dynamics.initial_law != "gaussian":
        return (
            f"model.initial_law: the implicit engine has no weights of law {dynamics.initial_law}; "
            "allowed: gaussian, or sweep.engine dense"
        )
    rates = {rate for branch in dynamics.layer for rate in (branch.rate_in, branch.rate_out)}
    left = np.array([table(dynamics.rule, rate, dynamics.steps).initial for rate in sorted(rates)])
    share = np.abs(left).min(axis=0)
    if (share < _LEAST[dtype]).any():
        step = int(np.argmax(share < _LEAST[dtype]))
        return (
            f"training.weight_decay: at state {step} weights keep {share[step]:.1g} of their "
            f"initial values, and the implicit engine needs {_LEAST[dtype]:g}; allowed: a smaller "
            "decay, fewer steps, or sweep.engine dense"
        )
    return ""


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
        if reason := refusal(dynamics, dtype):
            raise InputError(reason)
        self.seeds = len(seeds)
        self.workers = Workers(self.hidden.device)
        courses = [
            (Course.of(dynamics, b.rate_in, b.scale), Course.of(dynamics, b.rate_out, b.scale))
            for b in dynamics.layer
        ]

        def noise(layer: int, branch: int, product: str) -> Noise:
            place = (layer, branch) if branch else (layer,)
            return Noise(root_seed, (*shape, *place, product), seeds, self.workers)

        self.layers = [
            [
                _Branch(self, branch, courses[number], partial(noise, layer, number))
                for number, branch in enumerate(dynamics.layer)
            ]
            for layer in range(shape.depth)
        ]

    def forward_pass(self) -> Tensor:
        """Compute all states; return the outputs, shape (S, rows, d_out)."""
        self.states[0][0] = self.inputs @ self.embedding.mT
        with one_thread():
            for layer, branches in enumerate(self.layers):
                for number, branch in enumerate(branches):
                    before, after = self.before(number)[layer], self.after(number)[layer]
                    inner = branch.read(self._normed(number, before), self.step)
                    written = branch.write(inner, self.step)
                    torch.add(before, written, alpha=self.gains[number], out=after)
        return self._read_out()

    def _normed(self, branch: int, h: Tensor) -> Tensor:
        """Give what a branch reads of a state."""
        return self.dynamics.layer[branch].norm.forward(h, -1, 1.0 / self.shape.embed_dim)

    def backward_pass(self, cotangent: Tensor, *, update: bool) -> None:
        """Compute all cotangents; the training terms of the step count from now on.

        Without an update, the pass must be the network's last.
        """
        self._start_back(cotangent)
        weight = 1.0 / self.shape.embed_dim
        with one_thread():
            for layer in reversed(range(self.shape.depth)):
                for number, branch in reversed(list(enumerate(self.layers[layer]))):
                    after = self.cotangent_after(number)[layer]
                    inner = branch.read_back(after, self.step)
                    written = branch.write_back(inner, self.step)
                    norm, h = self.dynamics.layer[number].norm, self.before(number)[layer]
                    pulled = norm.pull_back(h, written, -1, weight)
                    before = self.cotangent_before(number)[layer]
                    torch.add(after, pulled, alpha=self.gains[number], out=before)
        if update:
            self._learn_embedding(cotangent)
        self.step += 1

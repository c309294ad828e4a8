"""The implicit engine: networks exactly in law, without their block weights.

A Gaussian matrix ``W`` (D x m) is only ever seen through products ``W^T u`` and ``W v`` with
vectors that depend on earlier products. Given those, a product with a new direction is a known
combination of them plus fresh Gaussian noise orthogonal to all that is known (theory.md,
"Exact-in-law finite networks without their weights"). With orthonormal bases A of the left probes
u and C of the right probes v, and ``X = W^T A``, ``Y = W C``:

    W^T q = C Y^T q + (1 - C C^T) g        q a unit vector orthogonal to A, g ~ N(0, D s^2 I_m)
    W q   = A X^T q + (1 - A A^T) g        q a unit vector orthogonal to C, g ~ N(0, D s^2 I_D)

Trained weights are ``W - c sum_j u_j v_j^T`` with the same probes, ``c = eta / (alpha N)``, so that
training terms are coefficients on the bases.

In embedding space A and Y are held as they are. In unit space nothing is held but what the units
themselves have seen: the products ``t = (1/D) (trained W)^T u``, which are p for the in-vectors
and r for the out-vectors, and the probes v, which are functions of these (``Dg(p)^T r`` and
``g(p)``) and are computed again when they are needed. X and C are coefficients on these "raw"
vectors. One layer costs memory for ``2 K N`` vectors of unit space and ``4 K N`` of embedding
space, K states and N rows; a step costs a few products of such vectors with N others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits import randomness
from resnet_limits.config import Shape
from resnet_limits.dynamics import Dynamics
from resnet_limits.networks import cost
from resnet_limits.units import Unit

Array = NDArray[np.float64]

# A probe's part outside the span of the earlier ones counts as rounding below this share of the
# probe's size. What is left out changes products by that share.
_DEPENDENT = {torch.float64: 1e-7, torch.float32: 1e-5}
# Inner products alone tell a remainder well down to this share; smaller ones are formed explicitly.
_EXPLICIT = 1e-3
# Numbers of one temporary array: all seeds' raw vectors over a few units.
_CHUNK_ELEMENTS = 1 << 18
_NUMPY = {torch.float64: np.float64, torch.float32: np.float32}
# A layer's raw vectors are kept over one pass where they are at most so many numbers (128 MiB), and
# computed again for each of its products above.
_KEPT_ELEMENTS = 1 << 24
# Numbers that one stream of noise fills, so that several threads may draw.
_NOISE_BLOCK = 1 << 16
# Coordinates of embedding space that one thread works on at a time.
_LONG_BLOCK = 1 << 14

# A GPU works on blocks larger by this factor: few launches, and temporary arrays that stay small
# beside the memory that is planned.
_GPU_BLOCKS = 256

# Numbers below which handing out work takes longer than doing it.
_SHARED_FROM = 1 << 16

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Remainder:
    """Orthonormal directions of what a block of probes has outside a span, for each seed.

    Attributes
    ----------
    places : ndarray, shape (S, count)
        The probes, of N, that have brought the new directions; a seed with fewer directions than
        the others is filled up with probes that have brought none.
    mixing : ndarray, shape (S, N, N)
        Coordinates of the probes (columns) in the new directions, by the probe that brought them;
        zero rows for those that brought none.
    inverse : ndarray, shape (S, N, count)
        Coordinates of the new directions in the remainders; zero columns to fill up.
    smallest : ndarray, shape (S,)
        The smallest squared length that any probe has outside the span and the probes before it.
    """

    places: NDArray[np.int64]
    mixing: Array
    inverse: Array
    smallest: Array

    @property
    def count(self) -> int:
        """The largest number of new directions of a seed."""
        return self.places.shape[1]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Whether a seed has any new direction, shape (S,)."""
        return np.asarray(self.inverse.any(axis=(1, 2)))

    def compact(self, by_probe: Array) -> Array:
        """Choose the new directions' rows of an array ``(S, N, ...)`` that has one a probe."""
        if by_probe.shape[1] == 1:
            return by_probe[:, : self.count]
        return np.take_along_axis(by_probe, self.places[:, :, None], axis=1)


def _remainder(gram: Array, scale: Array, tolerance: float, room: int) -> _Remainder:
    """Find the directions of remainders with inner products `gram` (S, N, N).

    Gram and Schmidt's, probe by probe, so that directions depend on the numbers continuously: a
    decomposition into eigenvectors may turn signs for a rounding error, and with them the meaning
    of the noise. Directions of a squared length below ``tolerance^2 scale`` are none. A seed whose
    numbers have become infinite or NaN gets no direction; its coordinates in the old ones carry the
    NaN on.
    """
    seeds, rows, _ = gram.shape
    sound = np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(scale)
    rest = np.where(sound[:, None, None], gram, 0.0)
    bound = np.where(sound, tolerance**2 * scale, np.inf)
    mixing = np.zeros_like(gram)
    kept = np.zeros((seeds, rows), dtype=bool)
    lengths = np.zeros((seeds, rows))
    for row in range(rows):
        lengths[:, row] = length = rest[:, row, row]
        kept[:, row] = new = length > bound
        if room < rows:
            new &= kept[:, :row].sum(axis=1) < room
            kept[:, row] = new
        root = np.sqrt(np.where(new, length, np.inf))
        mixing[:, row, row:] = rest[:, row, row:] / root[:, None]
        if row + 1 < rows:
            rest = rest - mixing[:, row, :, None] * mixing[:, row, None, :]
    smallest = lengths.min(axis=1)
    if rows == 1:
        places = np.zeros((seeds, int(kept.any())), dtype=np.int64)
        inverse = kept[:, :, None] / np.where(kept[:, :, None], mixing, 1.0)
        return _Remainder(places, mixing, inverse[:, :, : places.shape[1]], smallest)
    # The triangle of the kept probes alone; ones in the place of the others make it invertible.
    both = kept[:, :, None] & kept[:, None, :]
    inverse = np.where(both, np.linalg.inv(np.where(both, mixing, np.eye(rows))), 0.0)
    places = np.argsort(~kept, axis=1, kind="stable")[:, : int(kept.sum(axis=1).max())]
    inverse = np.take_along_axis(inverse, places[:, None, :], axis=2)
    return _Remainder(places, mixing, inverse, smallest)


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.double().cpu().numpy()
    return array


class _Workers:
    """Threads that share the blocks of a long axis among them.

    torch itself would share out every single operation, which are too small for that. So it is held
    to one thread while these work, and the blocks are what they are whatever the number of threads.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        self.count = torch.get_num_threads() if self.on_cpu else 1
        self.pool = ThreadPoolExecutor(max_workers=self.count) if self.count > 1 else None

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold torch to one thread."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def run(
        self, work: Callable[[_Job], _Result], jobs: Sequence[_Job], numbers: int
    ) -> list[_Result]:
        """Do all jobs, which go through so many numbers; return their results in order."""
        if self.pool is None or len(jobs) == 1 or numbers < _SHARED_FROM:
            return [work(job) for job in jobs]
        return list(self.pool.map(work, jobs))

    def blocks(self, length: int, size: int) -> list[slice]:
        """Cut an axis into blocks of a size; a GPU's are larger."""
        size = size if self.on_cpu else size * _GPU_BLOCKS
        return [slice(start, min(length, start + size)) for start in range(0, length, size)]

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """Inner products over the last axis: ``(S, n, D)`` and ``(S, m, D)`` give ``(S, n, m)``."""
        places = self.blocks(one.shape[-1], _LONG_BLOCK)
        numbers = one.numel() + other.numel()
        parts = self.run(lambda at: torch.bmm(one[..., at], other[..., at].mT), places, numbers)
        return reduce(torch.add, parts)

    def add_(self, target: Tensor, coefficients: Tensor, vectors: Tensor) -> None:
        """``target += coefficients @ vectors``, with ``(S, n, m)`` and ``(S, m, D)``."""

        def add(at: slice) -> None:
            target[..., at].baddbmm_(coefficients, vectors[..., at])

        numbers = target.numel() + vectors.numel()
        self.run(add, self.blocks(target.shape[-1], _LONG_BLOCK), numbers)


class _Noise:
    """Fresh normal vectors for one kind of product, a stream for each seed and block of entries."""

    def __init__(
        self, root_seed: int, name: Sequence[int | str], seeds: Sequence[int], workers: _Workers
    ) -> None:
        self.root_seed, self.name, self.seeds = root_seed, tuple(name), tuple(seeds)
        self.workers = workers
        self.streams: dict[tuple[int, int], Generator] = {}

    def fill(self, target: Tensor, found: NDArray[np.bool_], std: float) -> None:
        """Draw ``target[s]`` (S, N, n) for the seeds that need it; the others' are zero."""
        on_cpu = target.device.type == "cpu"
        drawn = target.numpy() if on_cpu else np.empty(target.shape, dtype=_NUMPY[target.dtype])
        jobs = [
            (seed, block, drawn[seed, :, start : start + _NOISE_BLOCK])
            for seed in map(int, np.flatnonzero(found))
            for block, start in enumerate(range(0, drawn.shape[2], _NOISE_BLOCK))
        ]
        # The generators release the interpreter's lock while they fill an array.
        self.workers.run(lambda job: self._draw(*job, std), jobs, drawn.size)
        drawn[~found] = 0
        if not on_cpu:
            target.copy_(torch.from_numpy(drawn))

    def _draw(self, seed: int, block: int, place: NDArray[Any], std: float) -> None:
        stream = self._stream(seed, block)
        if place.flags.c_contiguous:
            stream.standard_normal(out=place, dtype=place.dtype.type)
        else:
            place[...] = stream.standard_normal(place.shape, dtype=place.dtype.type)
        place *= std

    def _stream(self, seed: int, block: int) -> Generator:
        key = seed, block
        if key not in self.streams:
            self.streams[key] = randomness.generator(
                self.root_seed, "implicit", self.seeds[seed], *self.name, block
            )
        return self.streams[key]


class _Conditioned:
    """What is known of one Gaussian matrix ``W`` (D x m), for all seeds.

    Raw vectors of unit space are numbered t first, v after, each step by step and row by row.

    Attributes
    ----------
    left, image : Tensor, shape (S, capacity, D)
        A and ``Y = W C``, a vector a row.
    alpha : ndarray, shape (S, capacity, K N)
        Coordinates of the left probes, ``u = A alpha``.
    xi : ndarray, shape (S, 2 K N, capacity)
        X in raw vectors.
    tau : ndarray, shape (S, K N, capacity)
        C in the raw vectors v.
    cross : ndarray, shape (S, capacity, capacity)
        ``X^T C = A^T Y``.
    inner : ndarray, shape (S, K N, K N)
        Inner products of the v.
    """

    def __init__(
        self,
        seeds: int,
        embed_dim: int,
        unit_dim: int,
        steps: int,
        rows: int,
        std: float,
        rate: float,
        dtype: torch.dtype,
        noise_left: _Noise,
        noise_right: _Noise,
        device: torch.device | str,
    ) -> None:
        probes = steps * rows
        self.noise_left, self.noise_right = noise_left, noise_right
        self.workers = noise_left.workers
        left, right = cost.implicit_directions(embed_dim, unit_dim, probes)
        self.rows, self.probes, self.rate = rows, probes, rate
        self.embed_dim, self.std = embed_dim, std
        self.tolerance = _DEPENDENT[dtype]
        self.left = torch.empty((seeds, left, embed_dim), dtype=dtype, device=device)
        self.image = torch.empty((seeds, right, embed_dim), dtype=dtype, device=device)
        self.alpha = np.zeros((seeds, left, probes))
        self.xi = np.zeros((seeds, 2 * probes, left))
        self.tau = np.zeros((seeds, probes, right))
        self.cross = np.zeros((seeds, left, right))
        self.inner = np.zeros((seeds, probes, probes))
        # Directions known, and probes asked, on either side.
        self.lefts = self.rights = self.left_probes = self.right_probes = 0

    def _put(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.left)

    def ask_left(self, u: Tensor) -> _Remainder:
        """Take in a block of left probes, shape (S, N, D); return what is new in them."""
        i, at = self.lefts, self.left_probes
        basis, dot, add_ = self.left[:, :i], self.workers.dot, self.workers.add_
        rest = u.clone()
        overlap = dot(u, basis)
        add_(rest, -overlap, basis)
        # In float64: a sum's rounding must not look like a direction.
        exact = rest.double()
        gram, old = _numpy(dot(exact, exact)), _numpy(overlap).transpose(0, 2, 1)
        size = gram.diagonal(axis1=1, axis2=2) + (old**2).sum(axis=1)
        new = _remainder(gram, size.max(axis=1), self.tolerance, self.left.shape[1] - i)
        self.alpha[:, :i, at : at + self.rows] = old
        if new.count:
            stop = i + new.count
            fresh = self.left[:, i:stop].zero_()
            add_(fresh, self._put(new.inverse.transpose(0, 2, 1)), rest)
            # The second pass of Gram and Schmidt, on vectors of length one.
            again = dot(fresh, basis)
            add_(fresh, -again, basis)
            mixing = new.compact(new.mixing)
            correction = _numpy(again).transpose(0, 2, 1) @ mixing
            self.alpha[:, :i, at : at + self.rows] += correction
            self.alpha[:, i:stop, at : at + self.rows] = mixing
            self.cross[:, i:stop, : self.rights] = _numpy(dot(fresh, self.image[:, : self.rights]))
        return new

    def product_left(self, new: _Remainder, projected: Array | None) -> tuple[Array, Array]:
        """Give the trained product ``t`` in raw vectors and noise, and count the probes as asked.

        Parameters
        ----------
        new : _Remainder
            What :meth:`ask_left` returned.
        projected : ndarray, shape (S, v asked so far, N), or None
            Inner products of the raw v with the noise g, of which there is a row for each probe;
            None without new directions.

        Returns
        -------
        coefficients : ndarray, shape (S, 2 K N, N)
            On the raw vectors.
        mixing : ndarray, shape (S, N, N), or (S, 0, N) without new directions
            On the noise.
        """
        i, j, at, rows = self.lefts, self.rights, self.left_probes, self.rows
        v_rows = slice(self.probes, self.probes + at)
        old = self.xi[:, :, :i] @ self.alpha[:, :i, at : at + rows]
        # The training terms: updates of all earlier steps.
        both = self.alpha[:, : i + new.count]
        trained = self.rate * (both[:, :, :at].transpose(0, 2, 1) @ both[:, :, at : at + rows])
        coefficients = old.copy()
        coefficients[:, v_rows] -= trained
        if new.count:
            assert projected is not None
            asked = self.right_probes
            tau = self.tau[:, :asked, :j]
            known = self.cross[:, i : i + new.count, :j].transpose(0, 2, 1)
            drawn = new.compact(projected.transpose(0, 2, 1)).transpose(0, 2, 1)
            known = (known - tau.transpose(0, 2, 1) @ drawn) @ new.compact(new.mixing)
            coefficients[:, self.probes : self.probes + asked] += tau @ known
            # The new columns of X, from the product that is about to be raw vectors itself.
            fresh = -old
            fresh[:, v_rows] += trained
            fresh[:, np.arange(at, at + rows), np.arange(rows)] += self.embed_dim
            self.xi[:, :, i : i + new.count] = fresh @ new.inverse
        self.lefts += new.count
        self.left_probes += rows
        mixing = new.mixing if new.count else new.mixing[:, :0]
        return coefficients / self.embed_dim, mixing / self.embed_dim

    def ask_right(self, inner: Array) -> tuple[_Remainder, Array, Array, bool]:
        """Take in a block of right probes through their inner products with all raw vectors.

        Parameters
        ----------
        inner : ndarray, shape (S, 2 K N, N)
            With raw vectors; zero where there is none yet.

        Returns
        -------
        new : _Remainder
        gamma : ndarray, shape (S, known directions, N)
            Coordinates in the known directions.
        toward : ndarray, shape (S, left directions, N)
            ``X^T`` times the remainder.
        certain : bool
            False if the remainder is so small that it had better be formed explicitly.
        """
        i, j, at, rows = self.lefts, self.rights, self.right_probes, self.rows
        probes = self.probes
        own = inner[:, probes + at : probes + at + rows]
        gamma = self.tau[:, :at, :j].transpose(0, 2, 1) @ inner[:, probes : probes + at]
        gram = own - gamma.transpose(0, 2, 1) @ gamma
        scale = own.diagonal(axis1=1, axis2=2).max(axis=1)
        room = self.image.shape[1] - j
        toward = self.xi[:, :, :i].transpose(0, 2, 1) @ inner - self.cross[:, :i, :j] @ gamma
        new = _remainder(gram, scale, self.tolerance, room)
        certain = not j or bool((new.smallest >= _EXPLICIT**2 * scale).all())
        self.inner[:, : at + rows, at : at + rows] = inner[:, probes : probes + at + rows]
        return new, gamma, toward, certain

    def refine_right(
        self, gamma: Array, inner: Array, gram: Array
    ) -> tuple[_Remainder, Array, Array]:
        """Take in a remainder that was formed explicitly: the second pass of Gram and Schmidt.

        Parameters
        ----------
        gamma : ndarray
            From :meth:`ask_right`.
        inner : ndarray, shape (S, 2 K N, N)
            Inner products of the remainder with the raw vectors.
        gram : ndarray, shape (S, N, N)
            Inner products of the remainder with itself.
        """
        i, j, at, rows = self.lefts, self.rights, self.right_probes, self.rows
        probes = self.probes
        more = self.tau[:, :at, :j].transpose(0, 2, 1) @ inner[:, probes : probes + at]
        rest = gram - more.transpose(0, 2, 1) @ more
        own = self.inner[:, at : at + rows, at : at + rows]
        scale = own.diagonal(axis1=1, axis2=2).max(axis=1)
        new = _remainder(rest, scale, self.tolerance, self.image.shape[1] - j)
        toward = self.xi[:, :, :i].transpose(0, 2, 1) @ inner - self.cross[:, :i, :j] @ more
        return new, gamma + more, toward

    def product_right(self, new: _Remainder, gamma: Array, toward: Array) -> Tensor:
        """Give the trained product ``W v``, shape (S, N, D), and count the probes as asked."""
        i, j, at, rows = self.lefts, self.rights, self.right_probes, self.rows
        stop = j + new.count
        basis = self.left[:, :i]
        if new.count:
            onto = toward @ new.inverse
            fresh = self.image[:, j:stop]
            drawn = fresh if rows == 1 else fresh.new_empty((len(fresh), rows, self.embed_dim))
            self.noise_right.fill(drawn, new.found, self.std)
            if rows > 1:
                places = torch.from_numpy(new.places).to(fresh.device)[:, :, None]
                torch.gather(drawn, 1, places.expand_as(fresh), out=fresh)
            pull = onto.transpose(0, 2, 1) - _numpy(self.workers.dot(fresh, basis))
            self.workers.add_(fresh, self._put(pull), basis)
            self.cross[:, :i, j:stop] = onto
            columns = self.tau[:, :, j:stop]
            columns[:, :at] = -self.tau[:, :at, :j] @ gamma @ new.inverse
            columns[:, at : at + rows] = new.inverse
        coordinates = np.concatenate([gamma, new.compact(new.mixing)], axis=1).transpose(0, 2, 1)
        product = self.left.new_zeros((len(coordinates), rows, self.embed_dim))
        self.workers.add_(product, self._put(coordinates), self.image[:, :stop])
        # The training terms: updates of all earlier steps.
        trained = self.alpha[:, :i, :at] @ self.inner[:, :at, at : at + rows]
        self.workers.add_(product, self._put(-self.rate * trained.transpose(0, 2, 1)), basis)
        self.rights = stop
        self.right_probes += rows
        return product


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


class _Layer:
    """One layer of all seeds: two conditioned matrices and what its units have seen."""

    def __init__(self, network: ImplicitNetwork, noise: Callable[[str], _Noise]) -> None:
        dynamics, shape, unit = network.dynamics, network.shape, network.unit
        self.unit, self.workers = unit, network.workers
        self.rows = rows = len(dynamics.inputs)
        seeds, steps = network.seeds, dynamics.steps
        self.probes = probes = steps * rows
        like = network.hidden
        a, c = unit.in_vectors, unit.out_vectors
        root = float(np.sqrt(shape.embed_dim))
        scale = 1.0 / (dynamics.residual_scale * rows)

        def matrix(vectors: int, std: float, rate: float, left: str, right: str) -> _Conditioned:
            return _Conditioned(
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

        self.incoming = matrix(a, dynamics.input_std, dynamics.rate_in, "read", "write_back")
        self.outgoing = matrix(c, dynamics.output_std, dynamics.rate_out, "read_back", "write")
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
        matrix, at, stop = self.incoming, step * self.rows, (step + 1) * self.rows
        new = matrix.ask_left(h)
        noise = self.p[:, at : stop if new.count else at]
        projected = None
        if new.count:
            matrix.noise_left.fill(noise, new.found, matrix.std)

            def project(chunk: _Chunk, p_at: slice, _: slice) -> Sequence[Tensor]:
                return (torch.bmm(chunk.dp, noise[:, :, p_at].double().mT),)

            (projected,) = self._sweep(project, step, step)
        coefficients, mixing = (self._tensor(x) for x in matrix.product_left(new, projected))
        on_p, on_dp = coefficients[:, :at], coefficients[:, self.probes : self.probes + at]

        def combine(chunk: _Chunk, p_at: slice, _: slice) -> Sequence[Tensor]:
            p = _combined((on_p, chunk.p), (on_dp, chunk.dp), (mixing, noise[:, :, p_at].double()))
            self.p[:, at:stop, p_at] = p
            # What is stored is what all that follows must see.
            g = chunk.append_p(self.p[:, :stop, p_at])
            return torch.bmm(chunk.r, g.mT), torch.bmm(chunk.g, g.mT)

        return self._laid_out(*self._sweep(combine, step, step))

    def write(self, inner: Array, step: int) -> Tensor:
        """``O g``, shape (S, N, D), after :meth:`read`."""
        return self._right(self.outgoing, inner, step, lambda chunk: (chunk.r, chunk.g), step)

    def read_back(self, b: Tensor, step: int) -> Array:
        """``r = O^T b / D``; return the inner products of ``Dg(p)^T r`` for :meth:`write_back`."""
        matrix, at, stop = self.outgoing, step * self.rows, (step + 1) * self.rows
        new = matrix.ask_left(b)
        noise = self.r[:, at : stop if new.count else at]
        projected = None
        if new.count:
            matrix.noise_left.fill(noise, new.found, matrix.std)

            def project(chunk: _Chunk, _: slice, r_at: slice) -> Sequence[Tensor]:
                return (torch.bmm(chunk.g, noise[:, :, r_at].double().mT),)

            (projected,) = self._sweep(project, step + 1, step)
        coefficients, mixing = (self._tensor(x) for x in matrix.product_left(new, projected))
        on_r = coefficients[:, :at]
        on_g = coefficients[:, self.probes : self.probes + stop]

        def combine(chunk: _Chunk, _: slice, r_at: slice) -> Sequence[Tensor]:
            r = _combined((on_r, chunk.r), (on_g, chunk.g), (mixing, noise[:, :, r_at].double()))
            self.r[:, at:stop, r_at] = r
            dp = chunk.append_r(self.r[:, :stop, r_at])
            return torch.bmm(chunk.p, dp.mT), torch.bmm(chunk.dp, dp.mT)

        return self._laid_out(*self._sweep(combine, step + 1, step))

    def write_back(self, inner: Array, step: int) -> Tensor:
        """``I Dg(p)^T r``, shape (S, N, D), after :meth:`read_back`."""
        return self._right(self.incoming, inner, step, lambda chunk: (chunk.p, chunk.dp), step + 1)

    def _right(
        self,
        matrix: _Conditioned,
        inner: Array,
        step: int,
        raw: Callable[[_Chunk], tuple[Tensor, Tensor]],
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


class ImplicitNetwork:
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

    Attributes
    ----------
    hidden, backward : Tensor, shape (L + 1, S, rows, D)
        States of the last passes.
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
        self.dynamics, self.shape, self.unit = dynamics, shape, dynamics.unit
        rows, r_in = dynamics.inputs.shape
        self.seeds = len(seeds)

        def put(array: Array) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

        self.embedding = put(embedding[:, :, :r_in])
        self.unembedding = put(embedding[:, :, r_in:])
        self.inputs, self.targets = put(dynamics.inputs), put(dynamics.targets)
        states = (shape.depth + 1, self.seeds, rows, shape.embed_dim)
        self.hidden, self.backward = (
            torch.empty(states, dtype=dtype, device=device) for _ in range(2)
        )
        self.workers = _Workers(self.hidden.device)

        def noise(layer: int, product: str) -> _Noise:
            return _Noise(root_seed, (*shape, layer, product), seeds, self.workers)

        self.layers = [_Layer(self, partial(noise, number)) for number in range(shape.depth)]
        self.step = 0

    # Numbers that grow beyond all bounds are divergence, which whoever trains looks out for.
    @np.errstate(over="ignore", invalid="ignore")
    def forward_pass(self) -> Tensor:
        """Compute all hidden states; return the outputs, shape (S, rows, d_out)."""
        depth, width, embed_dim = self.shape
        gain = self.dynamics.residual_scale / (depth * width)
        self.hidden[0] = self.inputs @ self.embedding.mT
        with self.workers.engaged():
            for number, layer in enumerate(self.layers):
                inner = layer.read(self.hidden[number], self.step)
                written = layer.write(inner, self.step)
                torch.add(self.hidden[number], written, alpha=gain, out=self.hidden[number + 1])
        return (self.hidden[depth] @ self.unembedding) / embed_dim

    @np.errstate(over="ignore", invalid="ignore")
    def backward_pass(self, gradient: Tensor, *, update: bool) -> None:
        """Compute all backward states; the training terms of the step count from now on.

        Parameters
        ----------
        gradient : Tensor, shape (S, rows, d_out)
            Gradient of each row's loss with respect to its output.
        update : bool
            Whether to update the weights. Without, the pass must be the network's last.
        """
        dynamics = self.dynamics
        depth, width, _ = self.shape
        gain = dynamics.residual_scale / (depth * width)
        torch.bmm(gradient, self.unembedding.mT, out=self.backward[depth])
        with self.workers.engaged():
            for number in range(depth - 1, -1, -1):
                layer = self.layers[number]
                inner = layer.read_back(self.backward[number + 1], self.step)
                written = layer.write_back(inner, self.step)
                torch.add(self.backward[number + 1], written, alpha=gain, out=self.backward[number])
        if update and dynamics.rate_embedding:
            scale = -dynamics.rate_embedding / (dynamics.residual_scale * gradient.shape[1])
            self.embedding += scale * (self.backward[0].mT @ self.inputs)
            self.unembedding += scale * (self.hidden[depth].mT @ gradient)
        self.step += 1

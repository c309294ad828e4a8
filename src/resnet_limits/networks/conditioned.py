"""A Gaussian matrix that is drawn only as far as products with it have seen it.

A block weight matrix ``W`` (D x m) is only ever seen through products ``W^T u`` and ``W v`` with
vectors that depend on earlier products. Given those, a product with a new direction is a known
combination of them plus fresh Gaussian noise orthogonal to all that is known
(docs/concepts/implicit.md). With orthonormal bases A of the left probes
u and C of the right probes v, and ``X = W^T A``, ``Y = W C``:

    W^T q = C Y^T q + (1 - C C^T) g        q a unit vector orthogonal to A, g ~ N(0, D s^2 I_m)
    W q   = A X^T q + (1 - A A^T) g        q a unit vector orthogonal to C, g ~ N(0, D s^2 I_D)

Trained weights of state k are ``rho_k W - sum_q c_kq u_q v_q^T`` with the probes q of earlier
states (:class:`Course`), so that training terms are coefficients on the bases.

In embedding space A and Y are held as they are. In unit space nothing is held but what the units
themselves have seen: the products ``t = (1/D) (trained W)^T u``, which are p for the in-vectors
and r for the out-vectors, and the probes v, which are functions of these (``Dg(p)^T r`` and
``g(p)``) and are computed again when they are needed. X and C are coefficients on these "raw"
vectors. One layer costs memory for ``2 K N`` vectors of unit space and ``4 K N`` of embedding
space, K states and N rows; a step costs a few products of such vectors with N others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits import randomness
from resnet_limits.dynamics import Dynamics
from resnet_limits.networks import cost
from resnet_limits.networks.workers import Workers
from resnet_limits.rules import table

Array = NDArray[np.float64]

# A probe's part outside the span of the earlier ones counts as rounding below this share of the
# probe's size. What is left out changes products by that share.
_DEPENDENT = {torch.float64: 1e-7, torch.float32: 1e-5}
# Inner products alone tell a remainder well down to this share; smaller ones are formed explicitly.
_EXPLICIT = 1e-3
# A remainder that is a difference of terms larger than the probe by more than this has their
# rounding in it, and counts as rounding the sooner: its square is compared with their size.
_AMPLE = 10.0
# Numbers that one stream of noise fills, so that several threads may draw.
_NOISE_BLOCK = 1 << 16


@dataclass(frozen=True)
class Remainder:
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
        The smallest squared length that any probe but those of zeros has outside the span and the
        probes before it, as a share of its size.
    apart : ndarray, shape (S,), or None
        The smallest such length of a probe that has brought a direction, as a share of the probe's
        part outside the span: how well the probes of the block are told apart. None if it is one.
    """

    places: NDArray[np.int64]
    mixing: Array
    inverse: Array
    smallest: Array
    apart: Array | None

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

    def refined(
        self, gram: Array, scale: Array, tolerance: float | Array
    ) -> tuple[Remainder, Array]:
        """Find the directions again from vectors that have been formed.

        Parameters
        ----------
        gram : ndarray, shape (S, count, count)
            Inner products of the vectors that `inverse` gives.
        scale, tolerance : ndarray, shape (S, N)
            As in :func:`remainder`, of the probes.

        Returns
        -------
        Remainder
        ndarray, shape (S, count, new count)
            Coordinates of the new directions (columns) in those vectors.
        """
        lengths = np.take_along_axis(self.mixing.diagonal(axis1=1, axis2=2), self.places, axis=1)
        sizes = np.take_along_axis(scale, self.places, axis=1)
        shares = np.where(lengths > 0, sizes / np.where(lengths > 0, lengths, 1.0) ** 2, 1.0)
        tolerance = np.broadcast_to(tolerance, scale.shape)
        tolerance = np.take_along_axis(tolerance, self.places, axis=1)
        again = remainder(gram, shares, tolerance, self.count)
        mixing = np.zeros_like(self.mixing)
        turned = again.mixing @ self.compact(self.mixing)
        np.put_along_axis(mixing, self.places[:, :, None], turned, axis=1)
        places = np.take_along_axis(self.places, again.places, axis=1)
        inverse = self.inverse @ again.inverse
        return Remainder(places, mixing, inverse, self.smallest, again.apart), again.inverse


def remainder(gram: Array, scale: Array, tolerance: float | Array, room: int) -> Remainder:
    """Find the directions of remainders with inner products `gram` (S, N, N).

    Gram and Schmidt's, probe by probe, so that directions depend on the numbers continuously: a
    decomposition into eigenvectors may turn signs for a rounding error, and with them the meaning
    of the noise. Directions of a squared length below ``tolerance^2 scale`` are none, with `scale`
    (S, N) the probes' squared sizes; a probe of zeros, such as that of a row outside the batch,
    has none. A seed whose numbers have become infinite or NaN gets no direction; its coordinates in
    the old ones carry the NaN on.
    """
    seeds, rows, _ = gram.shape
    sound = np.isfinite(gram.sum(axis=(1, 2)) + scale.sum(axis=1))
    rest = np.where(sound[:, None, None], gram, 0.0)
    bound = np.where(sound[:, None], tolerance**2 * scale, np.inf)
    mixing = np.zeros_like(gram)
    kept = np.zeros((seeds, rows), dtype=bool)
    lengths = np.zeros((seeds, rows))
    for row in range(rows):
        lengths[:, row] = length = rest[:, row, row]
        kept[:, row] = new = length > bound[:, row]
        if room < rows:
            new &= kept[:, :row].sum(axis=1) < room
            kept[:, row] = new
        root = np.sqrt(np.where(new, length, np.inf))
        mixing[:, row, row:] = rest[:, row, row:] / root[:, None]
        if row + 1 < rows:
            rest = rest - mixing[:, row, :, None] * mixing[:, row, None, :]
    shares = np.divide(lengths, scale, out=np.full_like(scale, np.inf), where=scale > 0)
    smallest = shares.min(axis=1)
    if rows == 1:
        places = np.zeros((seeds, int(kept.any())), dtype=np.int64)
        inverse = kept[:, :, None] / np.where(kept[:, :, None], mixing, 1.0)
        return Remainder(places, mixing, inverse[:, :, : places.shape[1]], smallest, None)
    apart = np.where(kept, lengths / np.where(kept, gram.diagonal(axis1=1, axis2=2), 1.0), 1.0)
    # The triangle of the kept probes alone; ones in the place of the others make it invertible.
    both = kept[:, :, None] & kept[:, None, :]
    inverse = np.where(both, np.linalg.inv(np.where(both, mixing, np.eye(rows))), 0.0)
    places = np.argsort(~kept, axis=1, kind="stable")[:, : int(kept.sum(axis=1).max())]
    inverse = np.take_along_axis(inverse, places[:, None, :], axis=2)
    return Remainder(places, mixing, inverse, smallest, apart.min(axis=1))


def _narrow(new: Remainder) -> bool:
    """Whether inner products do not tell the probes of a block well apart."""
    return new.apart is not None and bool((new.apart < _EXPLICIT**2).any())


@dataclass(frozen=True)
class Asked:
    """What is known of a block of right probes.

    Attributes
    ----------
    new : Remainder
        What is new in the N probes v.
    gamma : ndarray, shape (S, known directions, N)
        Their coordinates in the known directions.
    onto : ndarray, shape (S, left directions, count)
        ``X^T`` times the new directions.
    vectors : tuple of ndarray, shapes (S, probes before, n) and (S, N, n), or None
        Vectors that had better be formed: coefficients on the v of earlier blocks and of this one.
    formed : bool
        Whether the remainders have been formed, so that `vectors` are the new directions.
    """

    new: Remainder
    gamma: Array
    onto: Array
    vectors: tuple[Array, Array] | None
    formed: bool = False


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.double().cpu().numpy()
    return array


class Noise:
    """Fresh normal vectors for one kind of product, a stream for each seed and block of entries."""

    def __init__(
        self, root_seed: int, name: Sequence[int | str], seeds: Sequence[int], workers: Workers
    ) -> None:
        self.root_seed, self.name, self.seeds = root_seed, tuple(name), tuple(seeds)
        self.workers = workers
        self.streams: dict[tuple[int, int], Generator] = {}

    def fill(self, target: Tensor, found: NDArray[np.bool_], std: float) -> None:
        """Draw ``target[s]`` for the seeds that need it; the others' are zero.

        Parameters
        ----------
        target : Tensor, shape (S, N, n)
            Filled in place.
        found : ndarray of bool, shape (S,)
            Which seeds need it.
        std : float
            Standard deviation of the entries.
        """
        on_cpu = target.device.type == "cpu"
        drawn = (target if on_cpu else torch.empty(target.shape, dtype=target.dtype)).numpy()
        jobs = [
            (seed, block, drawn[seed, :, start : start + _NOISE_BLOCK])
            for seed in map(int, np.flatnonzero(found))
            for block, start in enumerate(range(0, drawn.shape[2], _NOISE_BLOCK))
        ]
        # The generators release the interpreter's lock while they fill an array.
        self.workers.run(lambda job: self._draw(*job, std), jobs, drawn.size, on_host=True)
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


@dataclass(frozen=True)
class Course:
    """The weights of every state in the initial ones and in the probes of earlier states.

    ``W_k = initial[k] W_0 - sum_q rate[k] shares[k, q] u_q v_q^T`` over the probes q, step by step
    and row by row.

    Attributes
    ----------
    initial : ndarray, shape (K,)
        rho_k.
    rate : ndarray, shape (K,)
        The largest size of a coefficient.
    shares : ndarray, shape (K, K N)
        The coefficients over the largest size; all are 1 in gradient descent.
    """

    initial: Array
    rate: Array
    shares: Array

    @classmethod
    def of(cls, dynamics: Dynamics, rate: float, scale: float) -> Course:
        """Course of a block's weights.

        Parameters
        ----------
        dynamics : Dynamics
            The training problem.
        rate : float
            The weights' learning rate.
        scale : float
            alpha, which divides their gradients.
        """
        steps, rows = dynamics.steps, len(dynamics.inputs)
        initial, gradients = table(dynamics.rule, rate, steps)
        means = np.array([1.0 / (scale * dynamics.batch_size(step)) for step in range(steps - 1)])
        terms = np.zeros((steps, steps * rows))
        terms[:, : (steps - 1) * rows] = np.repeat(means * gradients, rows, axis=1)
        largest = np.abs(terms).max(axis=1)
        shares = terms / np.where(largest > 0, largest, 1.0)[:, None]
        return cls(initial, largest, shares)


class Conditioned:
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
        course: Course,
        dtype: torch.dtype,
        noise_left: Noise,
        noise_right: Noise,
        device: torch.device | str,
    ) -> None:
        probes = steps * rows
        self.noise_left, self.noise_right = noise_left, noise_right
        self.workers = noise_left.workers
        left, right = cost.implicit_directions(embed_dim, unit_dim, probes)
        self.rows, self.probes, self.course = rows, probes, course
        self.embed_dim, self.unit_dim, self.std = embed_dim, unit_dim, std
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

    def ask_left(self, u: Tensor) -> Remainder:
        """Take in a block of left probes and return what is new in them.

        Parameters
        ----------
        u : Tensor, shape (S, N, D)

        Returns
        -------
        Remainder
            Of ``count`` new directions at most.
        """
        i, at = self.lefts, self.left_probes
        basis, dot, add_ = self.left[:, :i], self.workers.dot, self.workers.add_
        rest = u.clone()
        overlap = dot(u, basis)
        add_(rest, -overlap, basis)
        # In float64: a sum's rounding must not look like a direction.
        exact = rest.double()
        gram, old = _numpy(dot(exact, exact)), _numpy(overlap).transpose(0, 2, 1)
        size = gram.diagonal(axis1=1, axis2=2) + (old**2).sum(axis=1)
        room = self.left.shape[1] - i
        tolerance: float | Array = self.tolerance
        new = remainder(gram, size, tolerance, room)
        if i and (new.smallest < _EXPLICIT**2).any():
            tolerance = self._tolerance_left(old, size)
            if (tolerance > self.tolerance).any():
                new = remainder(gram, size, tolerance, room)
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
            if _narrow(new):
                exact = fresh.double()
                new, turn = new.refined(_numpy(dot(exact, exact)), size, tolerance)
                mixing, stop = new.compact(new.mixing), i + new.count
                turned = torch.zeros_like(fresh[:, : new.count])
                add_(turned, self._put(turn.transpose(0, 2, 1)), fresh)
                fresh = self.left[:, i:stop].copy_(turned)
            self.alpha[:, i:stop, at : at + self.rows] = mixing
            self.cross[:, i:stop, : self.rights] = _numpy(dot(fresh, self.image[:, : self.rights]))
        return new

    def _raised(self, terms: Array, size: Array) -> Array:
        """Tolerance of probes, from the largest of the terms that make up what is known of each.

        Parameters
        ----------
        terms : ndarray, shape (S, n, N)
            Sizes of the terms.
        size : ndarray, shape (S, N)
            Size of the sum.
        """
        largest = terms.max(axis=1, initial=0.0) / np.where(size > 0, size, np.inf)
        raised: Array = self.tolerance * np.sqrt(np.maximum(1.0, largest / _AMPLE))
        return raised

    def _tolerance_left(self, old: Array, size: Array) -> Array:
        """Tolerance of left probes of coordinates `old`, (S, directions, N), and squared sizes."""
        i, at, asked = self.lefts, self.left_probes, self.right_probes
        raw = np.abs(self.xi[:, :, :i] @ old)
        # Sizes of W^T u over that of a row of W: those of t D, about, and of v.
        lengths = np.sqrt((self.alpha[:, :i, :at] ** 2).sum(axis=1))
        on_t = raw[:, :at] * lengths[:, :, None] / self.embed_dim
        # A matrix of zeros, which draws nothing, has no row to compare with.
        row = self.std * np.sqrt(self.unit_dim) or np.inf
        own = np.sqrt(self.inner.diagonal(axis1=1, axis2=2)[:, :asked]) / row
        on_v = raw[:, self.probes : self.probes + asked] * own[:, :, None]
        return self._raised(np.concatenate([on_t, on_v], axis=1), np.sqrt(size))

    def _tolerance_right(self, gamma: Array, size: Array) -> Array:
        """Tolerance of right probes of coordinates gamma, (S, directions, N), and squared sizes."""
        j, at = self.rights, self.right_probes
        lengths = np.sqrt(self.inner.diagonal(axis1=1, axis2=2)[:, :at, None])
        terms = np.abs(self.tau[:, :at, :j] @ gamma) * lengths
        return self._raised(terms, np.sqrt(size))

    def product_left(self, new: Remainder, projected: Array | None) -> tuple[Array, Array]:
        """Give the trained product ``t`` in raw vectors and noise, and count the probes as asked.

        Parameters
        ----------
        new : Remainder
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
        step, course = at // rows, self.course
        # All in units of what is left of the initial weights.
        initial = course.initial[step]
        whole = self.embed_dim / initial
        # The training terms: updates of all earlier steps.
        both = self.alpha[:, : i + new.count]
        trained = both[:, :, :at].transpose(0, 2, 1) @ both[:, :, at : at + rows]
        trained *= course.rate[step] / initial * course.shares[step, :at, None]
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
            fresh[:, np.arange(at, at + rows), np.arange(rows)] += whole
            self.xi[:, :, i : i + new.count] = fresh @ new.inverse
        self.lefts += new.count
        self.left_probes += rows
        mixing = new.mixing if new.count else new.mixing[:, :0]
        return coefficients / whole, mixing / whole

    def ask_right(self, inner: Array) -> Asked:
        """Take in a block of right probes through their inner products with all raw vectors.

        Parameters
        ----------
        inner : ndarray, shape (S, 2 K N, N)
            With raw vectors; zero where there is none yet.

        Returns
        -------
        Asked
            With `vectors` to form if inner products alone do not tell the remainders well.
        """
        i, j, at, rows = self.lefts, self.rights, self.right_probes, self.rows
        probes = self.probes
        own = inner[:, probes + at : probes + at + rows]
        gamma = self.tau[:, :at, :j].transpose(0, 2, 1) @ inner[:, probes : probes + at]
        gram = own - gamma.transpose(0, 2, 1) @ gamma
        scale = own.diagonal(axis1=1, axis2=2)
        toward = self.xi[:, :, :i].transpose(0, 2, 1) @ inner - self.cross[:, :i, :j] @ gamma
        new = remainder(gram, scale, self.tolerance, self.image.shape[1] - j)
        self.inner[:, : at + rows, at : at + rows] = inner[:, probes : probes + at + rows]
        vectors = None
        if j and (new.smallest < _EXPLICIT**2).any():
            vectors = -self.tau[:, :at, :j] @ gamma, np.tile(np.eye(rows), (len(own), 1, 1))
        elif not j and _narrow(new):
            vectors = np.zeros((len(own), at, new.count)), new.inverse
        return Asked(new, gamma, toward @ new.inverse, vectors, formed=not j)

    def refine_right(self, asked: Asked, inner: Array, gram: Array) -> Asked:
        """Take in remainders that were formed explicitly: the second pass of Gram and Schmidt.

        Parameters
        ----------
        asked : Asked
            With the `vectors` that were formed.
        inner : ndarray, shape (S, 2 K N, n)
            Inner products of these with the raw vectors.
        gram : ndarray, shape (S, n, n)
            Inner products of these with each other.

        Returns
        -------
        Asked
            With the directions to form as `vectors`, if the remainders are close to each other.
        """
        i, j, at, rows = self.lefts, self.rights, self.right_probes, self.rows
        probes = self.probes
        tau = self.tau[:, :at, :j]
        more = tau.transpose(0, 2, 1) @ inner[:, probes : probes + at]
        rest = gram - more.transpose(0, 2, 1) @ more
        toward = self.xi[:, :, :i].transpose(0, 2, 1) @ inner - self.cross[:, :i, :j] @ more
        own = self.inner[:, at : at + rows, at : at + rows]
        scale = own.diagonal(axis1=1, axis2=2)
        tolerance = self._tolerance_right(asked.gamma, scale)
        if asked.formed:
            gamma = asked.gamma + more @ asked.new.compact(asked.new.mixing)
            new, turn = asked.new.refined(rest, scale, tolerance)
            return Asked(new, gamma, toward @ turn, None)
        new = remainder(rest, scale, tolerance, self.image.shape[1] - j)
        gamma = asked.gamma + more
        vectors = (-tau @ gamma @ new.inverse, new.inverse) if _narrow(new) else None
        return Asked(new, gamma, toward @ new.inverse, vectors, formed=True)

    def product_right(self, asked: Asked) -> Tensor:
        """Give the trained product ``W v`` of the N probes and count them as asked.

        Returns
        -------
        Tensor, shape (S, N, D)
        """
        new, gamma, onto = asked.new, asked.gamma, asked.onto
        i, j, at, rows = self.lefts, self.rights, self.right_probes, self.rows
        stop = j + new.count
        basis = self.left[:, :i]
        if new.count:
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
        step = at // rows
        initial, rate, shares = (x[step] for x in vars(self.course).values())
        product = self.left.new_zeros((len(coordinates), rows, self.embed_dim))
        self.workers.add_(product, self._put(initial * coordinates), self.image[:, :stop])
        # The training terms: updates of all earlier steps.
        trained = (shares[:at] * self.alpha[:, :i, :at]) @ self.inner[:, :at, at : at + rows]
        self.workers.add_(product, self._put(-rate * trained.transpose(0, 2, 1)), basis)
        self.rights = stop
        self.right_probes += rows
        return product

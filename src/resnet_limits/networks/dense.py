"""The dense engine: networks whose block weights are held in memory.

Explicit forward and backward passes over the layers (docs/concepts/scaling.md), all seeds of a
shape side by side. A pass reads each weight once. Gradient steps are taken in place, or are kept
as low-rank factors beside weights that nothing writes to. No autograd graph is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from resnet_limits import jit, randomness
from resnet_limits.dynamics import Dynamics
from resnet_limits.kinds import Shape
from resnet_limits.networks import cost
from resnet_limits.networks.base import NUMPY, Network, zeros
from resnet_limits.work import Work

# From this many weights of a layer on, all seeds together, threads share the work on them.
_SHARED_FROM = 1 << 17
# Rows of scratch arrays keep this distance, in bytes, from whole pages: stores and loads at the
# same place of two pages wait for each other.
_OFF_PAGE = 384
_PAGE = 4096


@dataclass(frozen=True)
class _Arrays:
    """What the products work on; all layers, and all seeds of one layer, lie side by side.

    Weights are ``(L, S, m, D)``, states ``(L, S, rows, D)`` and coefficients ``(L, S, rows, m)``,
    with m the number of units times their in- or out-vectors.

    Attributes
    ----------
    incoming, outgoing : Tensor
        I and O; what they lack of the gradient steps is in the factors.
    h, next_h, b, next_b : Tensor
        States before and after each layer.
    p, g, r, dp : Tensor
        Coefficients.
    past_h, past_dp, past_b, past_g : Tensor
        Factors: states and coefficients of the steps that are kept, ``kept x rows`` rows.
    """

    incoming: Any
    outgoing: Any
    h: Any
    next_h: Any
    b: Any
    next_b: Any
    p: Any
    g: Any
    r: Any
    dp: Any
    past_h: Any
    past_dp: Any
    past_b: Any
    past_g: Any


@dataclass(frozen=True)
class _Scales:
    """Constants of the products: 1 / D, alpha / (L M), and the two factors of gradient steps.

    numpy's numbers of the weights' type; what is beyond its range is infinite.
    """

    read: Any
    write: Any
    step_in: Any
    step_out: Any


class _Products(Protocol):
    """The four products of a layer with its weights.

    `used` is the number of rows of the factors that count. With `learn`, a product is followed by
    the gradient step of its weights.
    """

    def read(self, layer: int, used: int) -> None:
        """``p = I^T h / D``."""

    def write(self, layer: int, used: int) -> None:
        """``next_h = h + alpha / (L M) O g``."""

    def read_back(self, layer: int, used: int, learn: bool) -> None:
        """``r = O^T next_b / D``; then O learns from next_b and g."""

    def write_back(self, layer: int, used: int, learn: bool) -> None:
        """``b = next_b + alpha / (L M) I dp``; then I learns from h and dp."""

    def learn(self) -> None:
        """Take the gradient steps that have been left to the end of the backward pass."""


class _Batched:
    """Matrix products, all seeds in one batch; gradient steps in place, all layers in one batch.

    There are no factors. A GPU's recordings need all but :meth:`learn` to give the same when they
    are done twice.
    """

    def __init__(self, arrays: _Arrays, scales: _Scales) -> None:
        self.at = arrays
        self.scales = _Scales(**{name: value.item() for name, value in vars(scales).items()})

    def _project(self, weights: Tensor, states: Tensor, out: Tensor) -> None:
        scale = self.scales.read
        torch.baddbmm(out, states, weights.transpose(1, 2), beta=0, alpha=scale, out=out)

    def read(self, layer: int, used: int) -> None:
        at = self.at
        self._project(at.incoming[layer], at.h[layer], at.p[layer])

    def write(self, layer: int, used: int) -> None:
        at = self.at
        h, g, out = at.h[layer], at.g[layer], at.next_h[layer]
        torch.baddbmm(h, g, at.outgoing[layer], alpha=self.scales.write, out=out)

    def read_back(self, layer: int, used: int, learn: bool) -> None:
        at = self.at
        self._project(at.outgoing[layer], at.next_b[layer], at.r[layer])

    def write_back(self, layer: int, used: int, learn: bool) -> None:
        at = self.at
        b, dp, out = at.next_b[layer], at.dp[layer], at.b[layer]
        torch.baddbmm(b, dp, at.incoming[layer], alpha=self.scales.write, out=out)

    def learn(self) -> None:
        at, scales = self.at, self.scales
        _add_product(at.incoming, at.dp, at.h, scales.step_in)
        _add_product(at.outgoing, at.g, at.next_b, scales.step_out)


class _Compiled:
    """The kernels for the CPU, each reading the weights once."""

    def __init__(self, arrays: _Arrays, scales: _Scales) -> None:
        threads = torch.get_num_threads()
        # Compiled code takes time to load, and may change torch's number of threads.
        from resnet_limits.networks import kernels

        self.at = _Arrays(**{name: array.numpy() for name, array in vars(arrays).items()})
        self.scales = scales
        at = self.at
        _, seeds, width, embed_dim = at.incoming.shape
        weights = seeds * embed_dim * max(width, at.outgoing.shape[2])
        shared = weights >= _SHARED_FROM
        kernels.use_threads(threads)
        self.project: Callable[..., None] = kernels.project_shared if shared else kernels.project
        self.expand: Callable[..., None] = kernels.expand_shared if shared else kernels.expand
        dtype = at.h.dtype
        rows, room = at.h.shape[2], at.past_h.shape[2]
        self.overlaps = np.empty((seeds, rows, room), dtype=dtype)
        row = embed_dim * dtype.itemsize
        row += (_OFF_PAGE - row) % _PAGE if row >= _PAGE // 2 else 0
        self.partial = np.empty((seeds, kernels.PARTS, rows, row // dtype.itemsize), dtype=dtype)

    def read(self, layer: int, used: int) -> None:
        at, scales = self.at, self.scales
        arrays = (at.incoming, at.h, at.p, at.dp, at.past_h, at.past_dp, self.overlaps)
        self.project(*arrays, layer, used, scales.read, scales.step_in, False)

    def write(self, layer: int, used: int) -> None:
        at, scales = self.at, self.scales
        arrays = (at.outgoing, at.g, at.h, at.next_h, at.next_b, at.past_b, at.past_g)
        scratch = (self.overlaps, self.partial)
        self.expand(*arrays, *scratch, layer, used, scales.write, scales.step_out, False)

    def read_back(self, layer: int, used: int, learn: bool) -> None:
        at, scales = self.at, self.scales
        arrays = (at.outgoing, at.next_b, at.r, at.g, at.past_b, at.past_g, self.overlaps)
        self.project(*arrays, layer, used, scales.read, scales.step_out, learn)

    def write_back(self, layer: int, used: int, learn: bool) -> None:
        at, scales = self.at, self.scales
        arrays = (at.incoming, at.dp, at.next_b, at.b, at.h, at.past_h, at.past_dp)
        scratch = (self.overlaps, self.partial)
        self.expand(*arrays, *scratch, layer, used, scales.write, scales.step_in, learn)

    def learn(self) -> None:
        """Nothing is left: each product has been followed by its gradient step."""


def _add_product(weights: Tensor, coefficients: Tensor, states: Tensor, step: float) -> None:
    """``weights += step * coefficients^T states``, all layers and seeds in one batch."""
    w, c, x = (array.flatten(0, 1) for array in (weights, coefficients, states))
    w.baddbmm_(c.transpose(1, 2), x, alpha=step)


class DenseNetwork(Network):
    """A batch of residual networks of one shape, one for each seed.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    shape : Shape
        Depth L, width M, embedding dimension D.
    seeds : sequence of int
        Seeds of the block weights, S of them.
    embedding : ndarray, shape (S, D, r)
        Embedding rows ``[W_e Q, W_u]`` of every seed.
    root_seed : int
        Root of the random streams.
    dtype, device : torch dtype and device
        Arithmetic; draws are made in float64 on the CPU whatever these are.
    kept : int, optional
        Gradient steps that there is room for as factors; 0: each is taken in place. By default
        :func:`~resnet_limits.networks.cost.kept_steps`. For the CPU's kernels only.
    batched : bool, optional
        Batched matrix products in place of the CPU's kernels; always on a GPU, and where numba has
        been told not to compile.
    graphs : bool
        Whether a GPU's passes are recorded once and replayed. Turn off to debug.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        shape: Shape,
        seeds: Sequence[int],
        embedding: np.ndarray,
        root_seed: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        kept: int | None = None,
        batched: bool | None = None,
        graphs: bool = True,
    ) -> None:
        super().__init__(dynamics, shape, embedding, dtype, device)
        self.unit = dynamics.layer[0].unit
        rows = len(dynamics.inputs)
        depth, width, embed_dim = shape
        a, c, batch = self.unit.in_vectors, self.unit.out_vectors, len(seeds)
        on_cpu = torch.device(device).type == "cpu"
        if batched is None:
            batched = not on_cpu or not jit.enabled()
        if batched:
            kept = 0
        elif kept is None:
            kept = cost.kept_steps(Work.of(dynamics, shape, batch, dtype.itemsize))
        self.kept, self.used = kept * rows, 0

        def room(*size: int) -> Tensor:
            return zeros(size, dtype).to(device)

        std = float(np.sqrt(embed_dim))
        self.incoming = _block_weights(
            "block_in", root_seed, seeds, shape, a, std * dynamics.layer[0].input_std, dtype
        ).to(device)
        self.outgoing = _block_weights(
            "block_out", root_seed, seeds, shape, c, std * dynamics.layer[0].output_std, dtype
        ).to(device)
        arrays = _Arrays(
            incoming=self.incoming,
            outgoing=self.outgoing,
            h=self.hidden[:-1],
            next_h=self.hidden[1:],
            b=self.backward[:-1],
            next_b=self.backward[1:],
            p=room(depth, batch, rows, width * a),
            g=room(depth, batch, rows, width * c),
            r=room(depth, batch, rows, width * c),
            dp=room(depth, batch, rows, width * a),
            past_h=room(depth, batch, self.kept, embed_dim),
            past_dp=room(depth, batch, self.kept, width * a),
            past_b=room(depth, batch, self.kept, embed_dim),
            past_g=room(depth, batch, self.kept, width * c),
        )
        step = -1.0 / (dynamics.layer[0].scale * rows)
        number = NUMPY[dtype]
        scales = _Scales(
            read=number(1.0 / embed_dim),
            write=number(self.gains[0]),
            step_in=number(step * dynamics.layer[0].rate_in),
            step_out=number(step * dynamics.layer[0].rate_out),
        )
        self._arrays, self._scales = arrays, scales
        self._products: _Products = (_Batched if batched else _Compiled)(arrays, scales)
        # The same arrays as the unit wants them, (S, M, vectors, rows), layer by layer.
        self.p, self.g, self.r, self.dp = (
            [self._by_unit(layer, vectors) for layer in array]
            for array, vectors in ((arrays.p, a), (arrays.g, c), (arrays.r, c), (arrays.dp, a))
        )
        self._gradient = room(batch, rows, self.targets.shape[1])
        self._output = torch.empty_like(self._gradient)
        self._run = _run if on_cpu or not graphs else _Recordings().run

    def _by_unit(self, states: Tensor, vectors: int) -> Tensor:
        return states.view(*states.shape[:2], self.shape.width, vectors).permute(0, 2, 3, 1)

    def forward_pass(self) -> Tensor:
        """Compute all hidden states; return the outputs, shape (S, rows, d_out)."""
        self._run(self._all_forward)
        return self._output.clone()

    def backward_pass(self, cotangent: Tensor, *, update: bool) -> None:
        """Compute all cotangents; with `update`, take the training step to the next state.

        Raises
        ------
        ValueError
            If steps are kept as factors and there is no room for another.
        """
        if update and self.kept and self.used == self.kept:
            raise ValueError("no room for another gradient step as factors")
        self._gradient.copy_(cotangent)
        self._in_place = update and not self.kept
        self._run(self._all_backward)
        if not update:
            return
        self._learn()
        self._learn_embedding(self._gradient)
        self.step += 1

    def _learn(self) -> None:
        """Take the gradient step as far as the backward pass has not."""
        if not self.kept:
            self._products.learn()
            return
        at = self._arrays
        rows = slice(self.used, self.used + at.h.shape[2])
        for past, new in (
            *((at.past_dp, at.dp), (at.past_h, at.h)),
            *((at.past_g, at.g), (at.past_b, at.next_b)),
        ):
            past[:, :, rows] = new
        self.used = rows.stop

    def _all_forward(self) -> None:
        products, unit = self._products, self.unit
        torch.matmul(self.inputs, self.embedding.transpose(1, 2), out=self.hidden[0])
        for layer, (p, g) in enumerate(zip(self.p, self.g, strict=True)):
            products.read(layer, self.used)
            g.copy_(unit.forward(p))
            products.write(layer, self.used)
        self._output.copy_(self._read_out())

    def _all_backward(self) -> None:
        products, unit, used, learn = self._products, self.unit, self.used, self._in_place
        self._start_back(self._gradient)
        for layer in reversed(range(self.shape.depth)):
            products.read_back(layer, used, learn)
            self.dp[layer].copy_(unit.backward(self.p[layer], self.g[layer], self.r[layer]))
            products.write_back(layer, used, learn)


def _run(work: Callable[[], None]) -> None:
    work()


class _Recordings:
    """Work on a GPU that is recorded once and then replayed: one launch, not thousands.

    A recording is of work on fixed arrays, which reads nothing back and gives the same when it is
    done twice: libraries make what they need on their first use, which a recording must not
    contain, so that the work is done once before it is recorded.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def run(self, work: Callable[[], None]) -> None:
        """Do the work; record it first if its name is new."""
        # By name: with the work itself, network and recordings would keep each other in memory.
        name = work.__name__
        if name not in self.graphs:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                work()
            torch.cuda.current_stream().wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                work()
            self.graphs[name] = graph
        self.graphs[name].replay()


def _block_weights(
    role: str,
    root_seed: int,
    seeds: Sequence[int],
    shape: Shape,
    vectors: int,
    std: float,
    dtype: torch.dtype,
) -> Tensor:
    """Draw weights (L, S, M x vectors, D), one stream for each seed and layer."""
    depth, width, embed_dim = shape
    size = (depth, len(seeds), width * vectors, embed_dim)
    weights = torch.from_numpy(np.empty(size, dtype=NUMPY[dtype]))

    def draw(place: tuple[int, int]) -> None:
        layer, index = place
        rng = randomness.generator(root_seed, role, seeds[index], *shape, layer)
        normal = rng.standard_normal((width * vectors, embed_dim))
        normal *= std
        weights[layer, index] = torch.from_numpy(normal)

    places = [(layer, index) for layer in range(depth) for index in range(len(seeds))]
    # The generators release the interpreter's lock while they fill an array.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        list(pool.map(draw, places))
    return weights

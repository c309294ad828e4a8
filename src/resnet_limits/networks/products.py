"""The four products of a branch with its weights, layer by layer, and the steps of the weights.

On a CPU by kernels that read the weights once, elsewhere by batched matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from resnet_limits.networks import cost
from resnet_limits.units import Unit

# From this many weights of a layer on, all seeds together, threads share the work on them.
_SHARED_FROM = 1 << 17
# Rows of scratch arrays keep this distance, in bytes, from whole pages: stores and loads at the
# same place of two pages wait for each other.
_OFF_PAGE = 384
_PAGE = 4096


@dataclass(frozen=True)
class Arrays:
    """What the products work on; all layers, and all seeds of one layer, lie side by side.

    Weights are ``(L, S, m, D)``, states ``(L, S, rows, D)`` and coefficients ``(L, S, rows, m)``,
    with m the number of units times their in- or out-vectors.

    Attributes
    ----------
    incoming, outgoing : Tensor
        I and O; what they lack of the training steps is in the factors.
    u : Tensor
        What the units read: h, or its norm.
    h, next_h, b, next_b : Tensor
        States before and after the branch, and their cotangents.
    base_b : Tensor
        What the units' cotangents are added to in b: next_b, or with a norm b itself.
    p, g, r, dp : Tensor
        Coefficients.
    past_u, past_dp, past_b, past_g : Tensor
        Factors: states and coefficients of the steps that are kept, ``kept x rows`` rows.
    """

    incoming: Any
    outgoing: Any
    u: Any
    h: Any
    next_h: Any
    b: Any
    next_b: Any
    base_b: Any
    p: Any
    g: Any
    r: Any
    dp: Any
    past_u: Any
    past_dp: Any
    past_b: Any
    past_g: Any


class Scales(NamedTuple):
    """Constants of the products, 1 / D and alpha / (L M), numbers of the weights' type."""

    read: Any
    write: Any


class Matrix(NamedTuple):
    """What the weights of one matrix are at a state.

    ``initial * W + sum_r factors[r] ...`` with W the array of weights and r the rows of the kept
    factors; numbers of the weights' type, where what is beyond its range is infinite.

    Attributes
    ----------
    initial : number
        What the array of weights counts.
    factors : ndarray, shape (kept x rows,)
        What each row of the factors counts.
    step : number
        What the row's products count in a step that is taken in place, by addition alone.
    """

    initial: Any
    factors: Any
    step: Any


class Products(Protocol):
    """The four products of a layer with its weights.

    With `learn`, a product is followed by the gradient step of its weights.
    """

    def begin(self, used: int, incoming: Matrix, outgoing: Matrix) -> None:
        """Set the state: the number of rows of the factors that count, and the two matrices."""

    def read(self, layer: int) -> None:
        """``p = I^T u / D``."""

    def write(self, layer: int) -> None:
        """``next_h = h + alpha / (L M) O g``."""

    def read_back(self, layer: int, learn: bool) -> None:
        """``r = O^T next_b / D``; then O learns from next_b and g."""

    def write_back(self, layer: int, learn: bool) -> None:
        """``b = base_b + alpha / (L M) I dp``; then I learns from u and dp."""

    def learn(self) -> None:
        """Take the additive steps that have been left to the end of the backward pass."""


class Batched:
    """Matrix products, all seeds in one batch; gradient steps in place, all layers in one batch.

    There are no factors. A GPU's recordings need all but :meth:`begin` and :meth:`learn` to give
    the same when they are done twice, and to depend on no number that changes.
    """

    def __init__(self, arrays: Arrays, scales: Scales) -> None:
        self.at = arrays
        self.scales = Scales(*(value.item() for value in scales))
        # A norm's cotangents are written by themselves, over whatever is there.
        self.keeps_base = int(arrays.base_b is not arrays.b)

    def begin(self, used: int, incoming: Matrix, outgoing: Matrix) -> None:
        """Set the state."""
        self.step_in, self.step_out = incoming.step.item(), outgoing.step.item()

    def _project(self, weights: Tensor, states: Tensor, out: Tensor) -> None:
        scale = self.scales.read
        torch.baddbmm(out, states, weights.transpose(1, 2), beta=0, alpha=scale, out=out)

    def read(self, layer: int) -> None:
        """Compute ``p = I^T u / D``."""
        at = self.at
        self._project(at.incoming[layer], at.u[layer], at.p[layer])

    def write(self, layer: int) -> None:
        """Compute ``next_h``."""
        at = self.at
        h, g, out = at.h[layer], at.g[layer], at.next_h[layer]
        torch.baddbmm(h, g, at.outgoing[layer], alpha=self.scales.write, out=out)

    def read_back(self, layer: int, learn: bool) -> None:
        """Compute ``r = O^T next_b / D``."""
        at = self.at
        self._project(at.outgoing[layer], at.next_b[layer], at.r[layer])

    def write_back(self, layer: int, learn: bool) -> None:
        """Compute ``b``."""
        at = self.at
        base, dp, out = at.base_b[layer], at.dp[layer], at.b[layer]
        scale, keeps = self.scales.write, self.keeps_base
        torch.baddbmm(base, dp, at.incoming[layer], beta=keeps, alpha=scale, out=out)

    def learn(self) -> None:
        """Take the additive steps of both matrices."""
        at = self.at
        for weights, coefficients, states, step in (
            (at.incoming, at.dp, at.u, self.step_in),
            (at.outgoing, at.g, at.next_b, self.step_out),
        ):
            if step:
                w, c, x = (array.flatten(0, 1) for array in (weights, coefficients, states))
                w.baddbmm_(c.mT, x, alpha=step)


class Compiled:
    """The kernels for the CPU, each reading the weights once."""

    def __init__(self, arrays: Arrays, scales: Scales, unit: Unit) -> None:
        threads = torch.get_num_threads()
        # Compiled code takes time to load, and may change torch's number of threads.
        from resnet_limits.networks import kernels, passes

        _, seeds, width, embed_dim = arrays.incoming.shape
        rows, room = arrays.h.shape[2], arrays.past_u.shape[2]
        self.base = arrays.base_b
        # All layers' and seeds' rows below each other.
        self.at = Arrays(**{name: array.numpy() for name, array in vars(arrays).items()})
        at = self.at = Arrays(
            **{name: array.reshape(-1, array.shape[3]) for name, array in vars(self.at).items()}
        )
        self.scales = scales
        weights = seeds * embed_dim * max(width, arrays.outgoing.shape[2])
        shared = weights >= _SHARED_FROM
        kernels.use_threads(threads)
        self.project: Callable[..., None] = kernels.project_shared if shared else kernels.project
        self.expand: Callable[..., None] = kernels.expand_shared if shared else kernels.expand
        dtype = at.h.dtype
        self.sizes = seeds, rows
        self.overlaps = np.empty((seeds * rows, room), dtype=dtype)
        row = embed_dim * dtype.itemsize
        row += (_OFF_PAGE - row) % _PAGE if row >= _PAGE // 2 else 0
        self.partial = np.empty((seeds * kernels.PARTS * rows, row // dtype.itemsize), dtype=dtype)
        self.has_own_base = arrays.base_b is arrays.b
        code, self.vectors = unit.compiled, (unit.in_vectors, unit.out_vectors)
        self.passes: tuple[Callable[..., None], Callable[..., None]] | None = None
        if code is not None:
            alone = partial(passes.forward, code), partial(passes.backward, code)
            self.passes = passes.shared(code) if shared else alone
        self.forward_arrays = (
            *(at.incoming, at.outgoing, at.u, at.h, at.next_h),
            *(at.next_b, at.p, at.g, at.dp),
        )
        self.backward_arrays = (
            *(at.incoming, at.outgoing, at.u, at.b, at.next_b),
            *(at.base_b, at.p, at.g, at.r, at.dp),
        )

    def begin(self, used: int, incoming: Matrix, outgoing: Matrix) -> None:
        """Set the state."""
        at, read = self.at, self.scales.read
        self.used, self.of_in, self.of_out = used, incoming, outgoing
        self.adds_in, self.adds_out = bool(incoming.step != 0), bool(outgoing.step != 0)
        # Read products take their scale at once with what each part counts.
        self.read_in, self.read_out = read * incoming.initial, read * outgoing.initial
        if not len(at.past_u):
            self.past_in = self.past_out = self.read_past_in = self.read_past_out = None
            return
        ins, outs = (
            (states, coefficients, self.overlaps)
            for states, coefficients in ((at.past_u, at.past_dp), (at.past_b, at.past_g))
        )
        self.past_in, self.past_out = (*ins, incoming.factors), (*outs, outgoing.factors)
        self.read_past_in = *ins, read * incoming.factors
        self.read_past_out = *outs, read * outgoing.factors

    def read(self, layer: int) -> None:
        """Compute ``p = I^T u / D``."""
        at, step = self.at, self.of_in.step
        arrays = at.incoming, at.u, at.p, at.dp, self.read_past_in
        self.project(*arrays, self.sizes, layer, self.used, self.read_in, step, False)

    def write(self, layer: int) -> None:
        """Compute ``next_h``."""
        at, (initial, _, step) = self.at, self.of_out
        arrays = at.outgoing, at.g, at.h, at.next_h, at.next_b, self.partial, self.past_out
        numbers = self.scales.write, initial, step
        self.expand(*arrays, self.sizes, layer, self.used, *numbers, False)

    def read_back(self, layer: int, learn: bool) -> None:
        """Compute ``r = O^T next_b / D``; then take O's step."""
        at, numbers = self.at, (self.read_out, self.of_out.step)
        arrays = at.outgoing, at.next_b, at.r, at.g, self.read_past_out
        self.project(*arrays, self.sizes, layer, self.used, *numbers, learn and self.adds_out)

    def write_back(self, layer: int, learn: bool) -> None:
        """Compute ``b``; then take I's step."""
        at, (initial, _, step) = self.at, self.of_in
        if self.has_own_base:
            self.base[layer] = 0
        arrays = at.incoming, at.dp, at.base_b, at.b, at.u, self.partial, self.past_in
        numbers = self.scales.write, initial, step
        self.expand(*arrays, self.sizes, layer, self.used, *numbers, learn and self.adds_in)

    def forward(self, layers: range) -> None:
        """Compute `read`, the units and `write` of each layer, for a unit with compiled code."""
        pasts = self.read_past_in, self.past_out
        numbers = self.read_in, self.scales.write, self.of_out.initial
        arrays = self.vectors, self.forward_arrays, self.partial, *pasts, self.sizes
        assert self.passes is not None
        run, _ = self.passes
        run(*arrays, self.used, numbers, layers.start, layers.stop)

    def backward(self, layers: range, learn: bool) -> None:
        """Compute `read_back`, the units and `write_back` of each layer, the last one first."""
        pasts = self.past_in, self.read_past_out
        numbers = self.read_out, self.scales.write, self.of_in.initial
        steps = self.of_in.step, self.of_out.step
        learns = learn and self.adds_in, learn and self.adds_out
        arrays = self.vectors, self.backward_arrays, self.partial, *pasts, self.sizes
        if self.has_own_base:
            self.base[layers.start : layers.stop] = 0
        assert self.passes is not None
        _, run = self.passes
        run(*arrays, self.used, numbers, steps, learns, layers.start, layers.stop)

    def learn(self) -> None:
        """Nothing is left: each product has been followed by its gradient step."""


def gradients(
    coefficients: Tensor, states: Tensor, scale: float
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Give ``scale * coefficients^T states`` in pieces, all layers and seeds one after the other.

    Parameters
    ----------
    coefficients, states : Tensor, shape (n, rows, m) and (n, rows, D)
    scale : float

    Yields
    ------
    (slice, slice), Tensor
        Where a piece lies on the first two axes of ``(n, m, D)``, and the piece: no larger than
        ``cost.PIECE`` numbers, but at least one row.
    """
    count, _, width = coefficients.shape
    columns = states.shape[2]
    high = min(width, max(1, cost.PIECE // columns))
    deep = max(1, cost.PIECE // (high * columns))
    for first in range(0, count, deep):
        x = states[first : first + deep]
        for start in range(0, width, high):
            c = coefficients[first : first + deep, :, start : start + high].mT
            empty = x.new_empty(len(x), c.shape[1], columns)
            piece = torch.baddbmm(empty, c, x, beta=0, alpha=scale)
            yield (slice(first, first + deep), slice(start, start + high)), piece

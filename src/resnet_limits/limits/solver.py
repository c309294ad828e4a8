"""The causal solver of the infinite-width dynamics.

One solver for every limit: what differs is the root R of the embedding's Gram matrix and the depth
grid (theory.md, "Why the limits are small problems"). Training steps are taken one after the other;
within a step the forward and the backward pass are fixed points over the depth grid, and the units
at every node are then updated one by one, as in the finite network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_limits.dynamics import GROWTH_LIMIT, Dynamics
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.quadrature import UnitSample

logger = logging.getLogger(__name__)

MAX_ITERATIONS = 300
PICARD_ITERATIONS = 60
ANDERSON_MEMORY = 20
# Elements of one temporary array: small enough for a core's cache, large enough to hide calls.
_CHUNK_ELEMENTS = 1 << 17
# Activations are kept over a backward pass up to this many (2 GiB of them and of pre-activations
# in float64), and computed again above.
_KEPT_ELEMENTS = 1 << 27


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
    iterations : int
        Fixed-point iterations of the whole solve, both passes together.
    """

    output: Array
    hidden: Array
    backward: Array
    loss: Array
    diverged_step: int
    iterations: int


class _Units:
    """Weights of all units of the quadrature at all depth nodes, and their expectations.

    Arrays are laid out ``(nodes, replicates, points x vectors, r)`` and states
    ``(nodes, replicates, r, rows)``, so that every product is one batched matrix product.
    """

    def __init__(self, dynamics: Dynamics, sample: UnitSample, nodes: int, dtype: torch.dtype):
        self.unit = dynamics.unit
        self.dynamics = dynamics
        self.points = sample.points

        def spread(vectors: Tensor, std: float) -> Tensor:
            replicates, points, count, r = vectors.shape
            flat = (std * vectors).to(dtype).reshape(1, replicates, points * count, r)
            return flat.repeat(nodes, 1, 1, 1)

        self.incoming = spread(sample.in_vectors, dynamics.input_std)
        self.outgoing = spread(sample.out_vectors, dynamics.output_std)
        rows = len(dynamics.inputs)
        widest = nodes * sample.replicates * rows * max(self.unit.in_vectors, self.unit.out_vectors)
        self.block = max(16, _CHUNK_ELEMENTS // widest)
        self.w = torch.empty(0)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        a, c = self.unit.in_vectors, self.unit.out_vectors
        for start in range(0, self.points, self.block):
            stop = min(self.points, start + self.block)
            yield (
                self.incoming[:, :, start * a : stop * a],
                self.outgoing[:, :, start * c : stop * c],
            )

    def _activate(self, incoming: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        p = incoming @ w
        p = p.view(*p.shape[:2], -1, self.unit.in_vectors, p.shape[-1])
        return p, self.unit.forward(p)

    def forward_drift(self, w: Tensor) -> Tensor:
        """``alpha E[O g(I^T w)]``."""
        total = torch.zeros_like(w)
        for incoming, outgoing in self._blocks():
            _, g = self._activate(incoming, w)
            total += outgoing.transpose(-1, -2) @ g.flatten(2, 3)
        return total * (self.dynamics.residual_scale / self.points)

    def settle(self, w: Tensor) -> None:
        """Fix the hidden state that the backward pass and the update are taken at."""
        self.w = w
        fits = w.numel() // w.shape[-2] * self.points <= _KEPT_ELEMENTS
        self.kept = [self._activate(incoming, w) for incoming, _ in self._blocks()] if fits else []

    def _cotangents(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Weights, activations and ``Dg(p)^T O^T z``, block by block."""
        for index, (incoming, outgoing) in enumerate(self._blocks()):
            p, g = self.kept[index] if self.kept else self._activate(incoming, self.w)
            r = outgoing @ z
            change = self.unit.backward(p, g, r.view(*r.shape[:2], *g.shape[2:]))
            yield incoming, outgoing, g.flatten(2, 3), change.flatten(2, 3)

    def backward_drift(self, z: Tensor) -> Tensor:
        """``alpha E[I Dg(p)^T O^T z]`` at the settled hidden state."""
        total = torch.zeros_like(z)
        for incoming, _, _, change in self._cotangents(z):
            total += incoming.transpose(-1, -2) @ change
        return total * (self.dynamics.residual_scale / self.points)

    def update(self, z: Tensor) -> None:
        """Take one gradient step with every unit (theory.md, "Gradient step")."""
        scale = -1.0 / (self.dynamics.residual_scale * z.shape[-1])
        hidden, backward = self.w.transpose(-1, -2), z.transpose(-1, -2)
        for incoming, outgoing, g, change in self._cotangents(z):
            incoming.add_(change @ hidden, alpha=scale * self.dynamics.rate_in)
            outgoing.add_(g @ backward, alpha=scale * self.dynamics.rate_out)


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
        self.iterations = 0

    def solve(
        self, start: Tensor, guess: Tensor, drift: Callable[[Tensor], Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the state at the nodes and its drift."""
        state, change, size = guess, np.inf, 1.0
        anderson = _Anderson()
        for iteration in range(MAX_ITERATIONS):
            self.iterations += 1
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
        self.states: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def next(self, state: Tensor, image: Tensor) -> Tensor:
        def flat(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, 1).flatten(1)

        x, residual = flat(state), flat(image - state)
        self.states = [*self.states[-ANDERSON_MEMORY:], x]
        self.residuals = [*self.residuals[-ANDERSON_MEMORY:], residual]
        if len(self.states) == 1:
            return image
        steps = torch.stack(self.states, -1).diff(dim=-1)
        changes = torch.stack(self.residuals, -1).diff(dim=-1)
        gram = changes.transpose(-1, -2) @ changes
        # A ridge at the level of rounding: changes that have become dependent, or have ended in a
        # replicate that has converged before the others, are no obstacle.
        rounding = torch.finfo(gram.dtype)
        ridge = 50 * rounding.eps * gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        ridge = ridge.clamp_min(rounding.tiny)[:, None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        right = changes.transpose(-1, -2) @ residual[..., None]
        weights = torch.linalg.solve(gram + ridge * eye, right)
        new = x + residual - ((steps + changes) @ weights)[..., 0]
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


def solve(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    sample: UnitSample,
    *,
    name: str,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
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
    dtype, device : torch dtype and device
        Arithmetic of the states and units.

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
        return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

    rows, r_in = dynamics.inputs.shape
    replicates = sample.replicates
    embedding = put(root[:, :r_in]).expand(replicates, -1, -1).clone()
    unembedding = put(root[:, r_in:]).expand(replicates, -1, -1).clone()
    inputs, targets = put(dynamics.inputs.T), put(dynamics.targets)
    sample = UnitSample(sample.in_vectors.to(device), sample.out_vectors.to(device))
    units = _Units(dynamics, sample, grid.nodes, dtype)
    # A relative step well below any quadrature error, and above rounding.
    tolerance = 1e-11 if dtype == torch.float64 else 3e-6
    hidden_pass = _FixedPoint(put(grid.forward), tolerance, name)
    backward_pass = _FixedPoint(put(grid.backward), tolerance, name)
    total, forward_knots, backward_knots = (
        put(matrix) for matrix in (grid.total, grid.forward_knots, grid.backward_knots)
    )
    embedding_scale = dynamics.rate_embedding / (dynamics.residual_scale * rows)
    nodes_shape = (grid.nodes, replicates, len(root), rows)

    outputs, hiddens, backwards, losses = [], [], [], []
    # Both passes start from their change over depth, carried on from the steps before.
    hidden_change, backward_change = _Forecast(), _Forecast()
    diverged_step = -1
    for step in range(dynamics.steps):
        start = embedding @ inputs
        try:
            guess = (start + hidden_change.next()).expand(nodes_shape)
            w, slope = hidden_pass.solve(start, guess, units.forward_drift, step)
            end = start + torch.einsum("k,kbrn->brn", total, slope)
            if float(end.abs().max()) > GROWTH_LIMIT * float(start.abs().max()):
                raise _UnboundedError
            output = (unembedding.transpose(-1, -2) @ end).transpose(-1, -2)
            gradient = dynamics.loss.gradient(output, targets)
            z_end = unembedding @ gradient.transpose(-1, -2)
            units.settle(w)
            guess = (z_end + backward_change.next()).expand(nodes_shape)
            z, z_slope = backward_pass.solve(z_end, guess, units.backward_drift, step)
        except _UnboundedError:
            diverged_step = step
            break
        hidden_change.add(w - start)
        backward_change.add(z - z_end)
        z_knots = z_end + torch.einsum("jk,kbrn->jbrn", backward_knots, z_slope)
        outputs.append(output)
        losses.append(dynamics.loss.value(output, targets))
        hiddens.append(start + torch.einsum("jk,kbrn->jbrn", forward_knots, slope))
        backwards.append(z_knots)
        if step + 1 < dynamics.steps:
            units.update(z)
            if dynamics.rate_embedding:
                embedding -= embedding_scale * z_knots[0] @ inputs.T
                unembedding -= embedding_scale * end @ gradient
        logger.debug("%s: step %d of %d", name, step + 1, dynamics.steps)

    def take(states: list[Tensor], *axes: int) -> Array:
        lost = [torch.full_like(states[0], torch.nan)] * (dynamics.steps - len(states))
        stacked: Array = torch.stack(states + lost).permute(*axes).double().cpu().numpy()
        return stacked

    return Trajectory(
        output=take(outputs, 1, 0, 2, 3),
        hidden=take(hiddens, 2, 0, 1, 4, 3),
        backward=take(backwards, 2, 0, 1, 4, 3),
        loss=take(losses, 1, 0),
        diverged_step=diverged_step,
        iterations=hidden_pass.iterations + backward_pass.iterations,
    )

"""The causal solver of the infinite-width dynamics.

One solver for every limit: what differs is the root R of the embedding's Gram matrix and the depth
grid (docs/concepts/limits.md). Training steps are taken one after the other;
within a step the forward and the backward state are fixed points over the depth grid
(:mod:`.fixed_point`), and the units at every node are then updated one by one, as in the finite
network (:mod:`.layer`, :mod:`.ensemble`). Backward states are found for the cotangents of all rows,
which change smoothly from step to step; those of a batch are multiples of them, row by row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from resnet_limits.dynamics import Dynamics, Embeddings, largest_size
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.fixed_point import Fields, LimitError, UnboundedError
from resnet_limits.limits.layer import Layer
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.threads import workers

__all__ = ["TIGHT", "LimitError", "Trajectory", "accuracy", "solve"]

logger = logging.getLogger(__name__)

TIGHT = 1e-11
"""Relative tolerance of the fixed points where nothing looser is asked for."""
# In float32 the state that the units see moves in steps of 6e-8.
_SINGLE_TOLERANCE = 2e-7


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


def accuracy(tolerance: float, dtype: torch.dtype) -> float:
    """Give the tolerance of the fixed points that the units' arithmetic allows."""
    return tolerance if dtype == torch.float64 else max(tolerance, _SINGLE_TOLERANCE)


def solve(
    dynamics: Dynamics,
    root: Array,
    grid: DepthGrid,
    samples: Sequence[UnitSample],
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
    samples : sequence of UnitSample
        The quadrature over the units of each branch; its replicates, as many for all branches, are
        solved side by side, independently.
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
    batch = samples[0].replicates
    embeddings = Embeddings(
        dynamics,
        put(root[:, :r_in]).expand(batch, -1, -1).clone(),
        put(root[:, r_in:]).expand(batch, -1, -1).clone(),
        1.0,
    )
    targets = put(dynamics.targets)
    forward_knots, backward_knots = put(grid.forward_knots), put(grid.backward_knots)
    tolerance = accuracy(tolerance, dtype)
    start_size = float(embeddings.first()[0].square().sum(0).mean().sqrt())
    largest = float(largest_size(dynamics, start_size))

    def read(end: Tensor) -> tuple[Tensor, Tensor]:
        output = embeddings.output(end)
        return output, embeddings.pull_back(end, everything.cotangent(output, targets, 0))

    # Of all rows, whatever the batch.
    everything = replace(dynamics, batches=None)
    smooth = dynamics.batches is None

    outputs, hiddens, backwards, losses = [], [], [], []
    diverged_step = -1
    with workers() if device == "cpu" else nullcontext() as pool:
        layer = Layer.of_samples(dynamics, samples, grid, dtype, device, pool)
        fields = Fields(layer, grid, tolerance, largest, smooth, name)
        for step in range(dynamics.steps):
            start = embeddings.first()
            try:
                found = fields.settle(start, read, step)
            except UnboundedError:
                diverged_step = step
                break
            after = found.z
            z_knots = found.z_end + torch.einsum("jk,kbrn->jbrn", backward_knots, found.z_slope)
            if not smooth:
                shares = put(dynamics.shares(step))
                after, z_knots = [z * shares for z in after], z_knots * shares
            outputs.append(found.output)
            losses.append(dynamics.value(found.output, targets))
            hiddens.append(start + torch.einsum("jk,kbrn->jbrn", forward_knots, found.slope))
            backwards.append(z_knots)
            if step + 1 < dynamics.steps:
                fields.train(step, found.w, after)
                cotangent = dynamics.cotangent(found.output, targets, step)
                embeddings.learn(step, z_knots[0], found.end, cotangent)
            logger.debug("%s: step %d of %d", name, step + 1, dynamics.steps)

    states = (len(forward_knots), batch, len(root), rows)

    def take(found: list[Tensor], size: tuple[int, ...], *axes: int) -> Array:
        # A limit that diverges at its first step has no state to go by.
        lost = [torch.full(size, torch.nan, dtype=torch.float64)] * (dynamics.steps - len(found))
        stacked: Array = torch.stack([x.cpu() for x in found] + lost).permute(*axes).numpy()
        # Trajectories of many rows are large: none is there twice while the next is stacked.
        found.clear()
        return stacked

    return Trajectory(
        output=take(outputs, (batch, *targets.shape), 1, 0, 2, 3),
        hidden=take(hiddens, states, 2, 0, 1, 4, 3),
        backward=take(backwards, states, 2, 0, 1, 4, 3),
        loss=take(losses, (batch,), 1, 0),
        diverged_step=diverged_step,
        passes=fields.passes,
    )

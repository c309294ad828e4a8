"""The causal solver of the infinite-width dynamics.

One solver for every limit: what differs is the root R of the embedding's Gram matrix and the depth
grid (docs/concepts/limits.md). Training steps are taken one after the other;
within a step the forward and the backward state are fixed points over the depth grid
(:mod:`.fixed_point`), and the units at every node are then updated one by one, as in the finite
network (:mod:`.ensemble`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_limits.dynamics import Dynamics, largest_size
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.ensemble import Units
from resnet_limits.limits.fixed_point import Fields, LimitError, UnboundedError
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
    sample: UnitSample,
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
    sample : UnitSample
        The quadrature over units; its replicates are solved side by side, independently.
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
    embedding = put(root[:, :r_in]).expand(sample.replicates, -1, -1).clone()
    unembedding = put(root[:, r_in:]).expand(sample.replicates, -1, -1).clone()
    inputs, targets = put(dynamics.inputs.T), put(dynamics.targets)
    forward_knots, backward_knots = put(grid.forward_knots), put(grid.backward_knots)
    embedding_scale = dynamics.rate_embedding / (dynamics.residual_scale * rows)
    tolerance = accuracy(tolerance, dtype)
    start_size = float((embedding[0] @ inputs).square().sum(0).mean().sqrt())
    largest = float(largest_size(dynamics, start_size))

    def read(end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = (unembedding.mT @ end).mT
        gradient = dynamics.cotangent(output, targets, 0)
        return output, gradient, unembedding @ gradient.mT

    outputs, hiddens, backwards, losses = [], [], [], []
    diverged_step = -1
    with workers() if device == "cpu" else nullcontext() as pool:
        units = Units.of_sample(dynamics, sample, grid.total, dtype, device, pool)
        fields = Fields(units, sample, grid, tolerance, largest, name)
        for step in range(dynamics.steps):
            start = embedding @ inputs
            try:
                found = fields.settle(start, read, step)
            except UnboundedError:
                diverged_step = step
                break
            z_knots = found.z_end + torch.einsum("jk,kbrn->jbrn", backward_knots, found.z_slope)
            outputs.append(found.output)
            losses.append(dynamics.value(found.output, targets))
            hiddens.append(start + torch.einsum("jk,kbrn->jbrn", forward_knots, found.slope))
            backwards.append(z_knots)
            if step + 1 < dynamics.steps:
                fields.train(found.w, found.z)
                if dynamics.rate_embedding:
                    embedding -= embedding_scale * z_knots[0] @ inputs.T
                    unembedding -= embedding_scale * found.end @ found.gradient
            logger.debug("%s: step %d of %d", name, step + 1, dynamics.steps)

    batch, states = sample.replicates, (len(forward_knots), sample.replicates, len(root), rows)

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

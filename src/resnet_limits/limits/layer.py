"""A layer of the limits: its branches, one after the other, as one map.

At finite depth a branch sees what the branches before it have added, ``w_b = w + (1/L) sum F_b'``
over b' < b, and backward likewise; where depth is continuous all see the same state
(docs/concepts/limits.md). To the rest of the solver a layer is one map of the state before it,
which is smooth in the layer's number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits.depth import DepthGrid
from resnet_limits.limits.ensemble import Seen, Units
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.threads import Pool

Drifts = Tensor
"""Drifts of every branch, shape (branches, nodes, replicates, r, rows)."""


def _stacked(drifts: Sequence[Tensor]) -> Drifts:
    return drifts[0][None] if len(drifts) == 1 else torch.stack(tuple(drifts))


def total(drifts: Drifts) -> Tensor:
    """Add up what the branches of a layer do."""
    return drifts[0] if len(drifts) == 1 else drifts.sum(0)


class Layer:
    """The units of all branches of a layer, at all depth nodes.

    States are ``(nodes, replicates, r, rows)``. Those inside of a layer are lists, one state a
    branch: w_b before branch b, and z_b after it. Drifts are those of all branches.

    Parameters
    ----------
    branches : sequence of Units
        The units of each branch, in the branches' order.
    step : float
        1/L, or 0 where depth is continuous.
    replicates : int
        Number of independent samples that are solved side by side.
    """

    def __init__(self, branches: Sequence[Units], step: float, replicates: int) -> None:
        self.branches, self.step, self.replicates = tuple(branches), step, replicates
        self.norms = tuple(units.branch.norm for units in branches)

    @classmethod
    def of_samples(
        cls,
        dynamics: Dynamics,
        samples: Sequence[UnitSample],
        grid: DepthGrid,
        dtype: torch.dtype,
        device: str,
        pool: Pool | None,
    ) -> Layer:
        """Deal a sample for each branch out to the nodes."""
        branches = [
            Units.of_sample(dynamics, branch, sample, grid.total, dtype, device, pool)
            for branch, sample in zip(dynamics.layer, samples, strict=True)
        ]
        return cls(branches, grid.step, samples[0].replicates)

    @property
    def size(self) -> int:
        """Number of units of the branch that has the fewest."""
        return min(units.size for units in self.branches)

    def part(self, share: float) -> Layer:
        """Copy this share of the units of every branch, before training."""
        few = [units.part(share) for units in self.branches]
        return Layer(few, self.step, self.replicates)

    def _reads(self, number: int, w: Tensor) -> Tensor:
        """Give what a branch reads of the state before it."""
        return self.norms[number].forward(w, -2, 1.0)

    def _writes_back(self, number: int, w: Tensor, drift: Tensor) -> Tensor:
        """Pull a backward drift of what a branch reads back to the state before it."""
        return self.norms[number].pull_back(w, drift, -2, 1.0)

    def inside(self, w: Tensor, drifts: Drifts) -> list[Tensor]:
        """Give the states before the branches, for the state before the layer and its drifts."""
        states = [w]
        for drift in drifts[:-1]:
            states.append(states[-1] + self.step * drift if self.step else w)
        return states

    def inside_backward(self, z: Tensor, drifts: Drifts) -> list[Tensor]:
        """Give the backward states after the branches, for that after the layer."""
        return self.inside(z, drifts.flip(0))[::-1]

    def forward_drifts(self, w: Tensor, defects: Drifts) -> Drifts:
        """Give ``alpha_b E[O g(I^T u_b)]`` and a defect of each branch.

        Parameters
        ----------
        w : Tensor
            The state before the layer.
        defects : Drifts
            What is added to each; one number for all nodes where it is zero.
        """
        found: list[Tensor] = []
        before = w
        for number, units in enumerate(self.branches):
            found.append(units.forward_drift(self._reads(number, before)) + defects[number])
            if self.step and number + 1 < len(self.branches):
                before = before + self.step * found[-1]
        return _stacked(found)

    def backward_drifts(self, states: Sequence[Tensor]) -> Callable[[Tensor, Drifts], Drifts]:
        """Give ``z -> alpha_b E[I Dg(p)^T O^T z_b]``, pulled back through the norms, with defects.

        Parameters
        ----------
        states : sequence of Tensor
            States before the branches.

        Returns
        -------
        callable
            From the backward state after the layer, and defects, to the drifts.
        """
        each = [
            units.backward_drift(self._reads(number, w))
            for number, (units, w) in enumerate(zip(self.branches, states, strict=True))
        ]

        def drifts(z: Tensor, defects: Drifts) -> Drifts:
            found: list[Tensor] = []
            after = z
            for number in reversed(range(len(each))):
                drift = self._writes_back(number, states[number], each[number](after))
                found.append(drift + defects[number])
                if self.step and number:
                    after = after + self.step * found[-1]
            return _stacked(found[::-1])

        return drifts

    def drifts(
        self,
        w: Sequence[Tensor],
        z: Sequence[Tensor],
        settled: Sequence[Seen] | None = None,
    ) -> tuple[Drifts, Drifts]:
        """Both drifts at given states inside of the layer, from one pass over all units.

        Parameters
        ----------
        w, z : sequence of Tensor
            States before the branches, and backward states after them.
        settled : sequence of Seen, optional
            What the branches saw at the step before, by which the units learn first.
        """
        forward, backward = [], []
        for number, units in enumerate(self.branches):
            seen = None if settled is None else settled[number]
            here = self._reads(number, w[number])
            there, back = units.drifts(here, z[number], seen)
            forward.append(there)
            backward.append(self._writes_back(number, w[number], back))
        return _stacked(forward), _stacked(backward)

    def seen(self, step: int, w: Sequence[Tensor], z: Sequence[Tensor]) -> list[Seen]:
        """Give what the branches see at a step, for the states inside of the layer."""
        return [
            Seen(step, self._reads(number, before), after)
            for number, (before, after) in enumerate(zip(w, z, strict=True))
        ]

    def update(self, seen: Sequence[Seen]) -> None:
        """Take one training step with every unit of every branch."""
        for units, of_branch in zip(self.branches, seen, strict=True):
            units.update(of_branch)

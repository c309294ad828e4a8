"""Fixed points over depth: the states of one training step.

They are found on a small part of the units and corrected with all of them, as on the coarse grid of
a multigrid method: see :class:`Fields`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.ensemble import Units
from resnet_limits.limits.quadrature import UnitSample

logger = logging.getLogger(__name__)

MAX_ITERATIONS = 300
PICARD_ITERATIONS = 60
ANDERSON_MEMORY = 20
MAX_PASSES = 10
"""Passes over all units in one step, after which all of them are iterated on."""
# The part of the units that does the iteration: large enough for its derivative to be within a few
# per cent of that of all, small enough to cost little beside one pass over all.
_PART_POINTS = 1 << 10
_PART_SHARE = 16
# A part of more than this share saves nothing.
_WHOLE_SHARE = 1 / 8
# The smallest factor that one pass is trusted to leave of an error.
_BEST_GAIN = 1e-3


class LimitError(RuntimeError):
    """The limit could not be solved; nothing of it may be saved.

    Attributes
    ----------
    step : int or None
        The step that has no solution, where it is one step.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class UnboundedError(Exception):
    """The dynamics themselves have no bounded state."""


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

    def solve(
        self, start: Tensor, guess: Tensor, drift: Callable[[Tensor], Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the state at the nodes and its drift."""
        state, change, size = guess, np.inf, 1.0
        anderson = _Anderson()
        for iteration in range(MAX_ITERATIONS):
            slope = drift(state)
            new = start + torch.einsum("jk,kbrn->jbrn", self.accumulate, slope)
            change, size = float((new - state).abs().max()), float(new.abs().max())
            if not np.isfinite(change + size):
                raise UnboundedError
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
            f"moves by {change / size:.1e} of its size after {MAX_ITERATIONS} iterations",
            step,
        )


class _Anderson:
    """Anderson acceleration, each replicate for itself.

    The next state is the combination of the last ones whose images are nearest to themselves.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = self.steps = self.changes = torch.empty(0)

    def next(self, state: Tensor, image: Tensor) -> Tensor:
        def flat(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, 1).flatten(1)

        x, residual = flat(state), flat(image - state)
        if self.count:
            place = (self.count - 1) % ANDERSON_MEMORY
            self.steps[:, place] = x - self.last[0]
            self.changes[:, place] = residual - self.last[1]
        else:
            # All that is remembered, once: with many rows a state is large.
            size = (len(x), ANDERSON_MEMORY, x.shape[1])
            self.steps, self.changes = x.new_empty(size), x.new_empty(size)
        self.last = torch.stack([x, residual])
        self.count += 1
        if self.count == 1:
            return image
        steps, changes = (kept[:, : self.count - 1] for kept in (self.steps, self.changes))
        gram = changes @ changes.mT
        # A ridge at the level of rounding: changes that have become dependent, or have ended in a
        # replicate that has converged before the others, are no obstacle.
        rounding = torch.finfo(gram.dtype)
        ridge = 50 * rounding.eps * gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        ridge = ridge.clamp_min(rounding.tiny)[:, None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram + ridge * eye, changes @ residual[..., None]).mT
        new = x + residual - (weights @ steps + weights @ changes)[:, 0]
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


def _moved(old: Tensor, new: Tensor) -> float:
    return float((new - old).abs().max()) / max(1.0, float(new.abs().max()))


@dataclass(frozen=True)
class Settled:
    """States of a step: at the nodes, their drifts, and what they are at s = 1."""

    w: Tensor
    slope: Tensor
    end: Tensor
    output: Tensor
    gradient: Tensor
    z: Tensor
    z_slope: Tensor
    z_end: Tensor


class Fields:
    """The states over depth of one training step after the other, and the units they train.

    A pass over all units costs far more than one over a few of them, and the map of a few has
    nearly the derivative of the map of all. With F the drift of all units, f that of a part, and
    ``d = F(w) - f(w)`` the defect of the part at the current state, the next state is the fixed
    point of ``f + d``, which is iterated on the part alone. At a state that no longer moves the
    fixed point is that of F. One pass gains what 1 - f'/F' leaves, a factor of 30 to 300, and the
    first state of a step has the defect that the steps before extrapolate to.

    If the passes do not converge, or if the part has no bounded fixed point, the part is all units
    from there on: then this is plain iteration.
    """

    def __init__(
        self,
        units: Units,
        sample: UnitSample,
        grid: DepthGrid,
        tolerance: float,
        largest: float,
        name: str,
    ):
        device = units.chunks[0].incoming.device

        def put(matrix: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(matrix)).to(device)

        self.units = units
        self.group = sample.group
        self.tolerance = tolerance
        self.largest = largest
        self.name = name
        self.hidden = _FixedPoint(put(grid.forward), tolerance, name)
        self.backward = _FixedPoint(put(grid.backward), tolerance, name)
        self.total = put(grid.total)
        self.passes = 0
        # What one pass has been seen to leave of an error.
        self.gain = 1.0
        self.settled: tuple[Tensor, Tensor] | None = None
        self._take_part(max(_PART_POINTS * sample.replicates / units.size, 1 / _PART_SHARE))

    def _take_part(self, share: float) -> None:
        self.part = self.units if share > _WHOLE_SHARE else self.units.part(share, self.group)
        self.hidden_change, self.backward_change = _Forecast(), _Forecast()
        self.hidden_defect, self.backward_defect = _Forecast(), _Forecast()

    def settle(
        self, start: Tensor, read: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], step: int
    ) -> Settled:
        """Find the states of a step.

        Parameters
        ----------
        start : Tensor, shape (replicates, r, rows)
            Hidden state at s = 0.
        read : callable
            Output, its gradient, and the backward state at s = 1, given the hidden state there.
        step : int
            For messages.
        """
        while True:
            try:
                return self._settle(start, read, step)
            except (UnboundedError, LimitError) as error:
                self._train()
                if self.part is self.units:
                    raise
                logger.debug("%s: step %d: %s: from here on with all units", self.name, step, error)
                self._take_part(1.0)

    def train(self, w: Tensor, z: Tensor) -> None:
        """Let the units take their gradient step, all but the part when they are next needed."""
        if self.part is not self.units:
            self.part.update(w, z)
        self.settled = w, z

    def _train(self) -> None:
        settled, self.settled = self.settled, None
        if settled is not None:
            self.units.update(*settled)

    def _settle(
        self, start: Tensor, read: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], step: int
    ) -> Settled:
        shape = (self.hidden.accumulate.shape[0], *start.shape)
        whole = self.part is self.units
        if whole:
            self._train()
        zero = torch.zeros((), dtype=start.dtype, device=start.device)
        hidden_defect = zero if whole else zero + self.hidden_defect.next()
        backward_defect = zero if whole else zero + self.backward_defect.next()

        def forward(guess: Tensor) -> tuple[Tensor, Tensor]:
            return self.hidden.solve(
                start, guess, lambda w: self.part.forward_drift(w) + hidden_defect, step
            )

        def backward(z_end: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
            return self.backward.solve(z_end, guess, lambda z: drift(z) + backward_defect, step)

        def onward(slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            end = start + torch.einsum("k,kbrn->brn", self.total, slope)
            # The mean square over coordinates of h is the square of w (docs/concepts/limits.md).
            if float(end.square().sum(1).mean(1).max().sqrt()) > self.largest:
                raise UnboundedError
            return end, *read(end)

        w, slope = forward((start + self.hidden_change.next()).expand(shape))
        end, output, gradient, z_end = onward(slope)
        drift = self.part.backward_drift(w)
        z, z_slope = backward(z_end, (z_end + self.backward_change.next()).expand(shape))
        change = math.inf
        for _ in range(0 if whole else MAX_PASSES):
            self.passes += 1
            settled, self.settled = self.settled, None
            forward_all, backward_all = self.units.drifts(w, z, settled)
            hidden_defect = forward_all - self.part.forward_drift(w)
            backward_defect = backward_all - drift(z)
            old, before = (w, z), change
            w, slope = forward(w)
            end, output, gradient, z_end = onward(slope)
            drift = self.part.backward_drift(w)
            z, z_slope = backward(z_end, z)
            change = max(_moved(*pair) for pair in zip(old, (w, z), strict=True))
            if before < math.inf:
                self.gain = min(1.0, max(_BEST_GAIN, change / before))
            if self.gain * change <= self.tolerance:
                break
        else:
            if not whole:
                raise LimitError(
                    f"{self.name}: {MAX_PASSES} passes do not settle step {step}: it still moves "
                    f"by {change:.1e} of its size",
                    step,
                )
        self.hidden_change.add(w - start)
        self.backward_change.add(z - z_end)
        self.hidden_defect.add(hidden_defect)
        self.backward_defect.add(backward_defect)
        return Settled(w, slope, end, output, gradient, z, z_slope, z_end)

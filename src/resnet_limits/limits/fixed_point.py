"""Fixed points over depth: the states of one training step.

They are found on a small part of the units and corrected with all of them, as on the coarse grid of
a multigrid method: see :class:`Fields`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.ensemble import Seen
from resnet_limits.limits.layer import Drifts, Layer, total

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

    The drift of a layer is the sum of those of its branches.

    The map is a Volterra operator, so plain (Picard) iteration converges faster than any geometric
    series, whatever the number of nodes. Where its norm is so large that the powers grow beyond
    rounding before they fall, Anderson's acceleration takes over.
    """

    def __init__(self, accumulate: Tensor, tolerance: float, name: str):
        self.accumulate = accumulate
        self.tolerance = tolerance
        self.name = name

    def solve(
        self, start: Tensor, guess: Tensor, drift: Callable[[Tensor], Drifts], step: int
    ) -> tuple[Tensor, Drifts]:
        """Return the state at the nodes and the branches' drifts."""
        state, change, size = guess, np.inf, 1.0
        anderson = _Anderson()
        for iteration in range(MAX_ITERATIONS):
            slopes = drift(state)
            new = start + torch.einsum("jk,kbrn->jbrn", self.accumulate, total(slopes))
            change, size = float((new - state).abs().max()), float(new.abs().max())
            if not np.isfinite(change + size):
                raise UnboundedError
            if change <= self.tolerance * max(1.0, size):
                return new, slopes
            if iteration == PICARD_ITERATIONS:
                state = guess
            elif iteration > PICARD_ITERATIONS:
                state = anderson.next(state, new)
            else:
                state = new
        raise LimitError(
            f"{self.name}: the fixed point over depth did not converge at step {step}: the state "
            f"still moves by {change / size:.1e} of its size after {MAX_ITERATIONS} iterations",
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
    """Extrapolation of a sequence by the polynomial through its last members, three by default."""

    def __init__(self, members: int = 3) -> None:
        self.members = members
        self.last: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        self.last = [*self.last, state][-self.members :]

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
    """States of a step.

    Attributes
    ----------
    w, z : list of Tensor
        Those inside of the layer at the nodes, one a branch.
    slope, z_slope : Tensor
        Drifts of the layer at the nodes.
    end, z_end : Tensor
        The states at s = 1.
    output : Tensor
        The output.
    """

    w: list[Tensor]
    slope: Tensor
    end: Tensor
    output: Tensor
    z: list[Tensor]
    z_slope: Tensor
    z_end: Tensor


class Fields:
    """The states over depth of one training step after the other, and the units they train.

    A pass over all units costs far more than one over a few of them, and the map of a few has
    nearly the derivative of the map of all. With F the drift of all units, f that of a part, and
    ``d = F(w) - f(w)`` the defect of the part at the current state, the next state is the fixed
    point of ``f + d``, which is iterated on the part alone. At a state that no longer moves the
    fixed point is that of F. One pass gains what 1 - f'/F' leaves, a factor of 30 to 300, and the
    first state of a step has the defect that the steps before extrapolate to. Each branch has its
    own defect, so that the states inside of a layer come out right as well.

    If the passes do not converge, or if the part has no bounded fixed point, the part is all units
    from there on: then this is plain iteration.

    Parameters
    ----------
    layer : Layer
        All units.
    grid : DepthGrid
        The depth grid.
    tolerance : float
        Of the states, relative to their largest entry or to 1.
    largest : float
        RMS of a state above which it counts as unbounded.
    smooth : bool
        Whether states change smoothly from step to step, so that forecasts pay.
    name : str
        What is being solved, for messages.
    """

    def __init__(
        self,
        layer: Layer,
        grid: DepthGrid,
        tolerance: float,
        largest: float,
        smooth: bool,
        name: str,
    ):
        device = layer.branches[0].device

        def put(matrix: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(matrix)).to(device)

        self.layer = layer
        self.tolerance = tolerance
        self.largest = largest
        self.members = 3 if smooth else 1
        self.name = name
        self.hidden = _FixedPoint(put(grid.forward), tolerance, name)
        self.backward = _FixedPoint(put(grid.backward), tolerance, name)
        self.total = put(grid.total)
        self.passes = 0
        # What one pass has been seen to leave of an error.
        self.gain = 1.0
        self.settled: list[Seen] | None = None
        self._take_part(max(_PART_POINTS * layer.replicates / layer.size, 1 / _PART_SHARE))

    def _take_part(self, share: float) -> None:
        self.part = self.layer if share > _WHOLE_SHARE else self.layer.part(share)
        changes = (_Forecast(self.members) for _ in range(4))
        self.hidden_change, self.backward_change, self.hidden_defect, self.backward_defect = changes

    def settle(
        self, start: Tensor, read: Callable[[Tensor], tuple[Tensor, Tensor]], step: int
    ) -> Settled:
        """Find the states of a step.

        Parameters
        ----------
        start : Tensor, shape (replicates, r, rows)
            Hidden state at s = 0.
        read : callable
            Output, and the backward state at s = 1, given the hidden state there.
        step : int
            For messages.
        """
        while True:
            try:
                return self._settle(start, read, step)
            except (UnboundedError, LimitError) as error:
                self._train()
                if self.part is self.layer:
                    raise
                logger.debug("%s: step %d: %s: from here on with all units", self.name, step, error)
                self._take_part(1.0)

    def train(self, step: int, w: Sequence[Tensor], z: Sequence[Tensor]) -> None:
        """Let the units take a training step, all but the part when they are next needed.

        Parameters
        ----------
        step : int
            The state's number.
        w, z : sequence of Tensor
            The states inside of the layer by which they learn.
        """
        self.settled = self.layer.seen(step, w, z)
        if self.part is not self.layer:
            self.part.update(self.settled)

    def _train(self) -> None:
        settled, self.settled = self.settled, None
        if settled is not None:
            self.layer.update(settled)

    def _settle(
        self, start: Tensor, read: Callable[[Tensor], tuple[Tensor, Tensor]], step: int
    ) -> Settled:
        shape = (self.hidden.accumulate.shape[0], *start.shape)
        whole = self.part is self.layer
        if whole:
            self._train()
        zero = start.new_zeros(len(self.layer.branches), *(1 for _ in shape))
        hidden_defect = zero if whole else zero + self.hidden_defect.next()
        backward_defect = zero if whole else zero + self.backward_defect.next()

        def forward(guess: Tensor) -> tuple[Tensor, Drifts]:
            return self.hidden.solve(
                start, guess, lambda w: self.part.forward_drifts(w, hidden_defect), step
            )

        def backward(z_end: Tensor, guess: Tensor) -> tuple[Tensor, Drifts]:
            return self.backward.solve(z_end, guess, lambda z: drifts(z, backward_defect), step)

        def onward(slopes: Drifts) -> tuple[Tensor, Tensor, Tensor]:
            end = start + torch.einsum("k,kbrn->brn", self.total, total(slopes))
            # The mean square over coordinates of h is the square of w (docs/concepts/limits.md).
            if float(end.square().sum(1).mean(1).max().sqrt()) > self.largest:
                raise UnboundedError
            return end, *read(end)

        w, slopes = forward((start + self.hidden_change.next()).expand(shape))
        end, output, z_end = onward(slopes)
        before = self.layer.inside(w, slopes)
        drifts = self.part.backward_drifts(before)
        z, z_slopes = backward(z_end, (z_end + self.backward_change.next()).expand(shape))
        after = self.layer.inside_backward(z, z_slopes)
        change = math.inf
        for _ in range(0 if whole else MAX_PASSES):
            self.passes += 1
            settled, self.settled = self.settled, None
            forward_all, backward_all = self.layer.drifts(before, after, settled)
            forward_part, backward_part = self.part.drifts(before, after)
            hidden_defect = forward_all - forward_part
            backward_defect = backward_all - backward_part
            old, last = (*before, *after), change
            w, slopes = forward(w)
            end, output, z_end = onward(slopes)
            before = self.layer.inside(w, slopes)
            drifts = self.part.backward_drifts(before)
            z, z_slopes = backward(z_end, z)
            after = self.layer.inside_backward(z, z_slopes)
            change = max(_moved(*pair) for pair in zip(old, (*before, *after), strict=True))
            if last < math.inf:
                self.gain = min(1.0, max(_BEST_GAIN, change / last))
            if self.gain * change <= self.tolerance:
                break
        else:
            if not whole:
                raise LimitError(
                    f"{self.name}: step {step} has not settled after {MAX_PASSES} passes: its "
                    f"states still move by {change:.1e} of their size",
                    step,
                )
        self.hidden_change.add(w - start)
        self.backward_change.add(z - z_end)
        self.hidden_defect.add(hidden_defect)
        self.backward_defect.add(backward_defect)
        return Settled(before, total(slopes), end, output, after, total(z_slopes), z_end)

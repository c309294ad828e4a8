"""A_W: the noise of finite width in the hidden states, sqrt(D/(L M)).

The kernels of the branches (:mod:`.responses`) at the states of the limit, joined by what norms and
trained embeddings do to a coordinate, and carried to the last layer, or to any depth
(:mod:`.transport`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes.changes import DEPTHS
from resnet_limits.limits.amplitudes.responses import BranchKernels, Steps, branch_kernels
from resnet_limits.limits.amplitudes.transport import Carrier, end_variance, variance_at
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.quadrature import CUBATURE
from resnet_limits.limits.trajectories import Trajectories
from resnet_limits.norms import Norm


@dataclass(frozen=True)
class Identity:
    """The check that kernels make the drifts: ``sum_q K^h_kq z_q`` is that of w_k, K^b that of z.

    Attributes
    ----------
    drift : float
        RMS of the drifts of both states.
    deviation : float
        RMS of what the kernels' drifts differ from them by, means over the scramblings.
    stderr : float
        Standard error of that, over the scramblings.
    """

    drift: float
    deviation: float
    stderr: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is one of the quadrature, and small beside the drifts."""
        return self.deviation <= _SIGNIFICANT * self.stderr + _ROUNDING * self.drift


# Many numbers go into an RMS, so that it exceeds its expectation by a part of it only; but these
# are correlated, and a standard error over few scramblings is itself uncertain.
_SIGNIFICANT = 3.0
_ROUNDING = 1e-3


@dataclass(frozen=True)
class States:
    """States of the limit at the depth nodes and at the ends, in float64.

    Attributes
    ----------
    w, z : Tensor, shape (replicates, nodes, Q, r)
        Hidden and backward states as units see them; Q pairs (step, row).
    w_end : Tensor, shape (replicates, Q, r)
        The hidden state at s = 1.
    drift, drift_back : Tensor, shape (replicates, nodes, Q, r)
        Slopes of w and of -z in depth.
    cotangent : Tensor, shape (replicates, Q, d_out)
        ``R omega grad_f loss``.
    """

    w: Tensor
    z: Tensor
    w_end: Tensor
    drift: Tensor
    drift_back: Tensor
    cotangent: Tensor

    def of(self, replicate: int) -> States:
        """Give those of one scrambling."""
        one = slice(replicate, replicate + 1)
        return States(**{field.name: getattr(self, field.name)[one] for field in fields(States)})


def limit_states(
    trajectories: Trajectories, plan: Plan, root: Array, layers: int | None = None
) -> tuple[States, DepthGrid]:
    """Solve the limit of a Gram root with a plan's points, and take its states at the nodes.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Points, nodes and scramblings.
    root : ndarray, shape (r, r)
        Root of the Gram matrix.
    layers : int, optional
        L of the limit of infinite width; continuous depth if left out.

    Raises
    ------
    LimitError
        If it cannot be solved.
    """
    dynamics = trajectories.dynamics
    make = depth.of_layers(layers)
    grid = make(plan.nodes)
    solved = trajectories.solve(root, make, plan, "amplitudes: width")

    def at_end(states: Array, knot: int) -> Tensor:
        # (replicates, steps, knots, rows, r) -> (replicates, Q, r)
        return torch.from_numpy(states[:, :, knot]).flatten(1, 2)

    def at_nodes(states: Array, first: int, to_knots: Array, to_nodes: Array) -> list[Tensor]:
        """Give the states that units see, from where they are known, and their slopes."""
        start = states[:, :, first, None]
        slopes = np.einsum("nm,bkmia->bknia", np.linalg.pinv(to_knots), states - start)
        seen = start + np.einsum("nm,bkmia->bknia", to_nodes, slopes)
        # (replicates, steps, nodes, rows, r) -> (replicates, nodes, Q, r)
        return [torch.from_numpy(x).transpose(1, 2).flatten(2, 3) for x in (seen, slopes)]

    w, drift = at_nodes(solved.hidden, 0, grid.forward_knots, grid.forward)
    z, drift_back = at_nodes(solved.backward, -1, grid.backward_knots, grid.backward)
    targets = torch.from_numpy(dynamics.targets)
    output = torch.from_numpy(solved.output)
    cotangents = [
        dynamics.cotangent(output[:, step], targets, step) for step in range(dynamics.steps)
    ]
    states = States(
        w=w,
        z=z,
        w_end=at_end(solved.hidden, -1),
        drift=drift,
        drift_back=drift_back,
        cotangent=torch.stack(cotangents, dim=1).flatten(1, 2),
    )
    return states, grid


def width_variance(
    trajectories: Trajectories, plan: Plan, root: Array | None = None, layers: int | None = None
) -> tuple[Array, Identity]:
    """Find A_W^2 of the hidden state at the last layer.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Points, nodes and scramblings.
    root : ndarray, shape (r, r), optional
        Root of the embedding's Gram matrix; that of the DMFT limit if left out. With one of finite
        D the amplitude is that of networks with this embedding, to the next order in 1/D.
    layers : int, optional
        L of the networks; their limit of large L if left out. Only where a layer is one branch, as
        what the branches of one layer do to each other is of order 1/L and left out here.

    Returns
    -------
    variance : ndarray, shape (replicates, K)
        (L M/D) times the mean over rows of the variance of a coordinate, of each scrambling.
    identity : Identity
        The check.

    Raises
    ------
    LimitError
        If the limit cannot be solved.
    ValueError
        If a layer has several branches, and `layers` is given.
    """
    if layers is not None and (branches := len(trajectories.dynamics.layer)) > 1:
        raise ValueError(f"{branches} branches in a layer: need 1 where layers is given")
    root = trajectories.limit_root if root is None else root
    return _variance(trajectories, plan, root, layers, end_variance)


def width_variance_at(trajectories: Trajectories, plan: Plan) -> tuple[Array, Identity]:
    """Find A_W^2 of the hidden state over the depth.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Points, nodes and scramblings.

    Returns
    -------
    variance : ndarray, shape (replicates, K, n)
        As `width_variance` gives it, at `changes.DEPTHS`; the last is that at s = 1.
    identity : Identity
        The check.

    Raises
    ------
    LimitError
        If the limit cannot be solved.
    """

    def at_all(carrier: Carrier, grid: DepthGrid) -> Array:
        within = variance_at(carrier, grid, DEPTHS[:-1])
        return np.column_stack([within, end_variance(carrier, grid)])

    return _variance(trajectories, plan, trajectories.limit_root, None, at_all)


def _variance(
    trajectories: Trajectories,
    plan: Plan,
    root: Array,
    layers: int | None,
    of: Callable[[Carrier, DepthGrid], Array],
) -> tuple[Array, Identity]:
    """Take the means over rows of the variances that what carries the noise gives, (Q, ...)."""
    dynamics = trajectories.dynamics
    states, grid = limit_states(trajectories, plan, root, layers)
    samples = trajectories.sample(plan, range(plan.replicates), plan.quadrature == CUBATURE)
    rows, variances, found = len(dynamics.inputs), [], []
    # One scrambling after the other: kernels are large.
    for replicate in range(len(states.w)):
        own = states.of(replicate)
        reads = [branch.norm.forward(own.w, -1, 1.0) for branch in dynamics.layer]
        kernels = [
            branch_kernels(dynamics, branch, sample.of(replicate), grid.total, u, own.z)
            for branch, sample, u in zip(dynamics.layer, samples, reads, strict=True)
        ]
        found.append(_drifts(dynamics, own, reads, kernels))
        variance = of(_carrier(dynamics, own, reads, kernels, root), grid)
        variances.append(variance.reshape(-1, rows, *variance.shape[1:]).mean(axis=1))
    return np.stack(variances), _identity(states, torch.cat(found, dim=1))


def _drifts(
    dynamics: Dynamics, states: States, reads: list[Tensor], kernels: list[BranchKernels]
) -> Tensor:
    """Give the drifts that the kernels make of the states, forward and backward."""
    forward, backward = torch.zeros_like(states.w), torch.zeros_like(states.w)
    for branch, u, kernel in zip(dynamics.layer, reads, kernels, strict=True):
        forward += kernel.forward @ states.z
        backward += branch.norm.pull_back(states.w, kernel.backward @ u, -1, 1.0)
    return torch.stack([forward, backward])


def _identity(states: States, found: Tensor) -> Identity:
    drifts = torch.stack([states.drift, states.drift_back])
    gap = found - drifts
    replicates = gap.shape[1]
    stderr = gap.std(1) / replicates**0.5 if replicates > 1 else torch.zeros(1)
    return Identity(*(float(x.square().mean().sqrt()) for x in (drifts, gap.mean(1), stderr)))


def _carrier(
    dynamics: Dynamics,
    states: States,
    reads: list[Tensor],
    kernels: list[BranchKernels],
    root: Array,
) -> Carrier:
    """Join what the branches, the norms and the embeddings do to a coordinate."""
    w = states.w[0]
    totals = [torch.zeros_like(kernels[0].forward[0]) for _ in range(4)]
    forward, backward, forward_noise, backward_noise = totals
    for branch, u, kernel in zip(dynamics.layer, reads, kernels, strict=True):
        forward += kernel.forward[0]
        forward_noise += kernel.forward_noise[0]
        drift = kernel.backward[0] @ u[0]
        factor, bend = _coordinate_norm(branch.norm, w, drift)
        both = factor[:, :, None] * factor[:, None, :]
        backward += both * kernel.backward[0] + torch.diag_embed(bend)
        backward_noise += both * kernel.backward_noise[0]
    start, end = _ends(dynamics, states, root)
    parts = (forward, backward, start, end, forward_noise, backward_noise)
    return Carrier(len(dynamics.inputs), *(part.numpy() for part in parts))


def _coordinate_norm(norm: Norm, state: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Give what a norm does to the noise of one coordinate, which is orthogonal to the states.

    It takes delta h to ``factor delta h``, and delta v, beside delta h, to ``factor delta v + bend
    delta h``.

    Parameters
    ----------
    state, cotangent : Tensor, shape (..., r)
        What the norm reads, and the cotangent of what it gives.
    """
    q = state.square().sum(-1)
    return norm.factor(q), 2.0 * norm.slope(q) * (state * cotangent).sum(-1)


def _ends(dynamics: Dynamics, states: States, root: Array) -> tuple[Tensor, Tensor]:
    """Give what the embeddings and the final norm make of a coordinate's noise: E_0 and E_1."""
    x = torch.from_numpy(dynamics.inputs).repeat(dynamics.steps, 1)
    of_embedding, of_unembedding = (
        Steps.of(dynamics, rate, dynamics.residual_scale)
        for rate in (dynamics.rate_embedding, dynamics.rate_unembedding)
    )
    start = -of_embedding.past * (x @ x.T)
    w, cotangent = states.w_end[0], states.cotangent[0]
    learned = -of_unembedding.past * (cotangent @ cotangent.T)
    readout = torch.from_numpy(root[:, dynamics.inputs.shape[1] :])
    pulled = of_unembedding.initial[:, None] * (cotangent @ readout.T)
    pulled += learned @ dynamics.final_norm.forward(w, -1, 1.0)
    factor, bend = _coordinate_norm(dynamics.final_norm, w, pulled)
    return start, factor[:, None] * learned * factor + torch.diag(bend)

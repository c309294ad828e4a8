"""Training of finite networks: the one door to the engines.

An engine holds a batch of networks of one shape and offers a forward and a backward pass; this
module runs the training steps, watches for divergence, and collects the states that are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.config import InputError
from resnet_limits.dynamics import Dynamics, largest_size
from resnet_limits.kinds import DIVERGED, OK, Shape
from resnet_limits.networks import cost, dense, implicit
from resnet_limits.networks.base import Network
from resnet_limits.work import MemoryRefusedError, Work, saved_bytes

logger = logging.getLogger(__name__)


ENGINES: dict[str, Callable[..., Network]] = {
    "dense": dense.DenseNetwork,
    "implicit": implicit.ImplicitNetwork,
}
"""``(dynamics, shape, seeds, embedding, root_seed, *, dtype, device) -> Network``, by name."""


@dataclass(frozen=True)
class Training:
    """States of trained networks.

    Attributes
    ----------
    output : ndarray, shape (S, kept steps, rows, d_out)
        Outputs f; NaN from the step of divergence on, as all states.
    loss : ndarray, shape (S, kept steps)
        Training loss.
    hidden, backward : ndarray, shape (S, kept steps, kept layers, rows, D)
        h and b.
    status : ndarray of int8, shape (S,)
        0 ok, 1 diverged.
    diverged_step : ndarray of int64, shape (S,)
        First step without a finite state of bounded size, or with a kept one that `saved_dtype`
        cannot hold; -1 if there is none.
    overflowed : ndarray of bool, shape (S,)
        Whether a run has diverged only because `saved_dtype` cannot hold its states.
    """

    output: NDArray[np.float64]
    loss: NDArray[np.float64]
    hidden: NDArray[np.floating]
    backward: NDArray[np.floating]
    status: NDArray[np.int8]
    diverged_step: NDArray[np.int64]
    overflowed: NDArray[np.bool_]


def choose_engine(
    engine: str, dynamics: Dynamics, shape: Shape, seeds: int, dtype: torch.dtype
) -> cost.Choice:
    """Return the engine that trains a shape, and why it was chosen.

    Parameters
    ----------
    engine : str
        A key of :data:`ENGINES`, or ``auto`` for the one that the cost model takes.
    dynamics : Dynamics
        The training problem.
    shape : Shape
        L, M, D.
    seeds : int
        Number of seeds.
    dtype : torch dtype
        Arithmetic.

    Raises
    ------
    InputError
        If the engine is not available, or does not train this problem.
    """
    reason = implicit.refusal(dynamics, dtype)
    if engine == "auto":
        work = Work.of(dynamics, shape, seeds, dtype.itemsize)
        return cost.choose(replace(work, dense_only=bool(reason)))
    if engine not in ENGINES:
        raise InputError(
            f"sweep.engine: engine {engine!r} is not available; allowed: auto, {', '.join(ENGINES)}"
        )
    if engine == "implicit" and reason:
        raise InputError(reason)
    return cost.Choice(engine, "asked for")


# Numbers that grow beyond all bounds are divergence, which is looked out for.
@np.errstate(over="ignore", invalid="ignore")
def train(
    dynamics: Dynamics,
    shape: Shape,
    seeds: Sequence[int],
    embedding: Callable[[int], NDArray[np.float64]],
    root_seed: int,
    *,
    steps: Sequence[int],
    layers: Sequence[int],
    engine: str = "dense",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    memory_limit: int | None = None,
    saved_dtype: type[np.floating] = np.float32,
) -> Training:
    """Train networks of one shape, as many seeds side by side as is sensible.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    shape : Shape
        L, M, D.
    seeds : sequence of int
        Seeds of embeddings and block weights.
    embedding : callable
        ``seed -> (D, r)`` embedding rows.
    root_seed : int
        Root of the random streams.
    steps, layers : sequence of int
        Training steps and layers (0..L) whose states are kept.
    engine : str
        A key of :data:`ENGINES`.
    dtype, device : torch dtype and device
        Arithmetic.
    memory_limit : int, optional
        Bytes that a batch of networks, and the kept states of all, may take.
    saved_dtype : numpy dtype
        Of the kept hidden and backward states.

    Raises
    ------
    MemoryRefusedError
        If that is more than `memory_limit`.
    """
    saved = saved_bytes(
        shape, len(dynamics.inputs), steps, layers, len(seeds), np.dtype(saved_dtype).itemsize
    )
    work = Work.of(dynamics, shape, len(seeds), dtype.itemsize, saved)
    peak = cost.peak_bytes(engine, work)
    if memory_limit is not None and peak > memory_limit:
        raise MemoryRefusedError(
            f"network L={shape.depth} M={shape.width} D={shape.embed_dim}: the {engine} engine "
            f"needs {(peak - saved) / 2**30:.1f} GiB of memory, the states that are kept "
            f"{saved / 2**30:.1f} GiB, and {memory_limit / 2**30:.1f} GiB are available; "
            "allowed: a smaller shape, fewer save.depth_points, numerics.precision float32"
            + (" or sweep.engine implicit" if engine == "dense" else "")
        )
    together = cost.batch(engine, work)
    batches = [seeds[i : i + together] for i in range(0, len(seeds), together)]
    parts = []
    for batch in batches:
        network = ENGINES[engine](
            dynamics,
            shape,
            batch,
            np.stack([embedding(seed) for seed in batch]),
            root_seed,
            dtype=dtype,
            device=device,
        )
        parts.append(vars(_run(network, steps, layers, saved_dtype)))
        del network
    if len(parts) == 1:
        return Training(**parts[0])
    # One array after the other, each leaving its parts: the states of all seeds may be large.
    fields = Training.__dataclass_fields__
    return Training(**{name: np.concatenate([part.pop(name) for part in parts]) for name in fields})


def _run(
    network: Network,
    steps: Sequence[int],
    layers: Sequence[int],
    saved_dtype: type[np.floating],
) -> Training:
    """Train one batch, keeping the states that are asked for."""
    dynamics, depth = network.dynamics, network.shape.depth
    batch, rows, embed_dim = network.hidden.shape[1:]
    places = {step: index for index, step in enumerate(steps)}
    kept_shape = (batch, len(steps), len(layers), rows, embed_dim)
    hidden = np.full(kept_shape, np.nan, dtype=saved_dtype)
    backward = np.full(kept_shape, np.nan, dtype=saved_dtype)
    output = np.full((batch, len(steps), rows, dynamics.targets.shape[1]), np.nan)
    loss = np.full((batch, len(steps)), np.nan)
    diverged_step = np.full(batch, -1, dtype=np.int64)
    overflowed = np.zeros(batch, dtype=bool)
    alive = np.ones(batch, dtype=bool)
    bound = np.zeros(batch)
    saved = getattr(torch, np.dtype(saved_dtype).name)

    def keep(states: Tensor) -> Tensor:
        return states[list(layers)].to(saved)

    for step in range(dynamics.steps):
        f = network.forward_pass()
        value = dynamics.value(f, network.targets)
        # The largest RMS over the layers and branches; NaN anywhere comes through.
        size = _sizes(network.states)
        if step == 0:
            bound = largest_size(dynamics, size[0])
        growth = size.max(axis=0)
        sound = np.isfinite(growth) & (growth <= bound)
        sound &= torch.isfinite(value).cpu().numpy()
        sound &= _finite(f[None])
        last = step + 1 == dynamics.steps
        place = places.get(step)
        if (alive & sound).any() and (not last or place is not None):
            network.backward_pass(dynamics.cotangent(f, network.targets, step), update=not last)
            for cotangents in network.cotangents:
                sound &= _finite(cotangents)
        if place is not None:
            states = keep(network.hidden), keep(network.backward)
            held = _finite(states[0]) & _finite(states[1])
            overflowed |= alive & sound & ~held
            sound &= held
        diverged_step[alive & ~sound] = step
        alive &= sound
        if not alive.any():
            break
        if place is not None:
            output[alive, place] = f.double().cpu().numpy()[alive]
            loss[alive, place] = value.double().cpu().numpy()[alive]
            for kept, new in zip((hidden, backward), states, strict=True):
                kept[alive, place] = new.transpose(0, 1).cpu().numpy()[alive]
        logger.debug("L=%d: step %d of %d", depth, step + 1, dynamics.steps)
    return Training(
        output=output,
        loss=loss,
        hidden=hidden,
        backward=backward,
        status=np.where(diverged_step >= 0, DIVERGED, OK).astype(np.int8),
        diverged_step=diverged_step,
        overflowed=overflowed,
    )


def _sizes(states: Sequence[Tensor]) -> NDArray[np.float64]:
    """RMS of a seed's states ``(n, S, rows, D)`` over rows and coordinates; shape (all n, S)."""
    norms = [torch.linalg.vector_norm(each, dim=(2, 3), dtype=torch.float64) for each in states]
    found: NDArray[np.float64] = torch.cat(norms).cpu().numpy()
    return found / np.sqrt(states[0].shape[2] * states[0].shape[3])


def _finite(states: Tensor) -> NDArray[np.bool_]:
    """Whether all numbers of a seed are finite, in states ``(n, S, rows, size)``; shape (S,)."""
    # The ends of the range are NaN where any number is, and cost a fraction of a look at each.
    ends = torch.stack([states.amax((0, 2, 3)), states.amin((0, 2, 3))])
    found: NDArray[np.bool_] = torch.isfinite(ends).all(0).cpu().numpy()
    return found

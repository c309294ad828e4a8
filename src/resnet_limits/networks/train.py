"""Training of finite networks: the one door to the engines.

An engine holds a batch of networks of one shape and offers a forward and a backward pass; this
module runs the training steps, watches for divergence, and collects the states that are kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

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


class Kept(Protocol):
    """Takes the states ``(kept layers, rows, D)`` of a seed and a kept step; NaN without them."""

    def __setitem__(self, place: tuple[int, int], block: NDArray[Any], /) -> None: ...


class _Ending(NamedTuple):
    """What `Training` says of a batch, beside its states."""

    output: NDArray[np.float64]
    loss: NDArray[np.float64]
    status: NDArray[np.int8]
    diverged_step: NDArray[np.int64]
    overflowed: NDArray[np.bool_]


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
        h and b; of the type that `train` was given where they are not in memory.
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
    hidden: Any
    backward: Any
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
    elsewhere: Callable[[tuple[int, ...], type[np.floating]], Kept] | None = None,
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
    elsewhere : callable, optional
        ``(shape, dtype) -> Kept``: makes room outside of memory for states that are too many for
        it (`cost.in_pieces`, or `memory_limit`). Without it all are kept in memory.

    Raises
    ------
    MemoryRefusedError
        If that is more than `memory_limit`.
    OSError
        If there is no room elsewhere.
    """
    saved = saved_bytes(
        shape, len(dynamics.inputs), steps, layers, len(seeds), np.dtype(saved_dtype).itemsize
    )
    work = Work.of(dynamics, shape, len(seeds), dtype.itemsize, saved)
    limit = math.inf if memory_limit is None else memory_limit
    in_pieces = elsewhere is not None and (
        cost.in_pieces(work) or cost.peak_bytes(engine, work) > limit
    )
    peak = cost.peak_bytes(engine, work, in_pieces=in_pieces)
    if peak > limit:
        held = cost.held_bytes(engine, work, in_pieces=in_pieces)
        raise MemoryRefusedError(
            f"network L={shape.depth} M={shape.width} D={shape.embed_dim}: the {engine} engine "
            f"needs {(peak - held) / 2**30:.1f} GiB of memory, the states that are kept "
            f"{held / 2**30:.1f} GiB{' at a time' if in_pieces else ''} until they are written, "
            f"and {limit / 2**30:.1f} GiB are available; "
            "allowed: a smaller shape, fewer save.depth_points, numerics.precision float32"
            + (" or sweep.engine implicit" if engine == "dense" else "")
        )
    kept_shape = (len(seeds), len(steps), len(layers), len(dynamics.inputs), shape.embed_dim)
    hidden, backward = (
        elsewhere(kept_shape, saved_dtype)
        if elsewhere is not None and in_pieces
        else np.full(kept_shape, np.nan, dtype=saved_dtype)
        for _ in range(2)
    )
    together = cost.batch(engine, work)
    endings = []
    for first in range(0, len(seeds), together):
        batch = seeds[first : first + together]
        network = ENGINES[engine](
            dynamics,
            shape,
            batch,
            np.stack([embedding(seed) for seed in batch]),
            root_seed,
            dtype=dtype,
            device=device,
        )
        endings.append(_run(network, steps, layers, saved_dtype, (hidden, backward), first))
        del network
    ending = _Ending(*map(np.concatenate, zip(*endings, strict=True)))
    return Training(hidden=hidden, backward=backward, **ending._asdict())


def _run(
    network: Network,
    steps: Sequence[int],
    layers: Sequence[int],
    saved_dtype: type[np.floating],
    kept: tuple[Kept | NDArray[Any], Kept | NDArray[Any]],
    first: int,
) -> _Ending:
    """Train one batch, whose first seed has a place in `kept`, and write its states there."""
    dynamics, depth = network.dynamics, network.shape.depth
    batch, rows = network.hidden.shape[1:3]
    places = {step: index for index, step in enumerate(steps)}
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
            for all_seeds, new in zip(kept, states, strict=True):
                of_seeds = new.transpose(0, 1).cpu().numpy()
                for seed in np.flatnonzero(alive).tolist():
                    all_seeds[first + seed, place] = of_seeds[seed]
        logger.debug("L=%d: step %d of %d", depth, step + 1, dynamics.steps)
    return _Ending(
        output=output,
        loss=loss,
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

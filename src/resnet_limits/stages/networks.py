"""Stage ``finite``: trained networks of one shape as a dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from resnet_limits import devices
from resnet_limits.config import Experiment
from resnet_limits.dynamics import make_dynamics
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import DIVERGED, STATUS_ATTRS, Shape
from resnet_limits.networks.train import choose_engine, train
from resnet_limits.problem import Problem, embedding_rows, make_problem
from resnet_limits.store.scratch import ScratchArray
from resnet_limits.work import block_weights, branches_of

logger = logging.getLogger(__name__)


def finite(
    experiment: Experiment,
    shape: Shape,
    seeds: Sequence[int] | None = None,
    engine: str | None = None,
    made: Problem | None = None,
    beside: Path | None = None,
) -> xr.Dataset:
    """Train the networks of one shape.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    shape : Shape
        L, M and D.
    seeds : sequence of int, optional
        Those of the shape in the experiment by default.
    engine : str, optional
        In place of the experiment's ``sweep.engine``.
    made : Problem, optional
        The problem, where it was made before; else it is made here.
    beside : path, optional
        Where the store will be. States that are too many for memory are kept in a file without a
        name in its folder, as many bytes as in the store, and read from it as the store is written.
        Without it all are kept in memory.

    Returns
    -------
    Dataset
        The finite store's variables; ``hidden`` and ``backward`` as Dask arrays where they are in
        a file.

    Raises
    ------
    InputError
        If the engine or the device is not available.
    MemoryRefusedError
        If the networks do not fit, or, in memory, their states.
    OSError
        If the file has no room.
    """
    problem = make_problem(experiment) if made is None else made
    dynamics = make_dynamics(experiment, problem)
    used = list(experiment.seeds_of(shape)) if seeds is None else list(seeds)
    dtype = devices.dtype(experiment.numerics.precision)
    wanted = experiment.sweep.engine if engine is None else engine
    chosen = choose_engine(wanted, dynamics, shape, len(used), dtype)
    device = devices.choose(experiment.numerics.device)
    steps, layers = saved_steps(experiment), depth_layers(experiment, shape.depth)
    trained = train(
        dynamics,
        shape,
        used,
        lambda seed: embedding_rows(problem, experiment.seed, seed, shape.embed_dim),
        experiment.seed,
        steps=steps,
        layers=layers,
        engine=chosen.engine,
        dtype=dtype,
        device=device,
        memory_limit=int(devices.MEMORY_SHARE * devices.memory(device)),
        saved_dtype=np.dtype(experiment.save.dtype).type,
        elsewhere=None if beside is None else partial(ScratchArray, beside.parent),
    )
    token = () if problem.tokens is None else ("token",)
    rows = ("sample", *token)

    states = ("seed", "step", "depth_point", *rows, "coordinate")
    hidden, backward = (
        kept.lazily(states) if isinstance(kept, ScratchArray) else kept
        for kept in map(problem.by_sample, (trained.hidden, trained.backward))
    )
    dataset = xr.Dataset(
        {
            "output": (("seed", "step", *rows, "target"), problem.by_sample(trained.output)),
            "loss": (("seed", "step"), trained.loss),
            "hidden": (states, hidden),
            "backward": (states, backward),
            "status": (("seed",), trained.status, STATUS_ATTRS),
            "diverged_step": (("seed",), trained.diverged_step),
        },
        coords={
            "seed": used,
            "step": list(steps),
            "layer": ("depth_point", list(layers)),
            "s": ("depth_point", np.array(layers) / shape.depth),
        },
        attrs={
            "depth": shape.depth,
            "width": shape.width,
            "embed_dim": shape.embed_dim,
            "weights": block_weights(shape, branches_of(experiment, problem.tokens)),
            "engine": chosen.engine,
            "engine_reason": chosen.reason,
            "device": devices.describe(device),
        },
    )
    if problem.is_test is not None:
        dataset = dataset.assign_coords(is_test=("sample", problem.is_test.astype(np.int8)))
    where = f"L={shape.depth} M={shape.width} D={shape.embed_dim}"
    diverged = trained.status == DIVERGED
    if diverged.any():
        held = int(trained.overflowed.sum())
        logger.warning(
            "finite %s: %d of %d seeds diverged, the first at step %d; their later steps are NaN%s",
            where,
            diverged.sum(),
            len(used),
            trained.diverged_step[diverged].min(),
            f"; save.dtype float32 can't hold the states of {held}, float64 can" if held else "",
        )
    logger.info("finite %s: trained %d seeds (%s)", where, len(used), chosen.engine)
    return dataset

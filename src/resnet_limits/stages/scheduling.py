"""Where Dask computes the blocks of a stage: in threads of the job, or in jobs of a cluster.

Every block is one task, and what the tasks leave is summed in an order that their graph sets, so
that the result has the same bits wherever they run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resnet_limits.config import InputError

logger = logging.getLogger(__name__)

# Blocks share the cores: libraries with threads of their own would wait for each other.
_ONE_THREAD = (
    "export OMP_NUM_THREADS=1",
    "export OPENBLAS_NUM_THREADS=1",
    "export MKL_NUM_THREADS=1",
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute blocks in threads of this process.

    Parameters
    ----------
    count : int
        How many.
    """
    import dask

    with dask.config.set(scheduler="threads", num_workers=count):
        yield


@contextmanager
def slurm_jobs(
    count: int,
    *,
    memory_mb: int,
    minutes: int,
    partition: str | None = None,
    account: str | None = None,
) -> Iterator[None]:
    """Compute blocks in jobs of a cluster with SLURM, which end with the context.

    What Dask's own configuration says of SLURM (``jobqueue.slurm``, in ``~/.config/dask``) holds
    too, such as the network interface.

    Parameters
    ----------
    count : int
        How many jobs, each of one core. Work begins when the first of them runs.
    memory_mb : int
        Memory of each in MiB. One that takes more is started again by Dask.
    minutes : int
        Time limit of each.
    partition, account : str, optional
        SLURM's own defaults without.

    Raises
    ------
    InputError
        If dask-jobqueue is not installed.
    """
    try:
        from dask_jobqueue import SLURMCluster
        from distributed import Client
    except ImportError:
        raise InputError(
            "errors_workers: dask-jobqueue is not installed; allowed: "
            "pip install --editable '.[cluster]', or errors_workers=0"
        ) from None
    options = {
        "cores": 1,
        "processes": 1,
        "memory": f"{memory_mb} MiB",
        "walltime": f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        "job_script_prologue": list(_ONE_THREAD),
        "queue": partition,
        "account": account,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with SLURMCluster(**given) as cluster, Client(cluster):
        cluster.scale(jobs=count)
        logger.info("blocks are computed by %d SLURM jobs", count)
        yield

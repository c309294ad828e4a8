"""Measure the distances between finite networks and limits."""

import time

from _job import running

with running(snakemake, "errors") as job:
    import dask

    from resnet_limits import provenance
    from resnet_limits.kinds import KINDS
    from resnet_limits.stages import errors
    from resnet_limits.stages.paths import cell_name, cells

    started = time.monotonic()
    compared = {
        cell_name(kind, **cell): len(provenance.cell_seeds(kind, job.experiment, **cell))
        for kind in KINDS
        for cell in cells(kind, job.experiment)
    }
    with dask.config.set(scheduler="threads", num_workers=snakemake.threads):
        distances = errors.errors(
            job.experiment,
            lambda kind, cell: job.load(kind, cell, errors.READ[kind]),
            job.problem(),
        )
        job.publish(distances, started, {}, cells=compared)

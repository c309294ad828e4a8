"""Measure the distances between finite networks and limits."""

import time

from _job import running

with running(snakemake, "errors") as job:
    from resnet_limits import provenance
    from resnet_limits.kinds import KINDS
    from resnet_limits.stages import errors, scheduling
    from resnet_limits.stages.paths import cell_name, cells

    started = time.monotonic()
    compared = {
        cell_name(kind, **cell): len(provenance.cell_seeds(kind, job.experiment, **cell))
        for kind in KINDS
        for cell in cells(kind, job.experiment)
    }
    workers = snakemake.config["errors_workers"]
    asked = snakemake.resources
    with (
        scheduling.slurm_jobs(
            workers,
            memory_mb=asked.mem_mb,
            minutes=asked.runtime,
            partition=asked.get("slurm_partition"),
            account=asked.get("slurm_account"),
        )
        if workers
        else scheduling.threads(snakemake.threads)
    ):
        distances = errors.errors(
            job.experiment,
            lambda kind, cell: job.load(kind, cell, errors.READ[kind]),
            job.problem(),
            job.record.at,
        )
        job.publish(distances, started, {}, cells=compared)

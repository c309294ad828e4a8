"""Solve the DMFT limit."""

from _job import running

with running(snakemake, "dmft") as job:
    from resnet_limits.stages import limits

    job.publish_each(lambda cell: limits.dmft(job.experiment, job.problem()))

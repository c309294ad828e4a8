"""Solve infinitely wide networks of some depths and embedding dimensions."""

from _job import running

with running(snakemake, "wide") as job:
    from resnet_limits.stages import limits

    problem, dmft = job.problem(), job.open_store("dmft", {})
    job.publish_each(
        lambda cell: limits.wide(
            job.experiment, cell["depth"], cell["embed_dim"], dmft, made=problem
        )
    )

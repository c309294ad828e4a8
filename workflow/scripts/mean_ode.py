"""Solve the Mean ODE at some embedding dimensions."""

from _job import running

with running(snakemake, "mean_ode") as job:
    from resnet_limits.stages import limits

    problem, dmft = job.problem(), job.open_store("dmft", {})
    job.publish_each(
        lambda cell: limits.mean_ode(job.experiment, cell["embed_dim"], dmft, made=problem)
    )

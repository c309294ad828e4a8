"""Write the data of the learning problem."""

from _job import running

with running(snakemake, "problem") as job:
    from resnet_limits.stages import problem

    job.publish_each(lambda cell: problem.problem(job.experiment))

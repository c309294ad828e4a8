"""Train finite networks of some shapes."""

from _job import running

with running(snakemake, "finite") as job:
    from resnet_limits.config import Shape
    from resnet_limits.stages import networks

    problem = job.problem()

    def trained(cell):
        store = job.paths.store("finite", **cell)
        return networks.finite(job.experiment, Shape(**cell), made=problem, beside=store)

    job.publish_each(trained)

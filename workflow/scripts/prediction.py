"""Predict the amplitudes of all terms from the DMFT limit."""

import time

from _job import running

with running(snakemake, "prediction") as job:
    from resnet_limits.stages import prediction

    started = time.monotonic()
    predicted = prediction.prediction(job.experiment, job.open_store("dmft", {}), job.problem())
    job.publish(predicted, started, {})

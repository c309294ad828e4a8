"""Fit exponents and amplitudes to the distances."""

import time

from _job import running

with running(snakemake, "rates") as job:
    from resnet_limits import integrity, store
    from resnet_limits.stages import rates

    started = time.monotonic()
    distances = store.open_groups(job.path_of("errors"))
    prediction = integrity.read_json(job.path_of("prediction"))
    job.publish(rates.rates(job.experiment, distances, prediction), started, {})

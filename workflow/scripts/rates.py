"""Fit exponents and amplitudes to the distances."""

import json
import time

from _job import running

with running(snakemake, "rates") as job:
    from resnet_limits import store
    from resnet_limits.stages import rates

    started = time.monotonic()
    distances = store.open_groups(job.path_of("errors"))
    prediction = json.loads(job.path_of("prediction").read_text(encoding="utf-8"))
    job.publish(rates.rates(job.experiment, distances, prediction), started, {})

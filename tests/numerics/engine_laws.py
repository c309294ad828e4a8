"""Two engines in law: what is compared, and how."""

from __future__ import annotations

import numpy as np
from implicit_weights import embedding_rows
from scipy import stats

from resnet_limits.kinds import OK
from resnet_limits.networks.train import train

LAW_SEEDS = 1000
FALSE_ALARM = 1e-3
"""Probability that a correct engine fails one test, all its comparisons together."""


def observables(dynamics, shape, engine):
    """Numbers of every seed that any difference in law would show in; one embedding for all."""
    rows = embedding_rows(dynamics, shape, 0)
    last = dynamics.steps - 1
    trained = train(
        dynamics,
        shape,
        range(LAW_SEEDS),
        lambda _: rows,
        0,
        steps=[1, last],
        layers=[shape.depth // 2, shape.depth],
        engine=engine,
        saved_dtype=np.float64,
    )
    assert (trained.status == OK).all()
    found = {}
    for place in (0, 1):
        found |= {
            f"output {place} {i}": trained.output[:, place].reshape(LAW_SEEDS, -1)[:, i]
            for i in range(2)
        }
        for name in ("hidden", "backward"):
            states = getattr(trained, name)[:, place]
            found |= {f"{name} {place} {i}": states[:, i, 0, i] for i in range(2)}
            found[f"{name} {place} size"] = (states[:, 0] ** 2).mean(axis=(1, 2))
            found[f"{name} {place} overlap"] = (states[:, 1, 0] * states[:, 1, 1]).mean(axis=1)
    return found


def differences(one, other):
    """Names of the observables whose mean, variance or distribution differ."""
    found = []
    bound = FALSE_ALARM / (3 * len(one))
    for name, x in one.items():
        y = other[name]
        tests = {
            "mean": stats.ttest_ind(x, y, equal_var=False),
            "variance": stats.levene(x, y),
            "distribution": stats.ks_2samp(x, y),
        }
        found += [f"{name}: {what}" for what, test in tests.items() if test.pvalue < bound]
    return found

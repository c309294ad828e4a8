"""Whatever numbers an experiment may hold, what a stage returns is a sound store."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from extremes import extreme, set_size

from resnet_limits import store
from resnet_limits.config import Shape, experiment_from_dict
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.limits.fixed_point import LimitError
from resnet_limits.networks import train as training
from resnet_limits.stages import limits, networks

SHAPE = Shape(2, 4, 4)


def findings(dataset, folder, kind="finite"):
    """Write a store, and check it."""
    attrs = dict.fromkeys(store.PROVENANCE, "")
    try:
        path = store.write(dataset, folder / "checked.zarr", kind, attrs=attrs)
    except store.StoreError as error:
        return [str(error)]
    return store.check(path)


def finite(values):
    return networks.finite(experiment_from_dict(values, where="extreme"), SHAPE)


@pytest.mark.parametrize("case", range(20))
def test_networks_of_extreme_numbers_are_sound_stores(case, tmp_path):
    assert findings(finite(extreme(case, tmp_path)), tmp_path) == []


# Chosen among a hundred: some of the seeds diverge, late, or by their backward states alone.
EDGES = (69, 81, 108, 44, 51)


def towards_the_edge(case, folder):
    """Networks at sizes of one scale between which the first of them diverges, by bisection."""
    values = extreme(case, folder)
    low, high = -5.0, 30.0
    for _ in range(9):
        middle = (low + high) / 2
        set_size(values, case, 10.0**middle)
        dataset = finite(values)
        yield dataset
        low, high = (low, middle) if (dataset.status == DIVERGED).any() else (middle, high)


def test_networks_at_the_edge_of_divergence_are_sound_stores(tmp_path):
    first, some = set(), set()
    for case in EDGES:
        for dataset in towards_the_edge(case, tmp_path):
            assert findings(dataset, tmp_path) == []
            first |= set(dataset.diverged_step.values.tolist())
            some.add(int((dataset.status == DIVERGED).sum()))
    # The control of the cases: they end in all ways.
    assert {-1, 0, 1} <= first
    assert max(first) > 1
    assert some >= {0, 1, 3}


def test_unseen_divergence_would_be_found(monkeypatch, tmp_path):
    """The negative control: a training that looks at hidden states and the loss alone."""
    monkeypatch.setattr(training, "_finite", lambda states: np.ones(states.shape[1], dtype=bool))
    assert any(findings(dataset, tmp_path) for dataset in towards_the_edge(EDGES[0], tmp_path))


ENGINES = ("dense", "implicit")


def large(size, **changes):
    """Changes of an experiment: states before the first block are of so many times 1e30."""
    teacher = {"samples": 2, "inputs": 2, "targets": 2, "input_norm": size}
    return {
        "problem": {"data": {"kind": "linear_teacher", **teacher}},
        "model": {"init_std": {"embedding": 1e30}, "unit": {"activation": "linear"}},
        "training": {"steps": 2, "learning_rate": 0.0},
        **changes,
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("saved", ["float64", "float32"])
def test_an_overflow_of_the_saved_type_is_named(
    tiny_experiment, caplog, tmp_path, engine, precision, saved
):
    numbers = {"numerics": {"precision": precision}, "save": {"dtype": saved}}
    experiment = tiny_experiment(**large(1e10, sweep={"engine": engine}, **numbers))
    with caplog.at_level(logging.WARNING):
        dataset = networks.finite(experiment, SHAPE)
    assert findings(dataset, tmp_path) == []
    fine = precision == saved == "float64"
    assert dataset.status.values.tolist() == [OK if fine else DIVERGED] * 2
    assert dataset.diverged_step.values.tolist() == [-1 if fine else 0] * 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if fine else 1)
    named = "save.dtype float32 can't hold the states of 2, float64 can"
    assert sum(named in line for line in lines) == (precision == "float64" != saved)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_overflows_and_is_not_kept_is_no_divergence(tiny_experiment, engine):
    """The saved type matters for the steps that are saved, the numbers themselves for all."""

    def ends(size, steps):
        kept = large(size, sweep={"engine": engine}, save={"steps": steps})
        return networks.finite(tiny_experiment(**kept), SHAPE).diverged_step.values.tolist()

    assert ends(1.0, [1]) == ends(1.0, "all") == [-1, -1]
    assert ends(1e10, [1]) == [1, 1]
    assert ends(1e10, "all") == [0, 0]


# Among them: limits that are solved, and limits that diverge at their first step.
@pytest.mark.parametrize("case", range(10))
def test_limits_of_extreme_numbers_are_sound_stores_or_named(case, tmp_path):
    values = extreme(case, tmp_path)
    values["numerics"]["limit_tolerance"] = 0.1
    experiment = experiment_from_dict(values, where="extreme")
    try:
        dmft = limits.dmft(experiment)
    except LimitError:
        return
    assert findings(dmft, tmp_path, "dmft") == []
    for kind, size in (("mean_ode", (4,)), ("wide", (2, 4))):
        try:
            dataset = getattr(limits, kind)(experiment, *size, dmft, seeds=[0, 1])
        except LimitError:
            continue
        assert findings(dataset, tmp_path, kind) == []

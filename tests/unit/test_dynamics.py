"""The training problem in canonical form."""

from __future__ import annotations

import json

import numpy as np
import pytest

from resnet_limits import dynamics as dynamics_module
from resnet_limits.cli import main
from resnet_limits.config import InputError
from resnet_limits.dynamics import make_dynamics
from resnet_limits.problem import make_problem


@pytest.mark.parametrize(
    ("training", "rates"),
    [
        ({"learning_rate": 0.5}, (0.5, 0.5, 0.0)),
        ({"learning_rate": 0.5, "train_embeddings": True}, (0.5, 0.5, 0.5)),
        ({"learning_rate": 0.5, "learning_rate_in": 0.0, "learning_rate_out": 2}, (0.0, 2.0, 0.0)),
        ({"learning_rate": 0.5, "learning_rate_out": 0.0}, (0.5, 0.0, 0.0)),
    ],
)
def test_a_learning_rate_that_is_left_out_is_the_common_one(tiny_experiment, training, rates):
    experiment = tiny_experiment(training=training)
    found = make_dynamics(experiment, make_problem(experiment))
    (branch,) = found.layer
    assert (branch.rate_in, branch.rate_out, found.rate_embedding) == rates
    assert found.rate_unembedding == found.rate_embedding


def test_rates_of_the_embeddings_apart(tiny_experiment):
    training = {
        "train_embeddings": True, "learning_rate": 0.5, "learning_rate_embedding": 0.25,
        "learning_rate_unembedding": 0.0,
    }  # fmt: skip
    experiment = tiny_experiment(training=training)
    found = make_dynamics(experiment, make_problem(experiment))
    assert (found.rate_embedding, found.rate_unembedding) == (0.25, 0.0)


def test_what_a_branch_leaves_out_is_the_models(tiny_experiment):
    branch = {"residual_scale": 3.0, "init_std": {"output": 0.25}, "width_ratio": 0.3}
    experiment = tiny_experiment(
        model={
            "unit": None, "layer": [{}, branch], "residual_scale": 2.0,
            "init_std": {"input": 0.5, "output": 0.75},
        }
    )  # fmt: skip
    found = make_dynamics(experiment, make_problem(experiment))
    first, second = found.layer
    assert (first.scale, first.input_std, first.output_std) == (2.0, 0.5, 0.75)
    assert (second.scale, second.input_std, second.output_std) == (3.0, 0.5, 0.25)
    assert [second.width(width) for width in (1, 10, 15)] == [1, 3, 4]
    assert found.residual_scale == 2.0


# --- batches and weights --------------------------------------------------------------------------


TASKS = {"kind": "in_context_regression", "samples": 5, "tokens": 3, "inputs": 2}


def test_batches_of_samples_are_batches_of_their_rows(tiny_experiment):
    experiment = tiny_experiment(
        problem={"data": TASKS}, training={"steps": 3, "batches": [[4, 0], [2]]}
    )
    found = make_dynamics(experiment, make_problem(experiment))
    assert found.batches == ((12, 13, 14, 0, 1, 2), (6, 7, 8))
    assert [found.batch_size(step) for step in range(3)] == [6, 3, 15]
    # The query of each sample of the batch alone counts.
    assert found.row_weights(0)[[14, 2]].tolist() == [3.0, 3.0]
    assert found.row_weights(0).sum() == 6.0


def test_seeded_batches_are_distinct_and_by_their_seed(tiny_experiment):
    data = {"kind": "gaussian", "samples": 9, "inputs": 2, "targets": 1}

    def batches(draw, **changes):
        training = {"steps": 30, "batches": {"size": 4, "seed": draw}}
        experiment = tiny_experiment(problem={"data": data}, training=training, **changes)
        return make_dynamics(experiment, make_problem(experiment)).batches

    found = batches(0)
    assert len(found) == 29
    assert all(len(set(batch)) == 4 and set(batch) <= set(range(9)) for batch in found)
    assert len(set(found)) > 20
    assert {row for batch in found for row in batch} == set(range(9))
    assert batches(0, seed=7) == found
    assert batches(1) != found


# --- what does not fit the data of a file ---------------------------------------------------------

HEAD = {"kind": "attention_head", "key_dim": 2}
ATTENTION = {"model": {"unit": HEAD}}
SECOND = {"model": {"unit": None, "layer": [{}, {"unit": HEAD}]}}
REFUSALS = {
    "a unit without tokens": (2, ATTENTION, "model.unit.kind: attention_head works on the tokens"),
    "a branch without tokens": (2, SECOND, "model.layer.1.unit.kind: attention_head works on"),
    "offsets": (
        3,
        {"model": {"unit": {"kind": "convolution", "offsets": [0, 3]}}},
        "model.unit.offsets: 3 goes beyond the 3 tokens of a sample; allowed: -2 to 2",
    ),
    "a missing sample": (
        2,
        {"training": {"batches": [[0], [4]]}},
        "training.batches.1: there is no sample 4; allowed: 0 to 3, the samples of the data",
    ),
    "a large batch": (
        2,
        {"training": {"batches": {"size": 5}}},
        "training.batches.size: got 5; allowed: 1 to 4, the number of samples",
    ),
    "a batch without weight": (
        3,
        {"training": {"batches": [[0], [1]]}},
        "training.batches.1: the weights of its samples are all zero; allowed: batches with",
    ),
    "positions": (
        2,
        {},
        "problem.data.positions: true, but the data have no tokens; allowed: data with tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_a_file_is_one_line(name, tiny_values, tmp_path, capsys, tiny_experiment):
    dims, changes, line = REFUSALS[name]
    rows = (4, 3)[: dims - 1]
    x = np.random.default_rng(0).normal(size=(*rows, 2))
    weight = np.ones(rows)
    if dims == 3:
        weight[1] = 0.0
    np.savez(tmp_path / "d.npz", x=x, y=x, weight=weight)
    data = {"kind": "file", "path": str(tmp_path / "d.npz"), "positions": name == "positions"}
    (tmp_path / "e.yaml").write_text(
        json.dumps(tiny_values(problem={"data": data}, **changes)), encoding="utf-8"
    )
    assert main(["validate", str(tmp_path / "e.yaml")]) == 2
    printed = capsys.readouterr()
    (error,) = (text for text in printed.err.splitlines() if text.startswith("error: "))
    assert error.startswith(f"error: {tmp_path / 'e.yaml'}: {line}")
    assert printed.out == ""
    # The negative control: without the change nothing is said.
    sound = tiny_experiment(problem={"data": data | {"positions": False}})
    make_dynamics(sound, make_problem(sound))


def test_batches_of_very_many_rows_are_refused(tiny_experiment, monkeypatch):
    monkeypatch.setattr(dynamics_module, "MAX_DATA_VALUES", 20)
    experiment = tiny_experiment(
        problem={"data": TASKS}, training={"steps": 3, "batches": {"size": 4}}
    )
    with pytest.raises(InputError, match=r"^training\.batches: 24 rows in all updates together"):
        make_dynamics(experiment, make_problem(experiment))


def test_limits_at_finite_embedding_dimension_are_refused_for_other_laws(tiny_experiment):
    from resnet_limits.stages import limits

    experiment = tiny_experiment(
        model={"initial_law": "uniform"}, sweep={"pairs": ["finite-dmft"], "engine": "dense"}
    )
    dmft = limits.dmft(experiment)
    for call in (
        lambda: limits.mean_ode(experiment, 4, dmft),
        lambda: limits.wide(experiment, 2, 4, dmft),
    ):
        with pytest.raises(InputError, match=r"^model\.initial_law: uniform, but at finite D"):
            call()

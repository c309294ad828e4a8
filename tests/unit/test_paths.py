from __future__ import annotations

from pathlib import Path

import pytest

from resnet_limits.config import experiment_from_dict
from resnet_limits.kinds import CELL_KEYS, KINDS
from resnet_limits.stages.paths import (
    FIGURES,
    Paths,
    cell_name,
    cells,
    figure_names,
)

PLACES = [
    ("problem", {}, "problem.zarr"),
    ("dmft", {}, "dmft.zarr"),
    ("mean_ode", {"embed_dim": 8}, "mean_ode/D8.zarr"),
    ("wide", {"depth": 4, "embed_dim": 8}, "wide/L4_D8.zarr"),
    ("finite", {"depth": 4, "width": 16, "embed_dim": 8}, "finite/L4_M16_D8.zarr"),
    ("prediction", {}, "prediction.json"),
    ("errors", {}, "errors.zarr"),
    ("rates", {}, "rates.json"),
]


@pytest.mark.parametrize(("kind", "cell", "name"), PLACES)
def test_layout_is_the_contract(kind, cell, name):
    paths = Paths("results", "quickstart")
    assert paths.store(kind, **cell) == Path("results/quickstart") / name
    manifest = Path("results/quickstart/manifests") / name
    assert paths.manifest(kind, **cell) == manifest.with_suffix(".json")


def test_every_kind_has_a_place():
    assert [kind for kind, _, _ in PLACES] == list(KINDS)
    assert all(set(cell) == set(CELL_KEYS[kind]) for kind, cell, _ in PLACES)


def test_figures_and_report():
    paths = Paths(Path("elsewhere"), "e")
    assert paths.figures == Path("elsewhere/e/figures")
    assert paths.report == Path("elsewhere/e/report.html")
    assert paths.workflow_page == Path("elsewhere/e/workflow.html")
    assert paths.page_stage(paths.report) == "report"
    assert paths.page_stage(paths.figures / "frontier.png") == "figures"
    assert paths.page_stage(paths.workflow_page) == "figures"


def test_the_frontier_is_drawn_for_families_only(tiny_experiment, tiny_values):
    assert set(FIGURES) - set(figure_names(tiny_experiment())) == {"frontier"}
    family = {
        "parameters": [100],
        "depth": {"factor": 2, "exponent": 0},
        "embed_dim": {"factor": 4, "exponent": 0},
    }
    values = tiny_values() | {"sweep": {"families": {"a": family}}}
    assert figure_names(experiment_from_dict(values)) == FIGURES


def test_wildcards_make_patterns():
    pattern = Paths("results", "{experiment}").store("wide", depth="{depth}", embed_dim="{d}")
    assert str(pattern) == "results/{experiment}/wide/L{depth}_D{d}.zarr"


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("finite", {"depth": 4, "width": 16}),
        ("dmft", {"embed_dim": 8}),
        ("mean_ode", {}),
        ("mean_ode", {"embed_dim": 8, "seed": 0}),
        ("nothing", {}),
    ],
)
def test_wrong_cells_are_refused(kind, cell):
    with pytest.raises(ValueError, match=r"^(cell of|kind)"):
        cell_name(kind, **cell)


def test_cells_of_the_whole_sweep(tiny_experiment):
    experiment = tiny_experiment()
    assert {kind: len(cells(kind, experiment)) for kind in KINDS} == {
        "problem": 1,
        "dmft": 1,
        "mean_ode": 2,
        "wide": 4,
        "finite": 4,
        "prediction": 1,
        "errors": 1,
        "rates": 1,
    }
    names = [cell_name(kind, **cell) for kind in KINDS for cell in cells(kind, experiment)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("pairs", "solved"),
    [
        (["finite-wide"], {"dmft", "wide", "finite"}),
        (["wide-mean_ode"], {"dmft", "wide", "mean_ode"}),
        (["mean_ode-dmft"], {"dmft", "mean_ode"}),
        (["finite-dmft"], {"dmft", "finite"}),
    ],
)
def test_what_is_compared_decides_what_is_solved(tiny_experiment, pairs, solved):
    experiment = tiny_experiment(sweep={"pairs": pairs})
    compared = ("dmft", "mean_ode", "wide", "finite")
    assert {kind for kind in compared if cells(kind, experiment)} == solved

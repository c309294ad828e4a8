"""What is there of an experiment, and what a run would replace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from resnet_limits import integrity, provenance
from resnet_limits.kinds import COMPUTED, KINDS
from resnet_limits.stages import plan
from resnet_limits.stages.paths import Paths, cells
from resnet_limits.stages.publish import publish

if TYPE_CHECKING:
    from resnet_limits.config import Experiment

Make = Callable[..., "Experiment"]


@pytest.fixture(autouse=True)
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock lasts as long as its process, which here is that of all tests."""
    monkeypatch.setattr(plan.lock, "hold", lambda *_: 0)


class Results:
    """Results of a tiny experiment, and what `plan.prepare` makes of them."""

    def __init__(self, paths: Paths, experiment: Experiment) -> None:
        self.paths, self.first = paths, experiment
        self.lines: list[str] = []

    def again(self, experiment: Experiment, *, is_dry: bool = False, **options: Any) -> list[Path]:
        self.lines.clear()
        options = {"replace": False, **options}
        return plan.prepare(
            experiment, self.paths, [], is_dry=is_dry, say=self.lines.append, **options
        )

    def all(self, *kinds: str, of: Experiment | None = None) -> set[Path]:
        experiment = of or self.first
        return {
            self.paths.manifest(kind, **cell) for kind in kinds for cell in cells(kind, experiment)
        }


@pytest.fixture
def results(tmp_path: Path, tiny_experiment: Make, content: Callable[..., Any]) -> Results:
    experiment = tiny_experiment()
    found = Results(Paths(tmp_path, "tiny"), experiment)
    for kind in ("problem", *COMPUTED):
        for cell in cells(kind, experiment):
            publish(
                content(kind),
                found.paths.store(kind, **cell),
                kind=kind,
                experiment=experiment,
                key=provenance.stage_key(kind, experiment, **cell),
                device="cpu",
                seeds=provenance.cell_seeds(kind, experiment, **cell),
                started=0.0,
                manifest=found.paths.manifest(kind, **cell),
            )
    return found


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Edit the code of every stage."""

    def edit() -> None:
        key = provenance.stage_key
        monkeypatch.setattr(provenance, "stage_key", lambda *args, **kw: "x" + key(*args, **kw))

    return edit


# What asks, and what it says.
ASKS = {
    "learning rate": (
        {"training": {"learning_rate": 0.25}},
        COMPUTED,
        "training.learning_rate: 0.5 -> 0.25",
    ),
    "data seed": ({"problem": {"data": {"seed": 1}}}, COMPUTED, "problem.data.seed: 0 -> 1"),
    "other data": (
        {"problem": {"data": {"kind": "digits", "samples": 4, "classes": 2}}},
        COMPUTED,
        "problem.data.kind: gaussian -> digits",
    ),
    "model": (
        {"model": {"unit": {"activation": "erf"}}},
        COMPUTED,
        "model.unit.activation: tanh -> erf",
    ),
    "root seed": ({"seed": 7}, COMPUTED, "seed: 0 -> 7"),
    "smaller tolerance": (
        {"numerics": {"limit_tolerance": 1e-3}},
        ("dmft", "mean_ode", "wide"),
        "numerics.limit_tolerance: 0.01 -> 0.001",
    ),
    "precision": (
        {"numerics": {"precision": "float32"}},
        COMPUTED,
        "numerics.precision: float64 -> float32",
    ),
    "saved steps": ({"save": {"steps": [1, 2]}}, ("finite",), "save.steps: all -> [1, 2]"),
    "saved depths": ({"save": {"depth_points": 2}}, ("finite",), "save.depth_points: 3 -> 2"),
    "engine": ({"sweep": {"engine": "dense"}}, ("finite",), "sweep.engine: auto -> dense"),
    "fewer seeds": (
        {"sweep": {"seeds": 1}},
        ("mean_ode", "wide", "finite"),
        "sweep.seeds: 2 -> 1",
    ),
}


@pytest.mark.parametrize("name", ASKS)
def test_other_values_are_not_put_over_results_without_a_word(
    name: str, results: Results, tiny_experiment: Make
) -> None:
    change, kinds, line = ASKS[name]
    other = tiny_experiment(**change)
    with pytest.raises(plan.PlanError, match=r"--config replace=true or make run REPLACE=1"):
        results.again(other)
    limits = len(results.all(*kinds) - results.all("finite"))
    counted = " and ".join(
        f"{count} {what}s" if count > 1 else f"{count} {what}"
        for count, what in ((4 if "finite" in kinds else 0, "network"), (limits, "limit"))
        if count
    )
    assert results.lines[0] == (
        f"{results.paths.folder}: {counted} made with other values would be replaced:"
    )
    assert f"  {line}" in results.lines
    # A dry run says the same and plans.
    seen = results.again(other, is_dry=True)
    assert f"  {line}" in results.lines
    assert results.all(*kinds) <= set(seen)
    assert set(results.again(other, replace=True)) == set(seen)
    assert results.lines[0] == (
        f"{results.paths.folder}: {counted} made with other values will be replaced:"
    )


SILENT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sizes": {"sweep": {"grid": {"depth": [2, 4, 8], "width": [8, 16], "embed_dim": [4, 16]}}},
    "fewer sizes": {"sweep": {"grid": {"depth": [2], "width": [8], "embed_dim": [4]}}},
    "more seeds": {"sweep": {"seeds": 3}},
    "pairs": {"sweep": {"pairs": ["finite-wide"]}},
}


@pytest.mark.parametrize("name", SILENT)
def test_what_takes_nothing_away_does_not_ask(
    name: str, results: Results, tiny_experiment: Make
) -> None:
    results.again(tiny_experiment(**SILENT[name]))
    assert results.lines == []


def test_other_code_is_said_and_does_not_ask(
    results: Results, other_code: Callable[[], None]
) -> None:
    other_code()
    assert set(results.again(results.first)) == results.all("problem", *COMPUTED)
    folder = results.paths.folder
    assert results.lines == [
        f"{folder}: 4 networks and 7 limits made with other code will be computed again"
    ]


def test_other_code_and_more_seeds_do_not_ask(
    results: Results, tiny_experiment: Make, other_code: Callable[[], None]
) -> None:
    other_code()
    results.again(tiny_experiment(sweep={"seeds": 3}))
    assert not any("made with other values" in line for line in results.lines)


def test_edited_data_of_the_same_file_ask(
    tmp_path: Path, tiny_experiment: Make, content: Callable[..., Any]
) -> None:
    file = tmp_path / "d.npz"
    np.savez(file, x=np.eye(2), y=np.eye(2))
    experiment = tiny_experiment(problem={"data": {"kind": "file", "path": str(file)}})
    found = Results(Paths(tmp_path / "results", "tiny"), experiment)
    publish(
        content("dmft"),
        found.paths.store("dmft"),
        kind="dmft",
        experiment=experiment,
        key=provenance.stage_key("dmft", experiment),
        device="cpu",
        started=0.0,
        manifest=found.paths.manifest("dmft"),
    )
    # The same content elsewhere is the same data.
    moved = file.rename(tmp_path / "moved.npz")
    there = tiny_experiment(problem={"data": {"kind": "file", "path": str(moved)}})
    assert found.again(there) == []
    np.savez(moved, x=2 * np.eye(2), y=np.eye(2))
    with pytest.raises(plan.PlanError, match="results are kept"):
        found.again(there)
    assert found.lines[-1] == "  problem.data.path: other content"


@pytest.mark.parametrize("change", [{"training": {"learning_rate": 0.25}}, {}])
def test_results_that_do_not_say_of_what_values_they_are_ask(
    change: dict[str, Any],
    results: Results,
    tiny_experiment: Make,
    other_code: Callable[[], None],
) -> None:
    """Those of an older version, or of somebody else."""
    for path in results.all("dmft"):
        store = results.paths.store("dmft")
        metadata = json.loads((store / "zarr.json").read_text(encoding="utf-8"))
        del metadata["attributes"]["values_read"]
        (store / "zarr.json").write_text(json.dumps(metadata), encoding="utf-8")
        assert path.exists()
    other_code()
    with pytest.raises(plan.PlanError, match="results are kept"):
        results.again(tiny_experiment(**change))
    assert any(
        "1 limit made with values that were not recorded would be replaced" in line
        for line in results.lines
    )


def test_stores_whose_manifests_are_gone_ask_too(results: Results, tiny_experiment: Make) -> None:
    """A stopped job leaves stores without their manifests."""
    for path in results.all(*COMPUTED):
        path.unlink()
    other = tiny_experiment(training={"learning_rate": 0.25})
    with pytest.raises(plan.PlanError, match="results are kept"):
        results.again(other)
    assert results.again(results.first) == []


def test_results_that_the_run_does_not_compute_are_not_asked_about(
    results: Results, tiny_experiment: Make
) -> None:
    other = tiny_experiment(save={"depth_points": 2})
    results.again(other, replaceable={"dmft"})
    assert results.lines == []
    with pytest.raises(plan.PlanError):
        results.again(other, replaceable={"finite"})


def test_an_experiment_in_another_folder_has_nothing_to_lose(
    results: Results, tmp_path: Path, tiny_experiment: Make
) -> None:
    other = Results(Paths(tmp_path / "elsewhere", "tiny"), results.first)
    assert other.again(tiny_experiment(training={"learning_rate": 0.25})) == []
    assert other.lines == []


def test_damage_is_planned_again(results: Results) -> None:
    store = results.paths.store("dmft")
    integrity.remove(store)
    assert results.again(results.first, is_dry=True) == [results.paths.manifest("dmft")]
    results.paths.manifest("problem").write_text("{", encoding="utf-8")
    assert set(results.again(results.first)) == results.all("dmft", "problem")
    assert any("it is gone" in line for line in results.lines)
    assert any("problem.json: not a manifest" in line for line in results.lines)


def test_a_second_pipeline_is_refused(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise plan.lock.LockError("another pipeline is at work here")

    monkeypatch.setattr(plan.lock, "hold", refuse)
    results.again(results.first, is_dry=True)
    with pytest.raises(plan.PlanError, match="another pipeline"):
        results.again(results.first)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a.b": 1}, {"a.b": 1}, {}),
        ({"a.b": 1}, {"a.b": 2}, {"a.b": (1, 2)}),
        ({"a.b": 1}, {"a.b": 1, "a.new": 2}, {}),  # a key that another version has
        ({"a": None}, {"a.size": 4, "a.seed": 0}, {"a": (None, {"size": 4, "seed": 0})}),
        ({"a.size": 4, "b": 1}, {"a": None, "b": 1}, {"a": ({"size": 4}, None)}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a": ([1, 2], [1, 3])}),
    ],
)
def test_changed_values(
    before: dict[str, Any], after: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert plan.changed_values(before, after) == changes


def test_values_of_a_stage_are_all_of_its_key_that_is_not_code(tiny_experiment: Make) -> None:
    """Each value that changes the key is among them, and no other."""
    changes = [change for change, _, _ in ASKS.values()]
    experiment = tiny_experiment()
    for kind in COMPUTED:
        values = provenance.values_read(kind, experiment)
        assert json.loads(json.dumps(values)) == values
        for change in changes:
            other = tiny_experiment(**change)
            has_other_key = provenance.stage_key(kind, other) != provenance.stage_key(
                kind, experiment
            )
            assert (provenance.values_read(kind, other) != values) == has_other_key


# --- jobs -----------------------------------------------------------------------------------------


def test_a_job_belongs_to_the_plan_of_its_run(tmp_path: Path, tiny_experiment: Make) -> None:
    experiment, paths = tiny_experiment(), Paths(tmp_path, "tiny")
    with pytest.raises(plan.PlanError, match="edited after this job was planned"):
        plan.refuse_another(experiment, paths, "first")
    plan.record(experiment, paths, "first")
    plan.refuse_another(experiment, paths, "first")
    plan.refuse_another(experiment, paths, None)
    for other in ({"training": {"learning_rate": 0.25}}, {"sweep": {"grid": {"width": [12]}}}):
        with pytest.raises(plan.PlanError, match="edited after this job was planned"):
            plan.refuse_another(tiny_experiment(**other), paths, "first")
    plan.record(experiment, paths, "second")
    with pytest.raises(plan.PlanError, match="a later run has taken over"):
        plan.refuse_another(experiment, paths, "first")
    paths.plan.write_text("[]", encoding="utf-8")
    with pytest.raises(plan.PlanError, match="edited after this job was planned"):
        plan.refuse_another(experiment, paths, "first")


def test_what_is_planned_names_every_stage(tiny_experiment: Make) -> None:
    assert set(KINDS) <= set(plan.what_is_planned(tiny_experiment())["keys"])

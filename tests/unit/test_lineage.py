"""Provenance in standard vocabularies: PROV-JSON, RO-Crate, attributes and picture metadata."""

from __future__ import annotations

import copy
import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image
from prov.model import ProvDocument, ProvElementIdentifierRequired
from rocrate.rocrate import ROCrate

from derivations import EXPERIMENT, loose_ends
from resnet_limits import integrity, provenance
from resnet_limits.config import Experiment, load_experiment
from resnet_limits.figures.style import save
from resnet_limits.kinds import JSON_KINDS, KINDS
from resnet_limits.provenance import citation, keys
from resnet_limits.stages import checking, lineage
from resnet_limits.stages.paths import Paths, cells
from resnet_limits.stages.publish import publish

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(tiny_experiment: Callable[..., Experiment]) -> Experiment:
    return tiny_experiment()


@pytest.fixture
def folder(
    experiment: Experiment, content: Callable[..., Any], tmp_path: Path
) -> tuple[Paths, list[Path]]:
    """All results of an experiment with made-up values, and two pages."""
    paths = Paths(tmp_path, experiment.experiment)
    json_values = {"prediction": {"hidden": {}}, "rates": {"pairs": {}}}
    for kind in KINDS:
        for cell in cells(kind, experiment):
            made = json_values[kind] if kind in JSON_KINDS else content(kind)
            publish(
                made,
                paths.store(kind, **cell),
                kind=kind,
                experiment=experiment,
                key=provenance.stage_key(kind, experiment, **cell),
                device="cpu",
                seeds=provenance.cell_seeds(kind, experiment, **cell),
                started=time.monotonic() - 1.5,
                manifest=paths.manifest(kind, **cell),
            )
    pages = [paths.figures / "verdicts.png", paths.report]
    for page in pages:
        page.parent.mkdir(exist_ok=True)
        page.write_text(page.name)
        vouch_for(page, paths, experiment)
    return paths, pages


def vouch_for(page: Path, paths: Paths, experiment: Experiment) -> None:
    key = provenance.stage_key("figures", experiment)
    integrity.write_manifest(paths.page_manifest(page), page, kind="figures", stage_key=key)


@pytest.fixture
def written(experiment: Experiment, folder: tuple[Paths, list[Path]]) -> Paths:
    paths, pages = folder
    for file in lineage.write(experiment, paths, pages):
        vouch_for(file, paths, experiment)
    return paths


def document_of(paths: Paths) -> dict[str, Any]:
    return integrity.read_json(paths.lineage["prov"])


# --- PROV -----------------------------------------------------------------------------------------


def test_the_document_is_prov_json(written: Paths) -> None:
    text = written.lineage["prov"].read_text()
    document = ProvDocument.deserialize(content=text, format="json")
    again = ProvDocument.deserialize(content=document.serialize(format="json"), format="json")
    assert again == document
    assert len(document.records) > 50
    # The reader knows what a document may not say.
    wrong = text.replace('"results:rates.json": {', '"unknown:rates.json": {')
    with pytest.raises(ProvElementIdentifierRequired):
        ProvDocument.deserialize(content=wrong, format="json")


def test_every_result_is_there_with_its_digest(written: Paths, experiment: Experiment) -> None:
    entities = document_of(written)["entity"]
    names = {
        written.store(kind, **cell): written.manifest(kind, **cell)
        for kind in KINDS
        for cell in cells(kind, experiment)
    }
    names |= {
        page: written.page_manifest(page)
        for page in (written.report, written.figures / "verdicts.png")
    }
    for path, manifest in names.items():
        facts = entities[f"results:{path.relative_to(written.folder).as_posix()}"]
        assert facts["rl:sha256"] == integrity.digest(path)
        assert facts["rl:stage_key"] == integrity.read_manifest(manifest)["stage_key"]
    with_digest = [n for n, facts in entities.items() if "rl:sha256" in facts]
    assert len(with_digest) == len(names) + 1
    file = written.lineage["experiment"]
    assert entities[EXPERIMENT]["rl:sha256"] == integrity.digest(file)
    assert load_experiment(file) == experiment


def test_derivations_lead_to_the_experiment_file(written: Paths) -> None:
    assert loose_ends(document_of(written)) == []


@pytest.mark.parametrize("stage", ["problem", "dmft", "wide", "finite", "errors", "report"])
def test_a_derivation_that_is_not_there_is_found(written: Paths, stage: str) -> None:
    document = document_of(written)
    relations = document["wasDerivedFrom"]
    start = f"results:{stage}"
    of_stage = {
        name for name, r in relations.items() if r["prov:generatedEntity"].startswith(start)
    }
    one = relations[min(of_stage)]["prov:generatedEntity"]
    document["wasDerivedFrom"] = {
        name: r for name, r in relations.items() if r["prov:generatedEntity"] != one
    }
    assert f"{one}: derived from nothing" in loose_ends(document)


def test_circles_and_results_that_nothing_made_are_found(written: Paths) -> None:
    document = document_of(written)
    circle = copy.deepcopy(document)
    circle["wasDerivedFrom"]["_:more"] = {
        "prov:generatedEntity": "results:problem.zarr",
        "prov:usedEntity": "results:report.html",
    }
    assert "results:dmft.zarr: in a circle" in loose_ends(circle)
    document["wasGeneratedBy"] = {
        name: r
        for name, r in document["wasGeneratedBy"].items()
        if r["prov:entity"] != "results:rates.json"
    }
    assert loose_ends(document) == ["results:rates.json: made by nothing"]


def test_activities_have_times_code_and_software(written: Paths, experiment: Experiment) -> None:
    document = document_of(written)
    activity = document["activity"]["stage:finite"]
    shapes = len(cells("finite", experiment))
    assert float(activity["rl:wall_time_s"]["$"]) >= 1.5 * shapes
    assert activity["prov:startTime"] < activity["prov:endTime"]
    assert activity["rl:stage_key"] == provenance.stage_key("finite", experiment)
    assert activity["rl:code_hash"] == provenance.code_hash(keys.stage_module("finite"))
    assert json.loads(activity["rl:parameters"]) == provenance.values_read("finite", experiment)
    used = {
        r["prov:entity"] for r in document["used"].values() if r["prov:activity"] == "stage:errors"
    }
    one_each = {"results:problem.zarr", "results:dmft.zarr"}
    assert used == {EXPERIMENT, *one_each, "results:mean_ode", "results:wide", "results:finite"}
    (agent,) = document["agent"].values()
    assert json.loads(agent["rl:library_versions"])["numpy"]
    references = {r["prov:influencer"] for r in document["wasInfluencedBy"].values()}
    assert references == {f"arxiv:{reference.arxiv}" for reference in citation.REFERENCES}


def test_results_of_other_code_have_an_activity_and_an_agent_of_their_own(
    experiment: Experiment, folder: tuple[Paths, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, pages = folder
    read = integrity.attributes

    def attributes(path: Path) -> dict[str, Any]:
        other = {"code_hash": "other", "git_state": "other"} if path.stem == "L2_M8_D4" else {}
        return read(path) | other

    monkeypatch.setattr(integrity, "attributes", attributes)
    lineage.write(experiment, paths, pages)
    document = document_of(paths)
    made = {r["prov:entity"]: r["prov:activity"] for r in document["wasGeneratedBy"].values()}
    other = made["results:finite/L2_M8_D4.zarr"]
    assert document["activity"][other]["rl:code_hash"] == "other"
    assert made["results:finite/L2_M8_D16.zarr"] != other
    assert len(document["agent"]) == 2
    assert loose_ends(document) == []


def test_data_of_a_file_are_an_origin(
    tiny_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    data = {"kind": "file", "path": str(tmp_path / "my data.npz")}
    (tmp_path / "my data.npz").write_bytes(b"numbers")
    experiment = tiny_experiment(problem={"data": data})
    problem = lineage.Result(
        "problem.zarr",
        "problem",
        {"stage_key": "k", "digest": "d", "bytes": 1, "modified": 10**18},
        {},
    )
    document = json.loads(str(lineage.prov_document(experiment, [problem], "0").serialize()))
    sources = {r["prov:usedEntity"] for r in document["wasDerivedFrom"].values()}
    assert sources == {EXPERIMENT, "input:my%20data.npz"}
    values = provenance.values_read("problem", experiment)
    facts = document["entity"]["input:my%20data.npz"]
    assert facts["rl:digest"] == values["problem.data.path"]
    assert str(tmp_path) not in json.dumps(document)


# --- RO-Crate -------------------------------------------------------------------------------------


def test_the_folder_is_a_crate(written: Paths, experiment: Experiment) -> None:
    crate = ROCrate(str(written.folder))
    root = crate.root_dataset
    assert root["license"].id == "https://spdx.org/licenses/MIT"
    assert [author["name"] for author in root["author"]] == list(citation.AUTHORS)
    assert root["conformsTo"].id == lineage.PROFILE
    assert root["datePublished"]
    action = root["mentions"]
    assert action.type == "CreateAction"
    assert action["instrument"]["name"] == "resnet-limits"
    assert action["object"].id == "experiment.yaml"
    parts = {entity.id for entity in crate.data_entities}
    # Every part is there, and every file and store is inside of a part.
    assert all((written.folder / part).exists() for part in parts)
    for kind in KINDS:
        for cell in cells(kind, experiment):
            name = written.store(kind, **cell).relative_to(written.folder).as_posix()
            assert {name, f"{name}/", f"{kind}/"} & parts
    assert {"report.html", "figures/verdicts.png", "provenance.json"} <= parts
    assert "loss_curves.png" not in " ".join(parts)
    result = crate.get("report.html")
    assert result["sha256"] == integrity.digest(written.report)


def test_the_citation_is_that_of_the_citation_file() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["title"] == citation.NAME
    assert cff["license"] == citation.LICENCE
    assert tuple(author["name"] for author in cff["authors"]) == citation.AUTHORS
    assert [
        citation.Reference(
            article["title"],
            tuple(author["family-names"] for author in article["authors"]),
            article["year"],
            article["identifiers"][0]["value"].removeprefix("arXiv:"),
        )
        for article in cff["references"]
    ] == list(citation.REFERENCES)


# --- soundness ------------------------------------------------------------------------------------


def test_a_document_of_other_digests_is_unsound(
    written: Paths, experiment: Experiment, content: Callable[..., Any]
) -> None:
    file = written.lineage["prov"]
    assert file in set(checking.find(written.folder))
    found = checking.check(file)
    assert found is not None
    assert found.findings == ()
    cell = {"depth": 2, "width": 8, "embed_dim": 4}
    publish(
        content("finite", seed=5),
        written.store("finite", **cell),
        kind="finite",
        experiment=experiment,
        key=provenance.stage_key("finite", experiment, **cell),
        device="cpu",
        started=time.monotonic(),
        manifest=written.manifest("finite", **cell),
    )
    found = checking.check(file)
    assert found is not None
    (finding,) = found.findings
    assert finding.startswith("finite/L2_M8_D4.zarr: computed again since")


# --- attributes of stores -------------------------------------------------------------------------


def test_every_store_names_what_it_was_made_from(written: Paths, experiment: Experiment) -> None:
    attrs = integrity.attributes(written.store("wide", depth=2, embed_dim=4))
    assert json.loads(attrs["derived_from"]) == {
        stage: provenance.stage_key(stage, experiment) for stage in ("problem", "dmft")
    }
    assert attrs["references"] == "arXiv:2603.18168, arXiv:2509.10167"
    assert attrs["source"].startswith("resnet-limits ")
    rates = integrity.read_json(written.store("rates"))["provenance"]
    assert set(json.loads(rates["derived_from"])) == {"errors", "prediction"}


def test_only_what_the_pairs_need_is_an_ancestor(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    experiment = tiny_experiment(sweep={"pairs": ["finite-wide"]})
    # The DMFT limit's pilot fixes the quadrature of all limits.
    assert provenance.ancestors("errors", experiment) == ("problem", "dmft", "wide", "finite")
    assert provenance.ancestors("errors") == ("problem", "dmft", "mean_ode", "wide", "finite")
    assert provenance.ancestors("wide", experiment) == ("problem", "dmft")


@pytest.mark.parametrize("stage", keys.STAGES)
def test_the_key_covers_every_ancestor(stage: str) -> None:
    """What is read without a key of its own stands behind one that has it."""
    covered, left = set(), [stage]
    while left:
        after = keys._STAGES[left.pop()].after
        covered |= set(after)
        left += after
    assert set(provenance.ancestors(stage)) <= covered


# --- pictures -------------------------------------------------------------------------------------


def picture(path: Path, metadata: dict[str, Any] | None) -> bytes:
    figure = Figure()
    figure.subplots().plot([1, 2])
    return save(figure, path, metadata).read_bytes()


@pytest.fixture
def metadata(experiment: Experiment) -> dict[str, Any]:
    return provenance.picture_metadata(
        experiment, "three_terms", title="Three terms", description="Error ~ 1/√D – and 1/L"
    )


def test_pictures_say_where_they_come_from(
    metadata: dict[str, Any], experiment: Experiment, tmp_path: Path
) -> None:
    key = provenance.stage_key("rates", experiment)
    for form in ("png", "svg", "pdf"):
        picture(tmp_path / f"a.{form}", metadata[form])
    with Image.open(tmp_path / "a.png") as image:
        text = image.text
    assert text["Title"] == "Three terms"
    assert text["Description"] == "Error ~ 1/√D – and 1/L"
    assert f"rates {key}" in text["Source"]
    assert text["Software"].startswith("resnet-limits ")
    terms = {
        element.tag.rpartition("}")[2]: " ".join(element.itertext()).strip()
        for element in ET.parse(tmp_path / "a.svg").find(".//{http://creativecommons.org/ns#}Work")
    }
    assert terms["title"] == "Three terms"
    assert f"rates {key}" in terms["source"]
    assert terms["rights"] == "MIT"
    assert "date" not in terms
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert re.search(rb"/Title \(Three terms\)", pdf)
    assert f"rates {key}".encode() in pdf
    assert b"CreationDate" not in pdf


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_equal_pictures_are_equal_files(
    form: str, metadata: dict[str, Any], tmp_path: Path
) -> None:
    first = picture(tmp_path / f"a.{form}", metadata[form])
    assert picture(tmp_path / f"b.{form}", metadata[form]) == first
    other = metadata[form] | {"Title": "Another"}
    assert picture(tmp_path / f"c.{form}", other) != first
    assert picture(tmp_path / f"d.{form}", None) != first

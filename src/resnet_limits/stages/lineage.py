"""Where all results of an experiment come from, in standard vocabularies.

``provenance.json`` is W3C PROV (PROV-JSON): every store, figure and page with its digest, the
stages that made them, the software that ran, and what was made from what, down to the experiment
file. ``ro-crate-metadata.json`` is an RO-Crate (profile Process Run Crate): the folder as a
dataset with name, licence, authors and parts. Both say what was there when they were written.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from resnet_limits import integrity, provenance
from resnet_limits.kinds import CELL_KEYS, COMPUTED, JSON_KINDS, KINDS
from resnet_limits.provenance import citation
from resnet_limits.stages.paths import Paths, cells

if TYPE_CHECKING:
    from prov.model import ProvDocument

    from resnet_limits.config import Experiment

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
"""What the RO-Crate conforms to."""

_PROV_JSON = "https://www.w3.org/submissions/2013/SUBM-prov-json-20130424/"
_SPDX = "https://spdx.org/licenses/"
_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".yaml": "application/yaml",
    ".zarr": "application/vnd+zarr",
}
# Sweeps of thousands of cells would stand in these a second time.
_WITH_PARAMETERS = {"problem", "prediction", *COMPUTED}
_SUMMARIES = {
    "problem": "data of the learning problem",
    "dmft": "DMFT limit",
    "mean_ode": "Mean ODE limits, one store for each embedding dimension",
    "wide": "infinitely wide networks, one store for each depth and embedding dimension",
    "finite": "trained networks, one store for each shape",
    "prediction": "predicted amplitudes of the terms of the error",
    "errors": "distances between networks and limits",
    "rates": "fitted exponents and amplitudes, and what became of each claim",
}


@dataclass(frozen=True)
class Result:
    """One result, figure or page that is there.

    Attributes
    ----------
    name : str
        Its path in the folder.
    stage : str
        The stage that made it: a kind of result, ``figures`` or ``report``.
    manifest : dict
        What its manifest says.
    attrs : dict
        What it says of its making itself; nothing for figures and pages.
    """

    name: str
    stage: str
    manifest: Mapping[str, Any]
    attrs: Mapping[str, Any]

    @property
    def ended(self) -> datetime:
        """When it was finished."""
        created = self.attrs.get("created")
        if created is None:
            return datetime.fromtimestamp(self.manifest["modified"] // 10**9, UTC)
        return datetime.fromisoformat(created)

    @property
    def started(self) -> datetime:
        """When its computation began; the same as its end where no time was kept."""
        return self.ended - timedelta(seconds=self.attrs.get("wall_time_s", 0.0))


def _results(experiment: Experiment, paths: Paths) -> Iterator[Result]:
    for kind in KINDS:
        for cell in cells(kind, experiment):
            path = paths.store(kind, **cell)
            manifest = integrity.read_manifest(paths.manifest(kind, **cell))
            attrs = (
                integrity.read_json(path)["provenance"]
                if kind in JSON_KINDS
                else integrity.attributes(path)
            )
            yield Result(path.relative_to(paths.folder).as_posix(), kind, manifest, attrs)


def _pages(paths: Paths, pages: Iterable[Path]) -> Iterator[Result]:
    for page in pages:
        stage = paths.page_stage(page)
        manifest = integrity.read_manifest(paths.page_manifest(page))
        yield Result(page.relative_to(paths.folder).as_posix(), stage, manifest, {})


def _software(result: Result) -> tuple[str, str, str]:
    """Name what ran: version, state of the sources, and versions of libraries as JSON text."""
    if "package_version" in result.attrs:
        attrs = result.attrs
        return attrs["package_version"], attrs["git_state"], attrs["library_versions"]
    # Figures and pages are of the pipeline that writes this down, whose key they have.
    from resnet_limits import __version__

    versions = json.dumps(provenance.library_versions(), sort_keys=True, separators=(",", ":"))
    return __version__, provenance.git_state(), versions


class _Document:
    """A PROV document under construction, with the names that its records have."""

    def __init__(self, experiment: Experiment, digest: str) -> None:
        from prov.model import ProvDocument

        self.experiment = experiment
        self.prov: ProvDocument = ProvDocument()
        config_hash = provenance.config_hash(experiment)
        # The same paths are other results in another experiment.
        root = f"urn:resnet-limits:{quote(experiment.experiment, safe='')}:{config_hash}:"
        self.prov.add_namespace("results", root)
        self.prov.add_namespace("stage", f"{root}stage:")
        self.prov.add_namespace("input", f"{root}input:")
        self.prov.add_namespace("software", "urn:resnet-limits:software:")
        self.prov.add_namespace("rl", "urn:resnet-limits:terms:")
        self.prov.add_namespace("arxiv", "https://arxiv.org/abs/")
        self.prov.add_namespace("dcterms", "http://purl.org/dc/terms/")
        self.experiment_file = "results:experiment.yaml"
        self.prov.entity(
            self.experiment_file,
            {
                "prov:type": self.prov.valid_qualified_name("prov:Plan"),
                "prov:label": "experiment file, validated",
                "rl:config_hash": config_hash,
                "rl:sha256": digest,
            },
        )
        self.origins = [self.experiment_file, *self._data()]
        for reference in citation.REFERENCES:
            self.prov.entity(
                f"arxiv:{reference.arxiv}",
                {
                    "dcterms:title": reference.title,
                    "dcterms:creator": ", ".join(reference.authors),
                    "dcterms:issued": reference.year,
                },
            )
        self.agents: dict[tuple[str, str, str], str] = {}
        # What stands for all results of a stage.
        self.made: dict[str, list[str]] = {}

    def _data(self) -> Iterator[str]:
        """Record the file that the data come from, if they do."""
        data = self.experiment.problem.data
        if data.kind == "file":
            values = provenance.values_read("problem", self.experiment)
            name = f"input:{quote(Path(data.path).name)}"
            self.prov.entity(
                name, {"prov:label": "data file", "rl:digest": values["problem.data.path"]}
            )
            yield name

    def agent(self, software: tuple[str, str, str]) -> str:
        if software not in self.agents:
            version, git_state, libraries = software
            state = integrity.text_digest("\n".join(software))[:8]
            self.agents[software] = name = f"software:{citation.NAME}-{version}-{state}"
            self.prov.agent(
                name,
                {
                    "prov:type": self.prov.valid_qualified_name("prov:SoftwareAgent"),
                    "prov:label": f"{citation.NAME} {version}",
                    "rl:version": version,
                    "rl:git_state": git_state,
                    "rl:library_versions": libraries,
                    "dcterms:license": citation.LICENCE,
                },
            )
        return self.agents[software]

    def add_stage(self, stage: str, results: Sequence[Result]) -> None:
        """Record the results of one stage, and as activities its runs by code and software."""
        sources = [name for earlier in self.ancestors(stage) for name in self.made[earlier]]
        sources = sources or self.origins
        runs = defaultdict(list)
        for result in results:
            runs[str(result.attrs.get("code_hash", "")), _software(result)].append(result)
        for number, ((code_hash, software), made) in enumerate(runs.items(), start=1):
            activity = f"stage:{stage}" + (f".{number}" if number > 1 else "")
            self._activity(activity, stage, code_hash, made)
            self.prov.wasAssociatedWith(activity, self.agent(software), self.experiment_file)
            for name in dict.fromkeys([self.experiment_file, *sources]):
                self.prov.used(activity, name)
            for reference in citation.REFERENCES:
                self.prov.wasInfluencedBy(activity, f"arxiv:{reference.arxiv}")
            for result in made:
                entity = self._entity(result)
                self.prov.wasGeneratedBy(entity, activity, result.ended)
                for name in sources:
                    self.prov.wasDerivedFrom(entity, name)
        names = [f"results:{result.name}" for result in results]
        if CELL_KEYS.get(stage):
            collection = f"results:{stage}"
            self.prov.collection(collection, {"prov:label": _SUMMARIES[stage]})
            for name in names:
                self.prov.hadMember(collection, name)
            names = [collection]
        self.made[stage] = names

    def ancestors(self, stage: str) -> list[str]:
        return [
            name for name in provenance.ancestors(stage, self.experiment) if self.made.get(name)
        ]

    def _activity(self, name: str, stage: str, code_hash: str, made: Sequence[Result]) -> None:
        attributes: dict[str, Any] = {
            "prov:label": f"stage {stage}",
            "rl:results": len(made),
            "rl:wall_time_s": round(sum(r.attrs.get("wall_time_s", 0.0) for r in made), 3),
        }
        attributes["rl:stage_key"] = provenance.stage_key(stage, self.experiment)
        if code_hash:
            attributes["rl:code_hash"] = code_hash
        if stage in _WITH_PARAMETERS:
            attributes["rl:parameters"] = json.dumps(
                provenance.values_read(stage, self.experiment), separators=(",", ":")
            )
        started, ended = min(r.started for r in made), max(r.ended for r in made)
        self.prov.activity(name, started, ended, attributes)

    def _entity(self, result: Result) -> str:
        facts = {
            "prov:type": self.prov.valid_qualified_name(f"rl:{result.stage}"),
            "rl:stage_key": result.manifest["stage_key"],
            "rl:sha256": result.manifest["digest"],
            "rl:bytes": result.manifest["bytes"],
        }
        for name in ("wall_time_s", "device"):
            if name in result.attrs:
                facts[f"rl:{name}"] = result.attrs[name]
        if seeds := result.attrs.get("seeds"):
            facts["rl:seeds"] = len(seeds)
        name = f"results:{result.name}"
        self.prov.entity(name, facts)
        return name


def prov_document(experiment: Experiment, results: Sequence[Result], digest: str) -> ProvDocument:
    """Lay out the results of an experiment as a PROV document.

    Entities are the results, activities the stages (one for each code and software that they ran
    with), agents the software. Stages of many cells have a collection of their results, from which
    later ones are derived, so that a document of thousands of cells stays small.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    results : sequence of Result
        Those that are there.
    digest : str
        SHA-256 of the experiment file that lies beside them.
    """
    document = _Document(experiment, digest)
    for stage in provenance.STAGES:
        if of_stage := [result for result in results if result.stage == stage]:
            document.add_stage(stage, of_stage)
    return document.prov


def _parts(results: Sequence[Result]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files and folders of a crate, each with its properties; cells of one kind as one folder."""
    for stage in dict.fromkeys(result.stage for result in results):
        of_stage = [result for result in results if result.stage == stage]
        if CELL_KEYS.get(stage):
            yield (
                f"{stage}/",
                {
                    "name": stage,
                    "description": f"{len(of_stage)} stores: {_SUMMARIES[stage]}",
                    "encodingFormat": _MEDIA_TYPES[".zarr"],
                },
            )
            continue
        for result in of_stage:
            suffix = Path(result.name).suffix
            facts = {
                "name": result.name,
                "encodingFormat": _MEDIA_TYPES.get(suffix, "application/octet-stream"),
                "sha256": result.manifest["digest"],
            }
            if stage in _SUMMARIES:
                facts["description"] = _SUMMARIES[stage]
            if suffix != ".zarr":
                facts["contentSize"] = str(result.manifest["bytes"])
            yield result.name + ("/" if suffix == ".zarr" else ""), facts


def crate(experiment: Experiment, results: Sequence[Result]) -> dict[str, Any]:
    """Describe the folder of an experiment as an RO-Crate of the profile Process Run Crate.

    Returns
    -------
    dict
        JSON-LD: the folder with its name, licence, authors and parts, the software, the articles,
        and the run as one action that made all parts from the experiment file.
    """
    from rocrate.model import ContextEntity
    from rocrate.rocrate import ROCrate

    from resnet_limits import __version__

    made = ROCrate()
    started, ended = min(r.started for r in results), max(r.ended for r in results)

    def add(identifier: str, kind: str, /, **properties: Any) -> ContextEntity:
        return made.add(ContextEntity(made, identifier, properties={"@type": kind, **properties}))

    licence = add(f"{_SPDX}{citation.LICENCE}", "CreativeWork", name=citation.LICENCE)
    authors = [
        add(f"#author-{number}", "Organization", name=name)
        for number, name in enumerate(citation.AUTHORS, start=1)
    ]
    articles = [
        add(
            reference.address,
            "ScholarlyArticle",
            name=reference.title,
            author=", ".join(reference.authors),
            datePublished=str(reference.year),
        )
        for reference in citation.REFERENCES
    ]
    software = add(
        f"#{citation.NAME}",
        "SoftwareApplication",
        name=citation.NAME,
        softwareVersion=__version__,
        description="Residual networks against their infinite-size limit.",
    )
    software["license"], software["author"], software["citation"] = licence, authors, articles
    names = {
        "experiment.yaml": {"name": "experiment file, validated", "encodingFormat": "text/yaml"},
        "provenance.json": {
            "name": "provenance of every result",
            "encodingFormat": "application/json",
            "conformsTo": {"@id": _PROV_JSON},
        },
    }
    files = {name: made.add_file(dest_path=name, properties=facts) for name, facts in names.items()}
    parts = [
        made.add_dataset(dest_path=name, properties=facts)
        if name.endswith("/")
        else made.add_file(dest_path=name, properties=facts)
        for name, facts in _parts(results)
    ]
    action = add(
        "#run",
        "CreateAction",
        name=f"Experiment {experiment.experiment}",
        startTime=started.isoformat(),
        endTime=ended.isoformat(),
        actionStatus={"@id": "http://schema.org/CompletedActionStatus"},
    )
    action["instrument"], action["object"] = software, files["experiment.yaml"]
    action["result"] = [*parts, files["provenance.json"]]
    profile = add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    root = made.root_dataset
    root["conformsTo"], root["mentions"] = profile, action
    root["author"], root["license"], root["citation"] = authors, licence, articles
    made.name = f"{citation.NAME}: {experiment.experiment}"
    made.description = (
        f"Results of the experiment {experiment.experiment}: residual networks, their limits of "
        "infinite size, and the distances between them."
    )
    made.datePublished = ended
    return dict(made.metadata.generate())


def write(experiment: Experiment, paths: Paths, pages: Iterable[Path]) -> list[Path]:
    """Write experiment file, PROV document and RO-Crate beside the results that are there.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    paths : Paths
        Places of its results.
    pages : iterable of Path
        Figures and pages, each with its manifest.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    StoreError
        If a result or a page has no manifest.
    """
    results = [*_results(experiment, paths), *_pages(paths, pages)]
    files = paths.lineage
    integrity.write_text(provenance.experiment_text(experiment), files["experiment"])
    document = prov_document(experiment, results, integrity.file_digest(files["experiment"]))
    integrity.write_json(json.loads(str(document.serialize(format="json"))), files["prov"])
    integrity.write_json(crate(experiment, results), files["crate"])
    return [*files.values()]

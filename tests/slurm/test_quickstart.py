"""The quickstart, from data to report."""

from __future__ import annotations

from pathlib import Path

import yaml
from cluster import Cluster
from runs import Site
from trees import ROOT, copy_sources

from resnet_limits import integrity, store
from resnet_limits.config import load_experiment
from resnet_limits.kinds import KINDS
from resnet_limits.stages.paths import Paths, cells


def test_quickstart_goes_through_to_its_report(cluster: Cluster, tmp_path: Path) -> None:
    site = Site(copy_sources(tmp_path / "tree"), cluster)
    try:
        site.tree.write_experiment(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
        site.finish(site.start())
    finally:
        site.end()
    experiment = load_experiment(ROOT / "config/config.yaml")
    paths = Paths(site.tree.path / "results", "quickstart")
    for kind in KINDS:
        for cell in cells(kind, experiment):
            manifest = paths.manifest(kind, **cell)
            path = paths.store(kind, **cell)
            if path.suffix == ".zarr":
                assert store.check(path, manifest=manifest) == []
            else:
                assert integrity.digest(path) == integrity.read_manifest(manifest)["digest"]
    assert "<img src=" in paths.report.read_text(encoding="utf-8")
    assert paths.workflow_page.exists()
    jobs = site.jobs()
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    # Nothing ran beside the queue, the five last steps shared a job, and nothing asked for a GPU:
    # data, DMFT limit, prediction, these, and six jobs of bundles.
    names = [job["Comment"].removeprefix("rule_").rpartition("_")[0] for job in jobs]
    assert set(names) >= {"finite", "mean_ode", "wide"}
    assert len(jobs) == 4 + 6
    assert {job["Partition"] for job in jobs} == {"cpu"}

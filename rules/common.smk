# The experiment, and the functions that the other files use. These lines run before every dry run
# and in every job on a cluster, so nothing here may import torch, xarray or zarr.

import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

from resnet_limits import provenance
from resnet_limits.config import InputError, Shape, load_experiment
from resnet_limits.networks import cost
from resnet_limits.stages.paths import KINDS, Paths, cell_name, cells, figure_names
from snakemake.io import IOFile

# --- the experiment -------------------------------------------------------------------------------


def stop(message):
    """End Snakemake with one line, as the command line does for bad input."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def experiment_file():
    """Find the one file that holds the experiment.

    Snakemake would lay the files and values it is given over one another: two grids would become
    one that nobody asked for. So there is no default ``configfile:``, and values are refused.
    """
    values = set(workflow.config_settings.config) - {"experiment_file", "results"}
    if values:
        stop(
            f"--config: {', '.join(sorted(values))}: values of an experiment stand in its file; "
            "allowed: experiment_file, results"
        )
    files = [Path(file) for file in workflow.overwrite_configfiles]
    if "experiment_file" in workflow.config_settings.config:
        files.append(Path(str(config["experiment_file"])))
    if len(files) > 1:
        stop(f"{len(files)} experiment files are given; allowed: one")
    file = files[0] if files else Path(workflow.basedir, "config", "config.yaml")
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def read_experiment(file):
    try:
        experiment = load_experiment(file)
    except InputError as error:
        stop(error)
    data = experiment.problem.data
    if data.kind == "file" and not Path(data.path).exists():
        stop(
            f"{file}: problem.data.path: {data.path}: no such file; allowed: a readable file"
        )
    return experiment


def share_with_scripts(file, root):
    """Put the validated experiment into ``config``, from where jobs and captions read it.

    Jobs must not read the file itself: it may have been edited since.
    """
    config.clear()
    config.update(
        EXPERIMENT.model_dump(mode="json"),
        experiment_file=str(file.resolve()),
        results=root,
    )


EXPERIMENT_FILE = experiment_file()
EXPERIMENT = read_experiment(EXPERIMENT_FILE)
PATHS = Paths(str(config.get("results", "results")), EXPERIMENT.experiment)
share_with_scripts(EXPERIMENT_FILE, str(PATHS.root))

FIGURES = figure_names(EXPERIMENT)
FIGURE_FILES = [
    PATHS.figures / f"{name}.{form}" for name in FIGURES for form in ("png", "svg")
]

# --- files ----------------------------------------------------------------------------------------


def manifests(*kinds):
    """Manifests of all results of some kinds that the experiment asks for."""
    return [
        PATHS.manifest(kind, **cell)
        for kind in kinds
        for cell in cells(kind, EXPERIMENT)
    ]


def log_file(job):
    return PATHS.folder / "logs" / f"{job}.log"


def benchmark_file(job):
    return PATHS.folder / "benchmarks" / f"{job}.tsv"


def report_source(name):
    folder = os.path.relpath(Path(workflow.basedir, "workflow", "report"))
    return Path(folder, f"{name}.rst")


# --- keys -----------------------------------------------------------------------------------------


def stage_key(stage):
    """Give ``params`` the key that all results of a stage share: any change of it is a rerun.

    The keys of single cells stay out of it, so that a bundle may lose or gain cells. Their number
    of seeds is a parameter of its own, the same for all cells of a bundle.
    """
    return provenance.stage_key(stage, EXPERIMENT)


def goal(*files):
    """Input of a target: its files, after a look at all results that are there already."""

    def checked(wildcards):
        for kind in KINDS:
            for bundle in bundles(kind):
                refuse_foreign(kind, bundle)
        return files

    return checked


def refuse_foreign(kind, bundle):
    """Stop at a result that Snakemake takes for current though its manifest says otherwise.

    Snakemake compares a job's keys with its own records, and only where it has one of every file.
    They are lost when results are moved, and know nothing of what something else has put there.
    """
    found = {}
    for cell in bundle.cells:
        path = PATHS.manifest(kind, **cell)
        if path.exists():
            found[path] = key_of(path) == provenance.stage_key(kind, EXPERIMENT, **cell)
    if all(found.values()):
        return
    records = {path: workflow.persistence.params(IOFile(str(path))) for path in found}
    params = {repr(stage_key(kind))}
    if kind in provenance.SEEDED:
        params.add(repr(bundle.seeds))
    for path, is_current in found.items():
        if not is_current and (
            None in records.values() or params <= set(records[path])
        ):
            stop(
                f"{path}: computed by other code or from other values, and Snakemake has no record "
                f"of how; remove it, or all of {PATHS.folder / 'manifests'}: sound results are kept"
            )


def key_of(path):
    """Key in a manifest; None if it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["stage_key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- cost -----------------------------------------------------------------------------------------

# Rough: these numbers set the size and the limits of jobs, never a result. The time of networks is
# that of the cost model by which an engine is chosen.
# What a limit takes for each point of the quadrature, step and sample, all passes together.
POINT_SECONDS = 3.3e-8
# Seeds of one shape are in memory together as long as they take less than this.
BATCH_MB = 2048
ITEMSIZE = {"float32": 4, "float64": 8}
# Memory that comes with one core of most machines.
CORE_MB = 8000
# Less than this on a core is not worth waiting for a GPU.
GPU_SECONDS = 60


def samples():
    data = EXPERIMENT.problem.data
    # A file is not opened for this.
    return 100 if data.kind == "file" else data.samples


def directions():
    """Estimate r, the embedding directions of the limits: rank of the inputs plus targets."""
    data = EXPERIMENT.problem.data
    if data.kind == "file":
        return 100
    if data.kind == "digits":
        return min(64, data.samples) + data.classes
    return min(data.inputs, data.samples) + data.targets


def seed_count(kind, cell):
    """Count the seeds in the store of one cell."""
    return len(provenance.cell_seeds(kind, EXPERIMENT, **cell))


def work(cell):
    """Describe the networks of one cell to the cost model."""
    return cost.Work(
        Shape(**cell),
        samples(),
        EXPERIMENT.training.steps,
        seed_count("finite", cell),
        itemsize=ITEMSIZE[EXPERIMENT.numerics.precision],
    )


def seconds(kind, cell):
    """Estimate the time of one cell with all its seeds, on one core."""
    if kind == "finite":
        return STORE_SECONDS + cost.seconds(EXPERIMENT.sweep.engine, work(cell))
    if getattr(EXPERIMENT.model.unit, "activation", None) == "linear":
        # The cubature's points, at every depth node.
        points = 8 * 4 * directions()
    else:
        points = 7e4 * (1e-3 / EXPERIMENT.numerics.limit_tolerance) ** 1.6
    work_of_one = EXPERIMENT.training.steps * samples() * points * POINT_SECONDS
    return max(1, seed_count(kind, cell)) * (0.05 + work_of_one)


def megabytes(kind, cell):
    """Estimate the peak memory of one cell."""
    if kind != "finite":
        return 2000
    seeds = seed_count(kind, cell)
    network = cost.memory_bytes(EXPERIMENT.sweep.engine, work(cell)) / 2**20
    together = min(seeds, max(1, int(BATCH_MB // network)))
    kept = len(EXPERIMENT.saved_steps) * len(EXPERIMENT.depth_layers(cell["depth"]))
    fields = 2 * seeds * kept * samples() * cell["embed_dim"]
    fields *= 2 * ITEMSIZE[EXPERIMENT.save.dtype] / 2**20
    return math.ceil(1000 + 1.2 * together * network + fields)


def mem_mb(kind, some_cells):
    return max(megabytes(kind, cell) for cell in some_cells)


def minutes(kind, some_cells):
    """Give a job ten times what it is thought to need, and ten minutes."""
    return 10 + math.ceil(sum(seconds(kind, cell) for cell in some_cells) / 6)


def doubling(amount):
    """Give twice as much of a resource to a job at each further attempt.

    Only a cluster makes further attempts by itself, and there a job ends at what it has asked for.
    """

    def resource(wildcards, attempt):
        return amount * 2 ** (attempt - 1)

    return resource


def gpus(kind, some_cells):
    """Count the GPUs that a job asks for: one if it may use it and is large, or must have it.

    A number that nobody limits, unless it is told to: on one machine ``--resources gpu=1`` lets
    such jobs take turns.
    """
    device = EXPERIMENT.numerics.device
    is_large = sum(seconds(kind, cell) for cell in some_cells) >= GPU_SECONDS
    return int(device == "cuda" or (device == "auto" and is_large))


def gpu_site(kind, some_cells):
    """Give what a site wants of jobs with a GPU: its default resource ``gpu_NAME``, as ``NAME``.

    Default resources are all that a profile can say to rules whose number it does not know, and
    they do not see whether a job has a GPU.
    """
    if not gpus(kind, some_cells):
        return {}
    defaults = workflow.resource_settings.default_resources or {}
    return {
        name.removeprefix("gpu_"): getattr(value, "raw", value)
        for name, value in defaults.items()
        if name.startswith("gpu_")
    }


def cores(kind, some_cells):
    """One core, as many small jobs side by side are fastest; more for what cannot be side by side.

    That is what takes more than a core's share of memory, and the DMFT limit, for which all other
    limits wait.
    """
    if kind == "dmft":
        return 1 + min(3, int(seconds(kind, {}) / 10))
    return math.ceil(mem_mb(kind, some_cells) / CORE_MB)


# --- bundles --------------------------------------------------------------------------------------

# Starting Python and importing torch takes about three seconds, on a cluster two Snakemakes before it
# as much again: under a tenth of a job. A store takes a few milliseconds.
BUNDLE_SECONDS, STORE_SECONDS, MOST_BUNDLES = 120, 0.01, 64


class Bundle(NamedTuple):
    """Cells that one job computes, all with the same number of seeds; the name of its job."""

    name: str
    cells: list
    seeds: int


def bundles(kind):
    """Share the cells of a kind among jobs of about equal cost.

    Which cells share a job is nobody's business but the scheduler's: it appears in no file and in
    no ``params``. Cells that the last complete sweep had are kept apart from new ones and from
    those that had another number of seeds, so that a new sweep value plans jobs for its own cells
    only. The number of seeds is in ``params``, and so the same for all cells of a job.
    """
    finished = cells_of_last_sweep()
    groups = {}
    for cell in cells(kind, EXPERIMENT):
        count = seed_count(kind, cell)
        is_new = finished.get(cell_name(kind, **cell)) != count
        groups.setdefault((is_new, count), []).append(cell)
    parts = [
        (part, count)
        for (_, count), group in sorted(groups.items())
        for part in split(kind, group)
    ]
    return [
        Bundle(f"{kind}_{number:02d}", part, count)
        for number, (part, count) in enumerate(parts, start=1)
    ]


def cells_of_last_sweep():
    """Names of the cells behind the last error tables, each with its number of seeds.

    This does not change while networks and limits are computed, so that a job on a cluster, which
    reads this file again, finds the same bundles.
    """
    try:
        manifest = json.loads(PATHS.manifest("errors").read_text(encoding="utf-8"))
        return dict(manifest["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def split(kind, some_cells):
    """Cut the cells, from dear to cheap, into parts of about equal cost.

    Dear ones keep together because a job's memory is that of its largest cell.
    """
    costs = [(seconds(kind, cell), cell) for cell in some_cells]
    total = sum(cost for cost, _ in costs)
    # Two jobs already where it pays to use a second core.
    count = max(math.ceil(total / BUNDLE_SECONDS), 2 if total > 6 else 1)
    count = min(count, MOST_BUNDLES, len(some_cells))
    parts = [[] for _ in range(count)]
    before = 0.0
    for cost, cell in sorted(costs, key=lambda item: (-item[0], *item[1].values())):
        parts[min(count - 1, int(count * (before + cost / 2) / total))].append(cell)
        before += cost
    return [
        sorted(part, key=lambda cell: tuple(cell.values())) for part in parts if part
    ]


def said(kind, bundle):
    """Say how many cells a bundle has, and which are the first and the last."""
    names = [cell_name(kind, **cell).partition("/")[2] for cell in bundle.cells]
    return (
        names[0]
        if len(names) == 1
        else f"{len(names)} cells, {names[0]} to {names[-1]}"
    )

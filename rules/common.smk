# The experiment, and the functions that the other files use. These lines run before every dry run
# and in every job on a cluster, so nothing here may import torch, xarray or zarr.

import functools
import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

from resnet_limits import datafile, integrity, lock, provenance
from resnet_limits.config import InputError, load_experiment, one_line
from resnet_limits.stages import estimates
from resnet_limits.kinds import KINDS
from resnet_limits.stages.paths import Paths, cell_name, cells, figure_names
from snakemake.io import IOFile

# --- the experiment -------------------------------------------------------------------------------


def stop(message):
    """End Snakemake with one line, as the command line does for bad input."""
    print("error:", one_line(str(message)), file=sys.stderr)
    sys.exit(2)


# What may be given with --config.
OPTIONS = ("experiment_file", "results", "verify")


def experiment_file():
    """Find the one file that holds the experiment.

    Snakemake would lay the files and values it is given over one another: two grids would become
    one that nobody asked for. So there is no default ``configfile:``, and values are refused.
    """
    values = set(workflow.config_settings.config) - set(OPTIONS)
    if values:
        stop(
            f"--config: {', '.join(sorted(values))}: values of an experiment stand in its file; "
            f"allowed: {', '.join(OPTIONS)}"
        )
    files = [Path(file) for file in workflow.overwrite_configfiles]
    if "experiment_file" in workflow.config_settings.config:
        files.append(Path(str(config["experiment_file"])))
    if len(files) > 1:
        stop(f"{len(files)} experiment files are given; allowed: one")
    file = files[0] if files else Path(workflow.basedir, "config", "config.yaml")
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def verify_all():
    """Whether every result is to be read at planning, however much that is."""
    value = str(workflow.config_settings.config.get("verify", False)).lower()
    if value not in ("true", "false"):
        stop(f"--config: verify: got {value}; allowed: true, false")
    return value == "true"


def read_experiment(file):
    try:
        experiment = load_experiment(file)
    except InputError as error:
        stop(error)
    data = experiment.problem.data
    if data.kind == "file":
        # Before its content is hashed, which a pipe or a device would never let end.
        try:
            datafile.check(data.path)
        except InputError as error:
            stop(f"{file}: {error}")
    return experiment


def results_folder():
    """Read the folder of all results, which becomes part of Snakemake's own patterns."""
    folder = config.get("results") or "results"
    if not isinstance(folder, str):
        stop(
            f"--config: results: {folder}: Snakemake reads this name as a number or a list; "
            "allowed: a path, as in ./NAME"
        )
    if not folder.isprintable() or set(folder) & set("{}"):
        stop(
            f"--config: results: {folder}; allowed: a path of printable characters but {{ and }}"
        )
    return folder


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
VERIFY_ALL = verify_all()
EXPERIMENT = read_experiment(EXPERIMENT_FILE)
PATHS = Paths(results_folder(), EXPERIMENT.experiment)
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


# --- what is planned ------------------------------------------------------------------------------

# What this run has planned, for its jobs.
PLAN = PATHS.folder / ".plan"


def what_is_planned():
    """Describe all that a job may take from the experiment, the code and the data."""
    return {
        "sweep": EXPERIMENT.sweep.model_dump(mode="json"),
        "keys": {stage: stage_key(stage) for stage in provenance.STAGES},
    }


def refuse_another_plan():
    """Stop a job that a cluster starts when the experiment is no longer the one that was planned.

    Jobs read the Snakefile and the experiment file again, hours later, and would else take part in
    an experiment that nobody has planned.
    """
    try:
        planned = json.loads(PLAN.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        planned = None
    if planned != what_is_planned():
        stop(
            f"{EXPERIMENT_FILE}: experiment, code or data were edited after this job was planned; "
            "run again"
        )


if not workflow.is_main_process:
    refuse_another_plan()


# --- what is there already ------------------------------------------------------------------------

# Results that are no more than this together are read at every planning, which takes a second or
# two; of more, those whose files have another size or time than when they were written.
READ_MB, READ_FILES = 256, 20_000


def goal(*files):
    """Input of a target: its files, after a look at all results that are there already."""

    def checked(wildcards):
        if workflow.is_main_process:
            look_at_results()
        return files

    return checked


@functools.cache
def look_at_results():
    """See that nobody else is at work here, and that all that is there is what it should be.

    Once, before anything is planned, in Snakemake's main process.
    """
    # Without settings of an execution Snakemake writes a report, a list or the like.
    is_dry = workflow.execution_settings is None or workflow.dryrun
    if not is_dry:
        hold_results()
    found = {}
    for kind in KINDS:
        for bundle in bundles(kind):
            found |= read_manifests(kind, bundle)
    if workflow.execution_settings is not None:
        find_damage(found, read_page_manifests(), is_dry)


def hold_results():
    """Lock the results for this process, and clear what killed processes have left in them."""
    try:
        lock.hold(PATHS.folder, lambda line: print(line, file=sys.stderr))
        for folder in integrity.folders(PATHS.folder):
            integrity.remove_leftovers(folder)
    except lock.LockError as error:
        stop(error)
    except OSError as error:
        stop(f"{PATHS.folder}: {error}")


def read_manifests(kind, bundle):
    """Read manifests; those of today's keys, each with the path of its result."""
    found = {}
    for cell in bundle.cells:
        path = PATHS.manifest(kind, **cell)
        if manifest := manifest_or_nothing(path, path):
            found[path] = manifest
    is_current = {
        path: found[path]["stage_key"] == provenance.stage_key(kind, EXPERIMENT, **cell)
        for cell in bundle.cells
        if (path := PATHS.manifest(kind, **cell)) in found
    }
    refuse_foreign(kind, bundle, is_current)
    return {
        path: (PATHS.store(kind, **cell), found[path])
        for cell in bundle.cells
        if is_current.get(path := PATHS.manifest(kind, **cell))
    }


def read_page_manifests():
    """Read manifests of figures and the report; those of today's key, each with its page.

    Pages of another key are planned again: Snakemake does so only where it has a record of them.
    """
    key = stage_key("figures")
    found = {}
    for page in (*FIGURE_FILES, PATHS.report):
        path = PATHS.page_manifest(page)
        manifest = manifest_or_nothing(path, page) if page.exists() else None
        if manifest and manifest["stage_key"] == key:
            found[path] = (page, manifest)
        elif manifest:
            plan_again(page)
    return found


def manifest_or_nothing(path, tracked):
    """Read a manifest if there is one; if it is damaged, make Snakemake plan its result again."""
    try:
        return integrity.read_manifest(path)
    except integrity.StoreError as error:
        if path.exists():
            print(f"{error}: its result will be computed again", file=sys.stderr)
            plan_again(tracked)
        return None


def find_damage(found, pages, is_dry):
    """Plan again what is not what its manifest vouches for.

    The manifest stays, and with it the sharing of cells among jobs, until Snakemake removes it
    before the job runs. The store goes, so that the job does not take it for sound.
    """
    most = math.inf if VERIFY_ALL else READ_MB * 2**20
    most_files = math.inf if VERIFY_ALL else READ_FILES
    for damage in integrity.damage(
        found | pages, most_bytes=most, most_files=most_files, refresh=not is_dry
    ):
        if not is_dry:
            try:
                integrity.remove(damage.store)
            except OSError as error:
                stop(f"{damage.store}: damaged, and cannot be removed: {error}")
        print(damage, file=sys.stderr)
        plan_again(damage.store if damage.manifest in pages else damage.manifest)


def plan_again(file):
    """Make Snakemake run the job of one of its files."""
    workflow.dag.forcefiles.add(IOFile(str(file)))


def refuse_foreign(kind, bundle, is_current):
    """Stop at a result that Snakemake takes for current though its manifest says otherwise.

    Snakemake compares a job's keys with its own records, and only where it has one of every file.
    They are lost when results are moved, and know nothing of what something else has put there.
    """
    if all(is_current.values()):
        return
    records = {
        path: workflow.persistence.params(IOFile(str(path))) for path in is_current
    }
    params = {repr(stage_key(kind))}
    if kind in provenance.SEEDED:
        params.add(repr(bundle.seeds))
    for path, current in is_current.items():
        if not current and (None in records.values() or params <= set(records[path])):
            stop(
                f"{path}: computed by other code or from other values, and Snakemake has no record "
                f"of how; remove it, or all of {PATHS.folder / 'manifests'}: sound results are kept"
            )


# --- cost -----------------------------------------------------------------------------------------

# Memory that comes with one core of most machines.
CORE_MB = 8000
# Less than this on a core is not worth waiting for a GPU.
GPU_SECONDS = 60


def seed_count(kind, cell):
    """Count the seeds in the store of one cell."""
    return len(provenance.cell_seeds(kind, EXPERIMENT, **cell))


def seconds(kind, cell):
    """Estimate the time of one cell with all its seeds, on one core."""
    return estimates.seconds(kind, EXPERIMENT, **cell)


def megabytes(kind, cell):
    """Estimate the peak memory of one cell."""
    return estimates.megabytes(kind, EXPERIMENT, **cell)


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
# as much again: under a tenth of a job.
BUNDLE_SECONDS, MOST_BUNDLES = 120, 64


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

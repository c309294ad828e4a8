# The experiment, and the names that the other files use. These lines run before every dry run and
# in every job on a cluster, so nothing here may import torch, xarray or zarr.

import functools
import os
import sys
import uuid
from pathlib import Path

from resnet_limits import datafile, integrity, provenance
from resnet_limits.config import InputError, load_experiment, one_line
from resnet_limits.kinds import COMPUTED, KINDS
from resnet_limits.stages import plan
from resnet_limits.stages import bundles as sharing
from resnet_limits.stages import estimates
from resnet_limits.stages import resources as costs
from resnet_limits.stages.paths import (
    FIGURE_FORMS,
    FIGURE_STYLE,
    TEMPLATES,
    Paths,
    cells,
    figure_names,
)
from resnet_limits.stages.resources import doubling
from resnet_limits.stages.snakemake_api import Snakemake

# --- the experiment -------------------------------------------------------------------------------

SNAKEMAKE = Snakemake(workflow)
OPTIONS = SNAKEMAKE.options
# What may be given with --config.
ALLOWED = (
    "experiment_file",
    "results",
    "replace",
    "verify",
    "figure_style",
    "errors_workers",
)
# Values in YAML, which nobody means as a name.
WORDS = ("", "~", "null", "true", "false", "yes", "no", "on", "off")


def stop(message):
    """End Snakemake with one line, as the command line does for bad input."""
    print("error:", one_line(str(message)), file=sys.stderr)
    sys.exit(2)


def say(line):
    print(line, file=sys.stderr)


def experiment_file():
    """Find the one file that holds the experiment.

    Snakemake would lay the files and values it is given over one another: two grids would become
    one that nobody asked for. So there is no default ``configfile:``, and values are refused.
    """
    values = set(OPTIONS) - set(ALLOWED)
    if values:
        stop(
            f"--config: {', '.join(sorted(values))}: the values of an experiment belong in its file; "
            f"allowed: {', '.join(ALLOWED)}"
        )
    files = list(SNAKEMAKE.config_files)
    if "experiment_file" in OPTIONS:
        files.append(Path(option("experiment_file")))
    if len(files) > 1:
        stop(f"{len(files)} experiment files are given; allowed: one")
    file = files[0] if files else SNAKEMAKE.folder / "config" / "config.yaml"
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def option(name):
    """Give a path of --config. Snakemake reads some names as numbers, or as nothing at all."""
    value = OPTIONS[name]
    if not isinstance(value, str) or value.lower() in WORDS:
        stop(
            f"--config: {name}: {'nothing' if value is None else value}: Snakemake reads this name "
            "as a number, a list or another value; allowed: a path, as in ./NAME"
        )
    return value


def switch(name):
    """Give a value of --config that is true or false."""
    value = str(OPTIONS.get(name, False)).lower()
    if value not in ("true", "false"):
        stop(f"--config: {name}: got {value}; allowed: true, false")
    return value == "true"


def count(name):
    """Give a value of --config that is a number of things."""
    value = OPTIONS.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        stop(f"--config: {name}: got {value}; allowed: a number, 0 or more")
    return value


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
    return estimates.with_limit_seeds(experiment)


def results_folder():
    """Read the folder of all results, which becomes part of Snakemake's own patterns."""
    folder = option("results") if "results" in OPTIONS else "results"
    if not folder.isprintable() or set(folder) & set("{}"):
        stop(
            f"--config: results: {folder}; allowed: a path of printable characters other than {{ and }}"
        )
    return folder


def figure_style():
    """Find the style sheet that is laid over that of the figures; None without."""
    if "figure_style" not in OPTIONS:
        return None
    path = Path(option("figure_style")).resolve()
    if not path.is_file():
        stop(
            f"--config: figure_style: {path}: no such file; allowed: a matplotlib style sheet"
        )
    return str(path)


def share_with_scripts(file, root):
    """Put the validated experiment into ``config``, from where jobs read it.

    Jobs must not read the file itself: it may have been edited since.
    """
    config.clear()
    config.update(
        EXPERIMENT.model_dump(mode="json"),
        experiment_file=str(file.resolve()),
        results=root,
        figure_style=figure_style(),
        errors_workers=count("errors_workers"),
    )


EXPERIMENT_FILE = experiment_file()
VERIFY_ALL, REPLACE = switch("verify"), switch("replace")
EXPERIMENT = read_experiment(EXPERIMENT_FILE)
PATHS = Paths(results_folder(), EXPERIMENT.experiment)
share_with_scripts(EXPERIMENT_FILE, str(PATHS.root))

FIGURES = figure_names(EXPERIMENT)
FIGURE_FILES = [PATHS.figure(name, form) for name in FIGURES for form in FIGURE_FORMS]

# --- what rules say -------------------------------------------------------------------------------


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


def digest_of(*files):
    """Digest of some files: as inputs they would be named by the place of this checkout."""
    return integrity.combined_digest(
        {file.name: integrity.file_digest(file) for file in files}
    )


def templates_digest():
    """Digest of what the report is written with."""
    return digest_of(*sorted(TEMPLATES.iterdir()))


def workflow_texts_digest():
    """Digest of the texts of the page of the jobs."""
    folder = SNAKEMAKE.folder / "workflow" / "report"
    return digest_of(folder / "workflow.rst", folder / "style.css")


def style_digest():
    """Digest of what figures look like: a changed style redraws them, and nothing else."""
    sheets = {"default": FIGURE_STYLE}
    if config["figure_style"]:
        sheets["own"] = Path(config["figure_style"])
    return integrity.combined_digest(
        {name: integrity.file_digest(sheet) for name, sheet in sheets.items()}
    )


def stage_key(stage):
    """Give ``params`` the key that all results of a stage share: any change of it is a rerun.

    The keys of single cells stay out of it, so that a bundle may lose or gain cells. Their number
    of seeds is a parameter of its own, the same for all cells of a bundle.
    """
    return provenance.stage_key(stage, EXPERIMENT)


def bundles(kind):
    return sharing.bundles(kind, EXPERIMENT, sharing.cells_of_last_sweep(PATHS))


def cores(kind, some_cells):
    return costs.cores(kind, EXPERIMENT, some_cells)


def resources_of(kind, some_cells):
    return costs.resources(kind, EXPERIMENT, some_cells, SNAKEMAKE.default_resources)


# --- what is planned, and what is there already ---------------------------------------------------

# The name of this run, which its jobs inherit.
RUN = "RESNET_LIMITS_RUN"
# Results that a run for some targets may compute; for all others it is all.
OF_TARGET = {
    "problem": (),
    "limits": ("dmft", "mean_ode", "wide"),
    "networks": ("finite",),
}


def goal(*files):
    """Input of a target: its files, after a look at all results that are there already."""

    def checked(wildcards):
        if SNAKEMAKE.is_main_process and SNAKEMAKE.plans:
            look_at_results()
        return files

    return checked


@functools.cache
def look_at_results():
    """Once, before anything is planned."""
    targets = SNAKEMAKE.targets
    names = targets if targets and targets <= set(OF_TARGET) else {None}
    try:
        again = plan.prepare(
            EXPERIMENT,
            PATHS,
            [
                *FIGURE_FILES,
                PATHS.report,
                PATHS.workflow_page,
                *PATHS.lineage.values(),
            ],
            is_dry=SNAKEMAKE.is_dry,
            replace=REPLACE,
            replaceable={
                kind for name in names for kind in OF_TARGET.get(name, COMPUTED)
            },
            verify=VERIFY_ALL,
            say=say,
        )
    except plan.PlanError as error:
        stop(error)
    for file in again:
        SNAKEMAKE.plan_again(file)


def begin():
    """Once, before the first job."""
    SNAKEMAKE.say_when_stopped(STOPPED)
    SNAKEMAKE.spare_account_guesses()
    plan.record(EXPERIMENT, PATHS, os.environ[RUN])


def say_verdicts():
    """Once, after the last job: what became of every claim, if rates are there."""
    if not integrity.manifest_matches(PATHS.manifest("rates"), stage_key("rates")):
        return
    from resnet_limits.cli.comparing import claims_table

    for line in claims_table(integrity.read_json(PATHS.store("rates"))):
        print(line)


STOPPED = "stopped: what is finished is kept; run the same command again"

if SNAKEMAKE.is_main_process:
    os.environ[RUN] = uuid.uuid4().hex
    SNAKEMAKE.say_when_stopped(STOPPED)
else:
    try:
        plan.refuse_another(EXPERIMENT, PATHS, os.environ.get(RUN))
    except plan.PlanError as error:
        stop(f"{EXPERIMENT_FILE}: {error}")

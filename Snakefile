"""Residual networks against their infinite-size limit: from an experiment file to a report.

    snakemake                                               config/config.yaml, the quickstart
    snakemake --config experiment_file=config/digits.yaml   another experiment
    snakemake --configfile config/digits.yaml               the same for a file that you trust
    snakemake --config results=elsewhere                    another folder of results
    snakemake networks                                      a part: limits, networks, errors, figures

An experiment is read from exactly one file: Snakemake's way of merging configuration files and
values of the command line would make experiments that stand in no file.
"""

from snakemake.utils import min_version

min_version("9.0")


include: "rules/common.smk"


wildcard_constraints:
    depth="[1-9][0-9]*",
    width="[1-9][0-9]*",
    embed_dim="[1-9][0-9]*",


report: "workflow/report/workflow.rst"


include: "rules/problem.smk"
include: "rules/dmft.smk"
include: "rules/mean_ode.smk"
include: "rules/wide.smk"
include: "rules/finite.smk"
include: "rules/prediction.smk"
include: "rules/errors.smk"
include: "rules/report.smk"
include: "rules/collect.smk"


onstart:
    if SNAKEMAKE.is_main_process:
        begin()


onsuccess:
    if SNAKEMAKE.is_main_process:
        say_verdicts()


rule all:
    default_target: True
    input:
        goal(
            *manifests(*KINDS),
            *FIGURE_FILES,
            PATHS.report,
            PATHS.workflow_page,
            *PATHS.lineage.values(),
        ),
    localrule: True
    message:
        f"All results are finished: {PATHS.folder}"

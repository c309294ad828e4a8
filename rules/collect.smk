# Named parts of the pipeline, for the command line: "snakemake networks".


rule limits:
    input:
        goal(*manifests("dmft", "mean_ode", "wide")),
    localrule: True
    message:
        "Limits are finished"


rule networks:
    input:
        goal(*manifests("finite")),
    localrule: True
    message:
        "Finite networks are finished"


rule errors:
    input:
        goal(*manifests("errors", "rates")),
    localrule: True
    message:
        "Error tables and rates are finished"


rule figures:
    input:
        goal(*FIGURE_FILES),
    localrule: True
    message:
        "Figures are finished"

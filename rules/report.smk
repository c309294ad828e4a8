rule draw_figures:
    input:
        # Stands for all stores behind it; thousands of files would be slow to keep record of.
        errors=PATHS.manifest("errors"),
        rates=PATHS.store("rates"),
        prediction=PATHS.store("prediction"),
    output:
        FIGURE_FILES,
    log:
        log_file("figures"),
    benchmark:
        benchmark_file("figures")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=doubling(2000),
        runtime=doubling(30),
    params:
        key=stage_key("figures"),
        style=style_digest(),
    message:
        "Figures"
    script:
        "../workflow/scripts/figures.py"


rule write_report:
    input:
        figures=FIGURE_FILES,
    output:
        # Where all of it comes from, the report included.
        **PATHS.lineage,
        report=PATHS.report,
    log:
        log_file("report"),
    benchmark:
        benchmark_file("report")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=doubling(2000),
        runtime=doubling(10),
    params:
        key=stage_key("report"),
        templates=templates_digest(),
    message:
        "Report and provenance"
    script:
        "../workflow/scripts/report.py"


rule write_workflow_page:
    input:
        figures=FIGURE_FILES,
    output:
        page=PATHS.workflow_page,
    log:
        log_file("workflow_page"),
    benchmark:
        benchmark_file("workflow_page")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=doubling(2000),
        runtime=doubling(10),
    params:
        key=stage_key("figures"),
        texts=workflow_texts_digest(),
    message:
        "Page of the jobs"
    script:
        "../workflow/scripts/workflow_page.py"

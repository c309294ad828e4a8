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
        key=stage_key("figures"),
        captions=captions_digest(),
    message:
        "Report"
    script:
        "../workflow/scripts/report.py"

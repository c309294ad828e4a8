rule draw_figures:
    input:
        # Stands for all stores behind it; thousands of files would be slow to keep record of.
        errors=PATHS.manifest("errors"),
        rates=PATHS.store("rates"),
        prediction=PATHS.store("prediction"),
    output:
        # The order is that of FIGURE_FILES: a picture for the report, and one for a paper.
        [
            (
                report(
                    file,
                    caption=f"../workflow/report/{file.stem}.rst",
                    category=EXPERIMENT.experiment,
                    labels={"figure": file.stem.replace("_", " ")},
                )
                if file.suffix == ".png"
                else file
            )
            for file in FIGURE_FILES
        ],
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
    message:
        "Figures"
    script:
        "../workflow/scripts/figures.py"


rule write_report:
    input:
        figures=FIGURE_FILES,
    output:
        report=PATHS.report,
        # Where all of it comes from, the report included.
        **PATHS.lineage,
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
        "Report and provenance"
    script:
        "../workflow/scripts/report.py"

rule problem:
    input:
        # Whatever the target is, it needs this rule: so results are looked at before any plan.
        goal(),
    output:
        manifest=PATHS.manifest("problem"),
    log:
        log_file("problem"),
    benchmark:
        benchmark_file("problem")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=doubling(2000),
        runtime=doubling(10),
    params:
        key=stage_key("problem"),
    message:
        "Problem: data and loss"
    script:
        "../workflow/scripts/problem.py"

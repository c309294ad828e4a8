rule predict:
    input:
        problem=PATHS.manifest("problem"),
        dmft=PATHS.manifest("dmft"),
    output:
        prediction=PATHS.store("prediction"),
        manifest=PATHS.manifest("prediction"),
    log:
        log_file("prediction"),
    benchmark:
        benchmark_file("prediction")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=doubling(costs.mem_mb("prediction", EXPERIMENT, [{}])),
        runtime=doubling(costs.minutes("prediction", EXPERIMENT, [{}])),
    params:
        key=stage_key("prediction"),
    message:
        "Amplitudes from the limit alone"
    script:
        "../workflow/scripts/prediction.py"

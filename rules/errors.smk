rule measure_errors:
    input:
        manifests("problem", "dmft", "mean_ode", "wide", "finite"),
    output:
        manifest=PATHS.manifest("errors"),
    log:
        log_file("errors"),
    benchmark:
        benchmark_file("errors")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 2
    resources:
        mem_mb=doubling(costs.mem_mb("errors", EXPERIMENT, [{}])),
        runtime=doubling(costs.minutes("errors", EXPERIMENT, [{}])),
    params:
        key=stage_key("errors"),
    message:
        "Distances of every network to its limits"
    script:
        "../workflow/scripts/errors.py"


rule fit_rates:
    input:
        errors=PATHS.manifest("errors"),
        prediction=PATHS.manifest("prediction"),
    output:
        rates=PATHS.store("rates"),
        manifest=PATHS.manifest("rates"),
    log:
        log_file("rates"),
    benchmark:
        benchmark_file("rates")
    conda:
        "../workflow/envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=doubling(2000),
        runtime=doubling(10),
    params:
        key=stage_key("rates"),
    message:
        "Exponents and amplitudes"
    script:
        "../workflow/scripts/rates.py"

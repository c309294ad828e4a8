rule dmft:
    input:
        problem=PATHS.manifest("problem"),
    output:
        manifest=PATHS.manifest("dmft"),
    log:
        log_file("dmft"),
    benchmark:
        benchmark_file("dmft")
    conda:
        "../workflow/envs/environment.yaml"
    threads: cores("dmft", [{}])
    resources:
        **resources_of("dmft", [{}]),
    params:
        key=stage_key("dmft"),
    message:
        "DMFT limit, and the quadrature of all limits"
    script:
        "../workflow/scripts/dmft.py"

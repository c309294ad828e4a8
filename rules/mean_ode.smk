for bundle in bundles("mean_ode"):

    rule:
        name:
            bundle.name
        input:
            problem=PATHS.manifest("problem"),
            dmft=PATHS.manifest("dmft"),
        output:
            manifests=[PATHS.manifest("mean_ode", **cell) for cell in bundle.cells],
        log:
            log_file(bundle.name),
        benchmark:
            benchmark_file(bundle.name)
        conda:
            "../workflow/envs/environment.yaml"
        threads: cores("mean_ode", bundle.cells)
        resources:
            **resources_of("mean_ode", bundle.cells),
        params:
            key=stage_key("mean_ode"),
            seeds=bundle.seeds,
        message:
            f"Mean ODE: {bundle.said()}"
        script:
            "../workflow/scripts/mean_ode.py"

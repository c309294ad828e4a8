for bundle in bundles("finite"):

    rule:
        name:
            bundle.name
        input:
            problem=PATHS.manifest("problem"),
        output:
            manifests=[PATHS.manifest("finite", **cell) for cell in bundle.cells],
        log:
            log_file(bundle.name),
        benchmark:
            benchmark_file(bundle.name)
        conda:
            "../workflow/envs/environment.yaml"
        threads: cores("finite", bundle.cells)
        resources:
            **resources_of("finite", bundle.cells),
        params:
            key=stage_key("finite"),
            seeds=bundle.seeds,
        message:
            f"Finite networks: {bundle.said()}"
        script:
            "../workflow/scripts/finite.py"

for bundle in bundles("wide"):

    rule:
        name:
            bundle.name
        input:
            problem=PATHS.manifest("problem"),
            dmft=PATHS.manifest("dmft"),
        output:
            manifests=[PATHS.manifest("wide", **cell) for cell in bundle.cells],
        log:
            log_file(bundle.name),
        benchmark:
            benchmark_file(bundle.name)
        conda:
            "../workflow/envs/environment.yaml"
        threads: cores("wide", bundle.cells)
        resources:
            **resources_of("wide", bundle.cells),
        params:
            key=stage_key("wide"),
            seeds=bundle.seeds,
        message:
            f"Infinite width: {bundle.said()}"
        script:
            "../workflow/scripts/wide.py"

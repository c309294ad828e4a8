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
            **gpu_site("wide", bundle.cells),
            mem_mb=doubling(mem_mb("wide", bundle.cells)),
            runtime=doubling(minutes("wide", bundle.cells)),
            gpu=gpus("wide", bundle.cells),
        params:
            key=stage_key("wide"),
            seeds=bundle.seeds,
        message:
            f"Infinite width: {said('wide', bundle)}"
        script:
            "../workflow/scripts/wide.py"

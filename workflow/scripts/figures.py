"""Draw all figures, each as PNG and SVG."""

from pathlib import Path

from _job import LOG, running

with running(snakemake, "figures") as job:
    from resnet_limits import integrity, provenance, store
    from resnet_limits.stages import figures

    distances = store.open_groups(job.path_of("errors"))
    rates, prediction = (integrity.read_json(job.path_of(kind)) for kind in ("rates", "prediction"))
    for name in dict.fromkeys(Path(file).stem for file in snakemake.output):
        LOG.info("%s", name)
        drawn = figures.figure(name, job.experiment, job.open_store, distances, rates, prediction)
        metadata = provenance.picture_metadata(job.experiment, name)
        for form in ("png", "svg"):
            page = job.paths.figures / f"{name}.{form}"
            job.vouch_for(figures.save(drawn, page, metadata[form]))

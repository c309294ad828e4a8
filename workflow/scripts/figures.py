"""Draw all figures: pictures, the tables that are their twins, and what is said of them."""

from pathlib import Path

from _job import LOG, running

with running(snakemake, "figures") as job:
    from resnet_limits import integrity, provenance, store
    from resnet_limits.stages import figures

    distances = store.open_groups(job.path_of("errors"))
    rates, prediction = (integrity.read_json(job.path_of(kind)) for kind in ("rates", "prediction"))
    files = [Path(file) for file in snakemake.output]
    with figures.sheet(snakemake.config["figure_style"]):
        for name in dict.fromkeys(file.stem for file in files):
            LOG.info("%s", name)
            picture = figures.figure(
                name, job.experiment, job.open_store, distances, rates, prediction
            )
            metadata = provenance.picture_metadata(
                job.experiment, name, title=picture.title, description=picture.message
            )
            for file in files:
                if file.stem == name:
                    job.vouch_for(picture.save(file, metadata.get(file.suffix[1:])))

"""Write the page that tells of the experiment, and beside it where all results come from."""

from pathlib import Path

from _job import running

with running(snakemake, "report") as job:
    from resnet_limits import integrity
    from resnet_limits.stages import lineage
    from resnet_limits.stages.report import report

    page = Path(snakemake.output.report)
    text = report(job.experiment, job.paths)
    with integrity.temporary(page) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(page)
    job.vouch_for(page)
    pages = [*map(Path, snakemake.input.figures), page]
    for written in lineage.write(job.experiment, job.paths, pages):
        job.vouch_for(written)

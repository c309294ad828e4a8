"""Write the page that tells of the experiment."""

from pathlib import Path

from _job import running

with running(snakemake, "report") as job:
    from resnet_limits import integrity
    from resnet_limits.stages.report import report

    page = Path(snakemake.output.report)
    text = report(job.experiment, job.paths)
    with integrity.temporary(page) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(page)
    job.vouch_for(page)

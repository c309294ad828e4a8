"""Put the graph of all jobs and how long each took into one page, with Snakemake itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from _job import LOG, running

with running(snakemake, "figures") as job:
    from resnet_limits import integrity

    page = Path(snakemake.output.page)
    with integrity.temporary(page) as folder:
        # Snakemake decides by the ending what to write.
        folder.mkdir()
        unfinished = folder / page.name
        # The experiment that was planned: its file may have been edited since.
        file = folder / "experiment.yaml"
        file.write_text(yaml.safe_dump(job.experiment.model_dump(mode="json")), encoding="utf-8")
        root = str(job.paths.root)
        command = [
            *(sys.executable, "-m", "snakemake", "figures", "--workflow-profile", "none"),
            *("--snakefile", Path(snakemake.scriptdir).parents[1] / "Snakefile"),
            *("--configfile", file),
            # The same path as in the run: Snakemake knows by it how long each job took. In quotes
            # and with a dot, as it takes the names of some folders for numbers or for lists.
            *("--config", f"results={json.dumps(os.path.join('.', root), ensure_ascii=False)}"),
            *("--nolock", "--report", unfinished),
            *("--report-stylesheet", Path(snakemake.scriptdir).parent / "report" / "style.css"),
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        LOG.debug("snakemake --report\n%s", done.stdout)
        if done.returncode:
            reason = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
            raise RuntimeError(f"snakemake --report: exit code {done.returncode}: {reason}")
        unfinished.replace(page)
    job.vouch_for(page)

"""Put figures, captions and the record of all jobs into one page, with Snakemake itself."""

import subprocess
import sys
from pathlib import Path

from _job import LOG, running

with running(snakemake, "figures") as job:
    from resnet_limits import integrity

    page = Path(snakemake.output.report)
    with integrity.temporary(page) as folder:
        # Snakemake decides by the ending what to write.
        folder.mkdir()
        unfinished = folder / page.name
        command = [
            *(sys.executable, "-m", "snakemake", "figures", "--workflow-profile", "none"),
            *("--snakefile", Path(snakemake.scriptdir).parents[1] / "Snakefile"),
            *("--configfile", snakemake.config["experiment_file"]),
            *("--config", f"results={job.paths.root}"),
            *("--nolock", "--report", unfinished),
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

"""Put figures, captions and the record of all jobs into one page, with Snakemake itself."""

import os
import subprocess
import sys
from pathlib import Path

from _job import LOG, running

with running(snakemake, "figures") as job:
    page = Path(snakemake.output.report)
    unfinished = page.with_name(f".{page.stem}.{os.getpid()}.html")
    command = [
        *(sys.executable, "-m", "snakemake", "figures", "--workflow-profile", "none"),
        *("--snakefile", Path(snakemake.scriptdir).parents[1] / "Snakefile"),
        *("--configfile", snakemake.config["experiment_file"]),
        *("--config", f"results={job.paths.root}"),
        # This job runs inside the lock of the run that started it, and changes nothing under it.
        *("--nolock", "--report", unfinished),
    ]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        LOG.info("snakemake --report\n%s", done.stdout)
        if done.returncode:
            raise RuntimeError(f"snakemake --report ended with exit code {done.returncode}")
        unfinished.replace(page)
    finally:
        unfinished.unlink(missing_ok=True)

"""The command line: every step of the pipeline without Snakemake.

Exit codes: 0 done; 1 failed (``check``: unsound); 2 bad input, with one line on the error stream;
75 stopped early with finished work saved, run again.

`computing` solves limits and trains networks, `predicting` tells distances without networks,
`comparing` measures distances and fits laws, `shaping` chooses shapes by a law, `exploring` writes
a page of all cells, `looking` reads results and computes nothing, `running` runs one command line.
"""

from __future__ import annotations

from collections.abc import Sequence

from resnet_limits.cli.session import BAD_INPUT, DONE, FAILED, STOPPED, Session, stopped
from resnet_limits.openmp import wait_asleep
from resnet_limits.signals import Stopped, stop_signals

__all__ = ["BAD_INPUT", "DONE", "FAILED", "STOPPED", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; those of the process if left out.

    Returns
    -------
    int
        The exit code: 0, 1, 2 or 75.
    """
    Session.verbose = Session.saved = False
    wait_asleep()
    try:
        with stop_signals() as signals:
            # Late, so that Ctrl-C during the import is one line too.
            from resnet_limits.cli import running

            return running.run(arguments, signals)
    except Stopped as signal_name:
        return stopped(signal_name)

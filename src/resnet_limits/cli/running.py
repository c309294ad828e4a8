"""Running one command line: its messages, its failures and its exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from resnet_limits import __version__
from resnet_limits.cli import comparing, computing, exploring, looking, predicting, shaping
from resnet_limits.cli.session import BAD_INPUT, DONE, FAILED, LOG, Session, complain
from resnet_limits.config import InputError
from resnet_limits.integrity import error_line
from resnet_limits.signals import StopSignals

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped with finished work saved.",
)

# In the order in which the help lists them.
_COMMANDS: dict[str, Callable[..., None]] = {
    "validate": computing.validate,
    "dmft": computing.dmft,
    "mean-ode": computing.mean_ode,
    "wide": computing.wide,
    "train": computing.train,
    "predict": predicting.predict,
    "errors": comparing.errors,
    "rates": comparing.rates,
    "shape": shaping.shape,
    "explore": exploring.explore,
    "status": looking.status,
    "inspect": looking.inspect,
    "check": looking.check,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def _show_version(is_asked: bool) -> None:
    if not is_asked:
        return
    from resnet_limits.provenance import git_state

    state = git_state()
    commit = "" if state == "unknown" else f" (git {state})"
    typer.echo(f"resnet-limits {__version__}{commit}")
    raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress messages.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print more messages, and tracebacks of failures.")
    ] = False,
) -> None:
    """Residual networks against their infinite-size limit.

    A network has L layers of M hidden units, and embedding dimension D.
    """
    Session.verbose = verbose
    LOG.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


@contextmanager
def _logging() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = LOG.level
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)


def run(arguments: Sequence[str] | None, signals: StopSignals) -> int:
    """Run a command line, with one line and an exit code for whatever fails.

    Parameters
    ----------
    arguments : sequence of str or None
        The words after the program's name; those of the process if None.
    signals : StopSignals
        Whether the program has been asked to stop.

    Returns
    -------
    int
        The exit code: 0, 1 or 2.

    Raises
    ------
    Stopped
        If a signal asked the program to stop.
    """
    with _logging():
        try:
            code = app(
                args=None if arguments is None else list(arguments),
                prog_name="resnet-limits",
                standalone_mode=False,
            )
        except Exception as error:
            # A signal that came before says why.
            signals.check()
            if isinstance(error, InputError):
                complain(error)
                return BAD_INPUT
            # Usage errors: their classes moved between versions of typer, their methods did not.
            if hasattr(error, "format_message"):
                complain(error.format_message())
                return int(getattr(error, "exit_code", BAD_INPUT))
            if Session.verbose:
                traceback.print_exc()
            complain(error_line(error))
            return FAILED
    return code if isinstance(code, int) else DONE

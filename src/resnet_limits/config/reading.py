"""From a file to a validated experiment.

Whatever is wrong with the file becomes one `InputError` line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resnet_limits.config.loader import read_yaml
from resnet_limits.config.messages import InputError, explain, one_line, short
from resnet_limits.config.schema import Experiment

MAX_INPUT_BYTES = 2**20
"""Most bytes of an experiment file, which take some seconds to be read."""


def read_input(path: str | os.PathLike[str], allowed: str, most: int = MAX_INPUT_BYTES) -> bytes:
    """Read a small file that a user names.

    Parameters
    ----------
    path : path
        The file.
    allowed : str
        What it should be, for the message.
    most : int
        How many bytes it may have.

    Raises
    ------
    InputError
        If it can't be read, is no regular file, or has more than `most` bytes. A pipe, which
        may never have anything to read, and a device, which may never end, are no regular files.
    """
    where = os.fspath(path)
    try:
        if os.path.isdir(path):
            raise InputError(one_line(f"{where}: is a folder; allowed: {allowed}"))
        # Without this flag a pipe could not even be opened.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(one_line(f"{where}: is not a regular file; allowed: {allowed}"))
            content = stream.read(most + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        readable = allowed.replace("a ", "a readable ", 1)
        raise InputError(one_line(f"{where}: {reason}; allowed: {readable}")) from None
    if len(content) > most:
        raise InputError(one_line(f"{where}: too large; allowed: at most {most} bytes"))
    return content


def load_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read and validate an experiment file.

    Parameters
    ----------
    path : path
        A YAML file. A relative ``problem.data.path`` in it starts from the file's folder.

    Returns
    -------
    Experiment
        The validated experiment.

    Raises
    ------
    InputError
        If there is no such file, it is not YAML, or anything in it is unknown, missing or out of
        bounds. One line: file, key, what is wrong, what is allowed.
    """
    where = os.fspath(path)
    try:
        text = read_input(path, "a YAML file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(one_line(f"{where}: not UTF-8 text; allowed: a YAML file")) from None
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise InputError(one_line(f"{where}: {error}")) from None
    return _validate(content, where, Path(path).resolve().parent)


def experiment_from_dict(content: object, where: str = "experiment") -> Experiment:
    """Validate an experiment that was read already.

    Parameters
    ----------
    content : mapping
        The content of an experiment file, or an experiment's ``model_dump()``.
    where : str
        Named at the beginning of error messages.

    Returns
    -------
    Experiment
        The validated experiment.

    Raises
    ------
    InputError
        If anything is unknown, missing or out of bounds.
    """
    return _validate(content, where, None)


def _validate(content: object, where: str, folder: Path | None) -> Experiment:
    if not content and not isinstance(content, Mapping):
        raise InputError(one_line(f"{where}: empty; allowed: {_top_level()}"))
    if not isinstance(content, Mapping):
        raise InputError(one_line(f"{where}: got {short(content)}; allowed: {_top_level()}"))
    try:
        return Experiment.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        # A misspelt key is also a missing one: the key that is there says more.
        errors = error.errors(include_url=False)
        first = min(errors, key=lambda e: e["type"] not in ("extra_forbidden", "invalid_key"))
        raise InputError(one_line(f"{where}: {explain(first, _cached_schema())}")) from None


def _top_level() -> str:
    return f"a mapping with the keys {', '.join(Experiment.model_fields)}"


@lru_cache(maxsize=1)
def _cached_schema() -> dict[str, Any]:
    return json_schema()


def json_schema() -> dict[str, Any]:
    """Give the JSON schema of the experiment file (config/config.schema.json).

    Returns
    -------
    dict
        JSON schema, draft 2020-12.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(),
    }

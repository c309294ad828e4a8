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

import yaml
from pydantic import ValidationError

from resnet_limits.config.messages import InputError, explain, one_line, short
from resnet_limits.config.schema import Experiment

MAX_INPUT_BYTES = 2**20
"""Most bytes of an experiment file, which take some seconds to be read."""

# Digits, far more than any number within bounds has; to convert very many takes very long.
_MAX_DIGITS = 1000
# Pairs that YAML's merge key may bring into one mapping.
_MAX_MERGED = 1000


def read_input(path: str | os.PathLike[str], allowed: str) -> bytes:
    """Read a small file that a user names.

    Parameters
    ----------
    path : path
        The file.
    allowed : str
        What it should be, for the message.

    Raises
    ------
    InputError
        If it can't be read, is no regular file, or has more than `MAX_INPUT_BYTES`. A pipe, which
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
            content = stream.read(MAX_INPUT_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        readable = allowed.replace("a ", "a readable ", 1)
        raise InputError(one_line(f"{where}: {reason}; allowed: {readable}")) from None
    if len(content) > MAX_INPUT_BYTES:
        raise InputError(one_line(f"{where}: too large; allowed: at most {MAX_INPUT_BYTES} bytes"))
    return content


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with bounds, which also refuses a key that stands twice in a mapping.

    Whatever stands in a file is an error of YAML at a place, or a plain value.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and compare its keys as they are written."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {short(key.value)} stands twice; allowed: every key once",
                    problem_mark=key.start_mark,
                )
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; what has a tag that it can't have is an error at its place."""
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS:
            digits = len(node.value)
            if digits > _MAX_DIGITS:
                raise yaml.MarkedYAMLError(
                    problem=f"a number of {digits} characters; allowed: at most {_MAX_DIGITS}",
                    problem_mark=node.start_mark,
                )
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # Impossible dates, and how yaml's own constructors fail at a foreign value.
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{short(node.value)} is no {kind}; allowed: one YAML mapping",
                problem_mark=node.start_mark,
            ) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what the merge key names, unless that grows beyond bounds."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        parts = [
            part
            for value in merged
            for part in (value.value if isinstance(value, yaml.SequenceNode) else [value])
            if isinstance(part, yaml.MappingNode)
        ]
        for part in parts:
            self.flatten_mapping(part)
        pairs = sum(len(part.value) for part in parts)
        if pairs > _MAX_MERGED:
            raise yaml.MarkedYAMLError(
                problem=f"{pairs} merged keys; allowed: at most {_MAX_MERGED}",
                problem_mark=node.start_mark,
            )
        super().flatten_mapping(node)


_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _explain_yaml(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        # Characters that YAML forbids; what follows the first line is yaml's own bookkeeping.
        return f"not YAML: {str(error).splitlines()[0]}; allowed: printable text"
    problem = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    if "'\\t'" in problem:
        problem = "a tab begins a value; allowed: spaces"
    elif "allowed:" not in problem:
        problem = f"not YAML: {problem}; allowed: one YAML mapping"
    return where + problem


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
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(one_line(f"{where}: {_explain_yaml(error)}")) from None
    except RecursionError:
        raise InputError(
            one_line(f"{where}: nested too deeply; allowed: one YAML mapping")
        ) from None
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

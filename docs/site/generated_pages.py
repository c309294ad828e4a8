"""Pages of the reference that are written by the code itself, as Markdown.

`experiment_keys` is written from the JSON schema of the experiment file, `command_line` from the
commands, and `python_modules` from the modules, whose docstrings Sphinx reads. Nothing in them is
listed by hand but the names of the modules.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import typer
from typer.cli import get_docs_for_click

from resnet_limits.cli.running import app
from resnet_limits.config import json_schema

MODULES = {
    "Experiment and data": (
        *("config", "kinds", "kept", "datafile", "datashape", "problem", "randomness"),
        *("units", "norms", "rules", "dynamics"),
    ),
    "Results": ("results", "fields", "store", "provenance", "cells", "fitted", "laws"),
    "Stages": (
        *("stages.problem", "stages.limits", "stages.networks", "stages.prediction"),
        *("stages.errors", "stages.rates", "stages.figures", "stages.publish"),
        *("stages.paths", "stages.estimates"),
    ),
    "Limits": (
        *("limits.models", "limits.plan", "limits.solver", "limits.depth", "limits.quadrature"),
        *("predicted", "optimum"),
    ),
    "Networks": ("networks.train", "networks.base", "networks.dense", "networks.implicit"),
    "Distances and fits": (
        *("errors.distances", "errors.rates", "errors.families", "errors.intervals"),
        *("errors.shape", "errors.verdicts"),
    ),
}
"""Modules whose public names are documented, by what they are about."""


# --- Python ---------------------------------------------------------------------------------------


def public_names(module: ModuleType) -> list[str]:
    """Names of a module that others may use, in the order of the source.

    Those of ``__all__`` where there is one; else the classes, functions and constants (in capitals)
    that are defined in the module, and do not begin with an underscore.
    """
    listed = getattr(module, "__all__", None)
    return sorted(listed) if listed is not None else list(_defined(module))


def _defined(module: ModuleType) -> dict[str, str]:
    """Give the public names that a source defines, each with the string below a constant."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            names = [name for name in names if name.isupper()]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id] if node.target.id.isupper() else []
        else:
            continue
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = inspect.cleandoc(str(after.value.value)) if is_text else ""
        found.update({name: text for name in names if not name.startswith("_")})
    return found


def _constant_text(module: ModuleType, name: str) -> str:
    """Give the string below a constant, in whichever module of the package defines it."""
    places = [module]
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            places.append(importlib.import_module(str(node.module)))
    return next((text for place in places if (text := _defined(place).get(name))), "")


def python_modules() -> dict[str, str]:
    """Give a page for each module, by the name of the module."""
    seen: set[int] = set()
    return {name: _module_page(name, seen) for names in MODULES.values() for name in names}


def _module_page(name: str, seen: set[int]) -> str:
    """Give the page of a module; an object that another page describes is not indexed again."""
    module = importlib.import_module(f"resnet_limits.{name}")
    full = module.__name__
    lines = [f"# resnet_limits.{name}", "", "```{eval-rst}", f".. automodule:: {full}", ""]
    for public in public_names(module):
        value = getattr(module, public)
        again = ["   :no-index:"] if id(value) in seen else []
        if inspect.isclass(value):
            seen.add(id(value))
            lines += [f".. autoclass:: {full}.{public}", "   :members:", *again, ""]
        elif inspect.isroutine(value):
            seen.add(id(value))
            lines += [f".. autofunction:: {full}.{public}", *again, ""]
        else:
            text = _constant_text(module, public).splitlines()
            lines += [f".. py:data:: {public}", "", *(f"   {line}" for line in text), ""]
    return "\n".join([*lines, "```", ""])


def python_index() -> str:
    """Give the page that lists all modules."""
    lines = [
        "# Python: every public name",
        "",
        "Generated from the docstrings. [Python](python-api.md) says which name is for what.",
        "",
    ]
    for title, names in MODULES.items():
        lines += [f"## {title}", "", "```{toctree}", ":maxdepth: 1", ""]
        lines += [f"{name} <python/{name}>" for name in names]
        lines += ["```", ""]
    return "\n".join(lines)


# --- command line ---------------------------------------------------------------------------------


def command_line() -> str:
    """Give the page of all commands, arguments and options, as ``--help`` tells them."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(
        obj=group,
        ctx=typer.Context(group),
        name="resnet-limits",
        title="Command line: every option",
    )
    head, _, rest = text.partition("\n\n")
    return (
        f"{head}\n\nGenerated from the commands. [Command line](cli.md) explains what they do.\n\n"
        f"{rest.replace('```console', '```text')}"
    )


# --- experiment file ------------------------------------------------------------------------------


def experiment_keys(schema: dict[str, Any] | None = None) -> str:
    """Give the page of all keys of the experiment file.

    Parameters
    ----------
    schema : dict, optional
        JSON schema; that of the package if left out.
    """
    schema = json_schema() if schema is None else schema
    lines = [
        "# Experiment file: every key",
        "",
        "Generated from the JSON schema, `config/config.schema.json`.",
        "[Experiment files](../../config/README.md) explains the keys and what they do together.",
        "",
    ]
    for title, text, keys, required in _sections(schema, schema, (), ""):
        lines += [f"## {title}", "", text, ""]
        lines += ["| key | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
        for key, node in keys.items():
            cells = (
                f"`{key}`",
                _type(node, schema),
                _default(node, schema, key in required),
                _allowed(node, schema),
                _escaped(node.get("description", _resolved(node, schema).get("description", ""))),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


_Section = tuple[str, str, dict[str, Any], set[str]]


def _sections(
    node: dict[str, Any], schema: dict[str, Any], path: tuple[str, ...], kind: str
) -> Iterator[_Section]:
    """Give the mappings of the file, each with its path, in the order of the file."""
    node = _resolved(node, schema)
    keys = node.get("properties", {})
    if keys:
        title = f"`{'.'.join(path)}`" if path else "The file"
        title += f" of kind `{kind}`" if kind else ""
        text = node.get("description", "").partition("\n\n")[0]
        yield title, _escaped(text), keys, set(node.get("required", ()))
    for key, child in keys.items():
        yield from _children(child, schema, (*path, key))


def _children(
    node: dict[str, Any], schema: dict[str, Any], path: tuple[str, ...]
) -> Iterator[_Section]:
    node = _resolved(node, schema)
    if "properties" in node:
        kind = node["properties"].get("kind", {}).get("const", "")
        yield from _sections(node, schema, path, kind)
    else:  # a mapping's own "oneOf" says only which of its keys go together
        for option in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            yield from _children(option, schema, path)
    if isinstance(node.get("items"), dict):
        yield from _children(node["items"], schema, (*path[:-1], f"{path[-1]}[]"))
    for child in node.get("patternProperties", {}).values():
        yield from _children(child, schema, (*path, "NAME"))


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    return dict(schema["$defs"][node["$ref"].rpartition("/")[2]])


def _options(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Forms that a value may have, without the absent one."""
    node = _resolved(node, schema)
    options = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    if not options or "properties" in node:
        return [] if node.get("type") == "null" else [node]
    return [found for option in options for found in _options(option, schema)]


def _type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    names: list[str] = []
    for option in _options(node, schema):
        name = {"object": "mapping", "array": "list", "string": "text"}.get(
            option.get("type", ""), option.get("type", "")
        )
        if name == "list" and isinstance(option.get("items"), dict):
            name = f"list of {_plural(_type(option['items'], schema))}"
        if not name and "const" in option:
            name = "text"
        if name and name not in names:
            names.append(name)
    return " or ".join(names)


def _plural(name: str) -> str:
    first, *rest = name.split(" ", 1)
    return " ".join([first if first == "text" else f"{first}s", *rest])


def _default(node: dict[str, Any], schema: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "must be given"
    default = node.get("default")
    if default is None or default == {} or isinstance(default, dict):
        return ""
    return f"`{json.dumps(default)}`"


def _allowed(node: dict[str, Any], schema: dict[str, Any]) -> str:
    said: list[str] = []
    for option in _options(node, schema):
        text = option.get("$comment") or _bounds(option, schema)
        if text and text not in said:
            said.append(text)
    return _escaped("; ".join(said))


def _bounds(node: dict[str, Any], schema: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "properties" in node:
        kind = node["properties"].get("kind", {})
        return f"kind `{kind['const']}`" if "const" in kind else ""
    if node.get("type") == "array":
        inner = _allowed(node["items"], schema) if isinstance(node.get("items"), dict) else ""
        least, most = node.get("minItems"), node.get("maxItems")
        count = f"{least} to {most} of them" if least != most else f"{least} of them"
        return ", ".join(filter(None, (count if least is not None else "", inner)))
    parts = [
        f"{word} {_number(node[key])}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in node
    ]
    return ", ".join(parts)


def _number(value: float) -> str:
    if value == 2**63 - 1:
        return "2^63 − 1"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """Text that may stand in a cell of a table."""
    kept = text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")
    return kept.replace("*", "\\*").replace("_", "\\_") if "`" not in kept else kept

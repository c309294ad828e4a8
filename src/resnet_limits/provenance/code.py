"""Hashes of code: the syntax of a module and of all that it imports from this package.

Sources are parsed, never imported, so that the Snakefile can ask for keys without loading torch.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from resnet_limits.config import Experiment

PACKAGE_DIRECTORY = Path(__file__).resolve().parents[1]
"""The sources that are hashed."""

PACKAGE = "resnet_limits"
# The experiment's validated values stand for ``config``: a new key that a stage does not read must
# not make its results stale.
_NOT_HASHED = (f"{PACKAGE}.config",)
# What a limit is thought to cost decides whether it is begun, never a number of it; but how far
# amplitudes are refined depends on what that costs.
_COSTS, _REFINED = f"{PACKAGE}.limits.cost", f"{PACKAGE}.limits.amplitudes"
# Tables of which an experiment runs some entries, by the module that has them.
_TABLES = {
    f"{PACKAGE}.units": {"ACTIVATIONS", "UNITS"},
    f"{PACKAGE}.norms": {"NORMS"},
    f"{PACKAGE}.rules": {"RULES", "SCHEDULES"},
}

Used = frozenset[tuple[str, str]]
"""Pairs of a table's name and an entry that is used."""


def digest(*parts: str) -> str:
    """Hash some texts, in their order: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        # The length before each part keeps ("ab", "c") apart from ("a", "bc").
        state.update(len(raw).to_bytes(8, "big"))
        state.update(raw)
    return state.hexdigest()


def canonical_json(value: object) -> str:
    """Write a value as the one JSON text that equal values have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _is_inert(node: object) -> bool:
    """Whether a statement does nothing: a docstring or other bare string, or ``pass``."""
    if isinstance(node, ast.Pass):
        return True
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _syntax(node: object) -> str:
    """Write a syntax tree as text that is the same in every Python version.

    ``ast.dump`` is not: which empty fields it shows has changed between versions. Here empty
    fields are never shown, nor line numbers, the ``u`` prefix of strings, or inert statements.
    """
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={text}"
            for name, value in ast.iter_fields(node)
            if name not in {"kind", "type_comment"} and (text := _syntax(value)) not in {"", "[]"}
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return "[" + ",".join(_syntax(item) for item in node if not _is_inert(item)) + "]"
    return "" if node is None else f"{type(node).__name__}:{node!r}"


def _is_type_checking(node: ast.If) -> bool:
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without the bodies of ``if TYPE_CHECKING:``, which never run."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child):
            for alternative in child.orelse:
                yield from _executed(alternative)
        else:
            yield from _executed(child)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a module may import, anywhere in it, also inside functions.

    A name may turn out to be a function rather than a module; the caller looks for a file.
    """
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = getattr(function, "attr", None) or getattr(function, "id", None)
            argument = node.args[0]
            if (
                name in {"import_module", "__import__"}
                and isinstance(argument, ast.Constant)
                and isinstance(argument.value, str)
            ):
                yield argument.value


def _source_file(module: str, directory: Path) -> Path | None:
    """File of a module of this package, or None if there is none of that name."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = directory.joinpath(*parts[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _is_left_out(module: str, importer: str) -> bool:
    """Whether the code of a module does not count for one that imports it."""
    if _is_in(module, _COSTS):
        return not _is_in(importer, _REFINED)
    return any(_is_in(module, name) for name in _NOT_HASHED)


def _target(statement: ast.stmt) -> str | None:
    """Name that a statement at the top of a module defines, if it is one."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


def _without_unused(tree: ast.Module, used: Mapping[str, set[str]]) -> ast.Module:
    """Leave out of tables the entries that are not used, and then what only they refer to.

    Parameters
    ----------
    tree : Module
        Changed in place.
    used : mapping of str to set of str
        The entries that count, by the name of the table, a dictionary written out at the top of
        the module. A table without one of them, or with keys that are not plain, stays whole.
    """
    unused: list[ast.AST] = []
    for statement in tree.body:
        table = getattr(statement, "value", None)
        wanted = used.get(_target(statement) or "")
        if wanted is None or not isinstance(table, ast.Dict):
            continue
        keys = [key.value if isinstance(key, ast.Constant) else None for key in table.keys]
        if None in keys or len(set(keys)) < len(keys) or not wanted <= set(keys):
            continue
        chosen = [index for index, key in enumerate(keys) if key in wanted]
        unused += [
            value for key, value in zip(keys, table.values, strict=True) if key not in wanted
        ]
        table.keys = [table.keys[index] for index in chosen]
        table.values = [table.values[index] for index in chosen]
    defined = {name: node for node in tree.body if (name := _target(node)) is not None}
    doubtful = _reachable(unused, defined)
    certain = [node for node in tree.body if _target(node) not in doubtful]
    needed = _reachable(certain, defined)
    tree.body = [node for node in tree.body if _target(node) not in doubtful - needed]
    return tree


def _reachable(nodes: Iterable[ast.AST], defined: Mapping[str, ast.stmt]) -> set[str]:
    """Names among those defined that some nodes refer to, directly or not."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Name) and node.id in defined and node.id not in found:
                found.add(node.id)
                waiting.append(defined[node.id])
    return found


@lru_cache(maxsize=512)
def _read_source(module: str, file: Path, used: Used) -> tuple[str, frozenset[str]]:
    """Hash of a module's own syntax, and the dotted names it imports from this package."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    if module in _TABLES:
        entries = {table: {name for of, name in used if of == table} for table, _ in used}
        tree = _without_unused(tree, entries)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = frozenset(name for name in _imports(tree, package) if name.partition(".")[0] == PACKAGE)
    return digest(_syntax(tree)), names


def _imported_modules(module: str, directory: Path, used: Used) -> dict[str, str]:
    """Find a module and all of the package that it imports, directly or not, with their hashes."""
    if _source_file(module, directory) is None:
        raise ModuleNotFoundError(f"no module {module} in the package's sources", name=module)
    found: dict[str, str] = {}
    waiting = [(module, module)]
    while waiting:
        name, importer = waiting.pop()
        file = _source_file(name, directory)
        if name in found or _is_left_out(name, importer) or file is None:
            continue
        found[name], imports = _read_source(name, file, used)
        # Importing a module runs the __init__ of every package above it.
        waiting.extend((other, name) for other in (*imports, name.rpartition(".")[0]))
    empty = digest(_syntax(ast.Module(body=[], type_ignores=[])))
    return {name: digest for name, digest in sorted(found.items()) if digest != empty}


def code_hash(module: str, experiment: Experiment | None = None) -> str:
    """Hash the code that a module runs: its own and all it imports from this package.

    Only syntax counts: comments, docstrings, blank lines and layout change nothing. Imports inside
    functions count like others. ``config`` is left out: validated values stand for it; and what
    limits are thought to cost, but where amplitudes are refined by it. Sources are read once in a
    process.

    Parameters
    ----------
    module : str
        Dotted name, such as ``"resnet_limits.stages.limits"``.
    experiment : Experiment, optional
        Of activations, units, norms, rules and schedules only its own count; all without it.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    ModuleNotFoundError
        If there is no file for the module.
    """
    return _code_hash(module, PACKAGE_DIRECTORY, _used(experiment))


def _used(experiment: Experiment | None) -> Used:
    """Find the entries of tables that an experiment names; none where there is no experiment."""
    if experiment is None:
        return frozenset()
    model, training = experiment.model, experiment.training
    found: set[tuple[str, str]] = {
        ("NORMS", model.final_norm),
        ("RULES", training.rule.kind),
        ("SCHEDULES", training.schedule.kind),
    }
    for branch in model.branches:
        found |= {("NORMS", branch.norm), ("UNITS", branch.unit.kind)}
        if activation := getattr(branch.unit, "activation", None):
            found.add(("ACTIVATIONS", activation))
    return frozenset(found)


@lru_cache(maxsize=512)
def _code_hash(module: str, directory: Path, used: Used) -> str:
    return digest(canonical_json(_imported_modules(module, directory, used)))

"""Where a result comes from: code hashes, stage keys and the attributes every store carries.

A *stage key* names everything that a result depends on: the syntax of the code its stage imports,
the part of the experiment the stage reads, its cell, and the keys of the stages before it. Equal
keys mean that nothing needs to be computed again. Sources are parsed, never imported, so that the
Snakefile can ask for keys without loading torch.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from resnet_limits.config import Experiment
from resnet_limits.kinds import CELL_KEYS, SIZES

PACKAGE_DIRECTORY = Path(__file__).resolve().parent
"""The sources that are hashed."""

_PACKAGE = "resnet_limits"
# The experiment's validated values stand for config.py: a new key that a stage does not read must
# not make its results stale. What a limit is thought to cost decides whether it is begun, never a
# number of it.
_NOT_HASHED = frozenset({f"{_PACKAGE}.config", f"{_PACKAGE}.limits.cost"})
# Tables of which an experiment runs one entry, and the key of ``model.unit`` that names it.
_TABLES = {"ACTIVATIONS": "activation", "UNITS": "kind"}
_TABLES_MODULE = f"{_PACKAGE}.units"
_LIBRARIES = (
    "numpy",
    "scipy",
    "numba",
    "torch",
    "xarray",
    "zarr",
    "dask",
    "pydantic",
    "scikit-learn",
)


@dataclass(frozen=True)
class _Stage:
    """What one stage depends on.

    Attributes
    ----------
    module : str
        The module whose function computes the stage.
    reads : tuple of str
        Dotted keys of the experiment that the stage reads itself.
    cell : tuple of str
        The sizes (or names) that tell one job of the stage from another.
    after : tuple of str
        The stages whose results it reads; those among `_COMPARED` only as far as a pair needs them.
    """

    module: str
    reads: tuple[str, ...] = ()
    cell: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


_LIMIT_READS = ("problem", "model", "training", "numerics", "seed")
_FINITE_READS = (
    "problem",
    "model",
    "training",
    "seed",
    "save",
    "numerics.precision",
    "numerics.device",
    "sweep.engine",
)
_COMPARED = ("dmft", "mean_ode", "wide", "finite")
# Each cell of these has its own number of seeds, which is part of its key and not of the stage's.
SEEDED = frozenset({"mean_ode", "wide", "finite"})
"""The stages whose results hold seeds."""

_STAGES: dict[str, _Stage] = {
    "problem": _Stage(f"{_PACKAGE}.stages.problem", ("problem",)),
    "dmft": _Stage(f"{_PACKAGE}.stages.limits", _LIMIT_READS, (), ("problem",)),
    "mean_ode": _Stage(f"{_PACKAGE}.stages.limits", _LIMIT_READS, CELL_KEYS["mean_ode"], ("dmft",)),
    "wide": _Stage(f"{_PACKAGE}.stages.limits", _LIMIT_READS, CELL_KEYS["wide"], ("dmft",)),
    "finite": _Stage(
        f"{_PACKAGE}.stages.networks",
        _FINITE_READS,
        SIZES,
        ("problem",),
    ),
    "errors": _Stage(f"{_PACKAGE}.stages.errors", ("pairs", "save", "shapes"), (), _COMPARED),
    "rates": _Stage(f"{_PACKAGE}.stages.errors", ("families",), (), ("errors",)),
    "figures": _Stage(f"{_PACKAGE}.stages.figures", (), ("name",), ("rates",)),
}

STAGES = tuple(_STAGES)
"""The names of the stages, upstream first."""


def _digest(*parts: str) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        # The length before each part keeps ("ab", "c") apart from ("a", "bc").
        state.update(len(raw).to_bytes(8, "big"))
        state.update(raw)
    return state.hexdigest()


def _canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


# --- code -----------------------------------------------------------------------------------------


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
    if parts[0] != _PACKAGE:
        return None
    base = directory.joinpath(*parts[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _target(statement: ast.stmt) -> str | None:
    """Name that a statement at the top of a module defines, if it is one."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


def _without_unused(tree: ast.Module, used: Mapping[str, str]) -> ast.Module:
    """Leave out of tables the entries that are not used, and then what only they refer to.

    Parameters
    ----------
    tree : Module
        Changed in place.
    used : mapping of str to str
        The one entry that counts, by the name of the table, a dictionary written out at the top of
        the module. A table without that entry, or with keys that are not plain, stays whole.
    """
    unused: list[ast.AST] = []
    for statement in tree.body:
        table = getattr(statement, "value", None)
        wanted = used.get(_target(statement) or "")
        if wanted is None or not isinstance(table, ast.Dict):
            continue
        keys = [key.value if isinstance(key, ast.Constant) else None for key in table.keys]
        if None not in keys and keys.count(wanted) == 1:
            index = keys.index(wanted)
            unused += [*table.values[:index], *table.values[index + 1 :]]
            table.keys, table.values = [table.keys[index]], [table.values[index]]
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
def _read_source(
    module: str, file: Path, used: frozenset[tuple[str, str]]
) -> tuple[str, frozenset[str]]:
    """Hash of a module's own syntax, and the dotted names it imports from this package."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    if module == _TABLES_MODULE:
        tree = _without_unused(tree, dict(used))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = frozenset(
        name for name in _imports(tree, package) if name.partition(".")[0] == _PACKAGE
    )
    return _digest(_syntax(tree)), names


def imported_modules(module: str) -> dict[str, str]:
    """Find a module and everything of this package that it imports, directly or not.

    Parameters
    ----------
    module : str
        Dotted name, such as ``"resnet_limits.stages.limits"``.

    Returns
    -------
    dict
        Dotted name to the hash of that module's own syntax tree. ``config`` is left out.

    Raises
    ------
    ModuleNotFoundError
        If there is no file for the module.
    """
    return _imported_modules(module, PACKAGE_DIRECTORY, frozenset())


def _imported_modules(
    module: str, directory: Path, used: frozenset[tuple[str, str]]
) -> dict[str, str]:
    if _source_file(module, directory) is None:
        raise ModuleNotFoundError(f"no module {module} in the package's sources", name=module)
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _source_file(name, directory)
        if name in found or name in _NOT_HASHED or file is None:
            continue
        found[name], imports = _read_source(name, file, used)
        # Importing a module runs the __init__ of every package above it.
        waiting.extend([*imports, name.rpartition(".")[0]])
    empty = _digest(_syntax(ast.Module(body=[], type_ignores=[])))
    return {name: digest for name, digest in sorted(found.items()) if digest != empty}


def code_hash(module: str, experiment: Experiment | None = None) -> str:
    """Hash the code that a module runs: its own and all it imports from this package.

    Only syntax counts: comments, docstrings, blank lines and layout change nothing. Imports inside
    functions count like others. ``config.py`` is left out: validated values stand for it. Sources
    are read once in a process.

    Parameters
    ----------
    module : str
        Dotted name, such as ``"resnet_limits.stages.limits"``.
    experiment : Experiment, optional
        Of activations and units only its own count; all of them without it.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    ModuleNotFoundError
        If there is no file for the module.
    """
    unit = getattr(getattr(experiment, "model", None), "unit", None)
    used = {(table, getattr(unit, key, None)) for table, key in _TABLES.items()}
    return _code_hash(
        module, PACKAGE_DIRECTORY, frozenset((table, name) for table, name in used if name)
    )


@lru_cache(maxsize=512)
def _code_hash(module: str, directory: Path, used: frozenset[tuple[str, str]]) -> str:
    return _digest(_canonical_json(_imported_modules(module, directory, used)))


# --- stages ---------------------------------------------------------------------------------------


def stage_module(stage: str) -> str:
    """Dotted name of the module that computes a stage."""
    return _stage(stage).module


def _stage(stage: str) -> _Stage:
    if stage not in _STAGES:
        raise ValueError(f"stage {stage!r}: must be one of {', '.join(STAGES)}")
    return _STAGES[stage]


def stage_key(stage: str, experiment: Experiment, **cell: int | str) -> str:
    """Name everything that one result depends on.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    experiment : Experiment
        The validated experiment.
    **cell : int or str
        The sizes of one cell (``depth``, ``width``, ``embed_dim``, whichever the stage has; for
        figures ``name``). Left out, the key is the part that all cells of the stage share, which
        does not say how many seeds a cell has.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    ValueError
        If the stage is unknown, or the cell has other sizes than the stage's.
    """
    description = _stage(stage)
    if cell and set(cell) != set(description.cell):
        raise ValueError(
            f"cell of {stage}: got {', '.join(cell)}, needs {', '.join(description.cell) or 'none'}"
        )
    values = experiment.model_dump(mode="json")
    needed = _needed(experiment) if stage == "errors" else set(description.after)
    common = _digest(
        _canonical_json(
            {
                "stage": stage,
                "code": code_hash(description.module, experiment),
                "reads": {key: _part(experiment, values, key) for key in description.reads},
                "after": {
                    earlier: stage_key(earlier, experiment)
                    for earlier in description.after
                    if earlier in needed
                },
            }
        )
    )
    if not cell:
        return common
    seeds = {"seeds": len(cell_seeds(stage, experiment, **cell))} if stage in SEEDED else {}
    return _digest(common, _canonical_json({**cell, **seeds}))


def cell_seeds(stage: str, experiment: Experiment, **cell: int | str) -> range:
    """Give the seeds inside one result: none for the problem and for limits without seeds.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    experiment : Experiment
        The validated experiment.
    **cell : int or str
        As for `stage_key`.
    """
    if stage in {"problem", "dmft"}:
        return range(0)
    return experiment.cell_seeds(**{key: int(size) for key, size in cell.items()})


def _needed(experiment: Experiment) -> set[str]:
    """Find the compared kinds that the experiment's pairs ask for."""
    needed = set(experiment.limits_needed)
    if any("finite" in pair.split("-") for pair in experiment.pairs):
        needed.add("finite")
    return needed


def _part(experiment: Experiment, values: dict[str, Any], key: str) -> object:
    """Give one part of the experiment as plain JSON values."""
    if key == "pairs":
        return sorted(experiment.pairs)
    if key == "shapes":
        # The same shapes written as a grid or as a list are the same experiment.
        return [[*shape, len(experiment.seeds_of(shape))] for shape in experiment.shapes]
    if key == "families":
        return {
            name: [
                [[parameters, *shape] for parameters, shape in members],
                values["sweep"]["families"][name]["depth"]["exponent"],
                values["sweep"]["families"][name]["embed_dim"]["exponent"],
            ]
            for name, members in experiment.families.items()
        }
    value: Any = values
    for name in key.split("."):
        value = value[name]
    if key == "problem" and value["data"]["kind"] == "file":
        # The data count by their content: a moved file is the same data, an edited one is not.
        digest = _data_digest(Path(value["data"]["path"]))
        value = {**value, "data": {**value["data"], "path": digest}}
    return value


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _data_digest(path: Path) -> str:
    """Digest of a data file or Zarr directory; "missing" if there is none."""
    files = _files(path)
    if not files:
        return "missing"
    return _digest(
        *(
            part
            for file in files
            for part in (
                file.relative_to(path).as_posix(),
                _file_digest(file, file.stat().st_mtime_ns, file.stat().st_size),
            )
        )
    )


@lru_cache(maxsize=4096)
def _file_digest(file: Path, _modified_ns: int, _size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- what a store carries -------------------------------------------------------------------------


def collect(
    experiment: Experiment,
    *,
    stage: str,
    key: str,
    device: str,
    seeds: Iterable[int] = (),
    started: float,
    cell: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Gather the attributes that every store carries.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    stage : str
        One of `STAGES`.
    key : str
        The result's `stage_key`.
    device : str
        Where it was computed, in words, such as ``"cpu"``.
    seeds : iterable of int
        The seeds inside the store; none for a limit without seeds.
    started : float
        ``time.monotonic()`` at the start of the computation.
    cell : mapping, optional
        The sizes of the cell, for the history line.

    Returns
    -------
    dict
        ``experiment_file`` (YAML text), ``config_hash``, ``code_hash``, ``stage_key``,
        ``package_version``, ``git_state``, ``library_versions`` (JSON text), ``device``,
        ``cuda_visible_devices`` (the environment variable, or ``"unset"``), ``seeds``,
        ``created`` (UTC, ISO 8601), ``wall_time_s``, ``peak_memory_bytes``, ``history``.
    """
    from resnet_limits import __version__

    values = experiment.model_dump(mode="json")
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sizes = "".join(f" {name}={size}" for name, size in (cell or {}).items())
    return {
        "experiment_file": _experiment_file(experiment),
        "config_hash": _digest(_canonical_json(values)),
        "code_hash": code_hash(stage_module(stage)),
        "stage_key": key,
        "package_version": __version__,
        "git_state": git_state(),
        "library_versions": _canonical_json(_library_versions()),
        "device": device,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"),
        "seeds": [int(seed) for seed in seeds],
        "created": created,
        "wall_time_s": round(time.monotonic() - started, 3),
        "peak_memory_bytes": _peak_memory_bytes(),
        "history": f"{created} resnet-limits {__version__}: {stage}{sizes}",
    }


# The same for all cells of a job, and slower to write than a cell's chunks.
@lru_cache(maxsize=1)
def _experiment_file(experiment: Experiment) -> str:
    values = experiment.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@lru_cache(maxsize=1)
def git_state() -> str:
    """Commit of the running sources, with ``-dirty`` if they were edited or added to since.

    Returns
    -------
    str
        ``"unknown"`` where the sources are not under version control or git is not there.
    """
    # An installed copy may sit inside somebody else's repository, whose commit would be a lie.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown"
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=all", "*.py")
    if commit is None or changes is None:
        return "unknown"
    return commit + ("-dirty" if changes else "")


def _git(*arguments: str) -> str | None:
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE_DIRECTORY), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache(maxsize=1)
def _library_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def _peak_memory_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024

"""Whether all results in a folder are sound, one after the other, in the memory of one of them.

A folder of results may hold those of one experiment or of many, be written into while it is looked
at, or hold nothing but stores that somebody put there. Names of results are those of
`stages.paths`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resnet_limits import integrity, store
from resnet_limits.integrity import StoreError, error_line
from resnet_limits.kinds import JSON_KINDS

_MANIFESTS = "manifests"
_GROUP = integrity.RESULTS_GROUP["attributes"]["kind"]
_JSON = {f"{kind}.json" for kind in JSON_KINDS}
# What each of them has, besides its provenance.
_HAS = {"rates.json": "pairs", "prediction.json": "hidden"}
# What a folder of one experiment's results holds from its beginning, besides results.
_MARKS = (_MANIFESTS, ".lock", ".jobs")
# What tells of the provenance of all others, by their digests.
_PROV = "provenance.json"
# A result that changes while it is read is looked at again.
_LOOKS = 3


class Checked(NamedTuple):
    """What was found out about one result.

    Attributes
    ----------
    path : Path
        The result, or a manifest that leads to none.
    findings : tuple of str
        What is wrong with it; empty if it is sound.
    is_finished : bool
        Whether a manifest vouches for it, or none is needed outside of an experiment's results.
    """

    path: Path
    findings: tuple[str, ...]
    is_finished: bool = True


def is_store(path: Path) -> bool:
    """Whether a path is a store by its name, or by what it holds."""
    if path.name.endswith((".zarr", ".zarr.zip")):
        return True
    is_group = integrity.attributes(path).get("kind") == _GROUP
    return (path / integrity.ZARR_METADATA).is_file() and not is_group


def _manifest_places(path: Path) -> Iterator[Path]:
    """Where the manifest of a result may be: the result may lie in a folder of its kind."""
    path = Path(os.path.abspath(path))
    for folder in list(path.parents)[:2]:
        place = folder / _MANIFESTS / path.relative_to(folder)
        is_page = not (path.suffix == ".zarr" or path.name in _JSON)
        yield place.with_name(f"{place.name}.json") if is_page else place.with_suffix(".json")


def manifest_of(path: Path) -> Path | None:
    """Manifest that belongs to a result, if there is one."""
    return next(filter(Path.is_file, _manifest_places(path)), None)


def find(folder: Path) -> Iterator[Path]:
    """Find the results in a folder, and what manifests in it vouch for, in the order of names.

    Yields
    ------
    Path
        A store, a JSON result, whatever else has a manifest, whether it is there or not, or a
        file among the manifests that is no manifest of a result.

    Raises
    ------
    StoreError
        If a folder cannot be read.
    """
    yield from _find(folder, _is_inside_manifests(folder / "any"), folder)


def _find(folder: Path, in_manifests: bool, top: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except FileNotFoundError:
        # It went while the others were read.
        return
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if is_store(path):
            yield path
        elif entry.is_dir(follow_symlinks=False):
            # An experiment may have the name itself.
            is_new = entry.name == _MANIFESTS and not (path / _MANIFESTS).is_dir()
            yield from _find(path, in_manifests or is_new, top)
        elif in_manifests and path.suffix == ".json":
            result = _vouched_for(path)
            # Stores and JSON results are found where they are.
            is_found = result.exists() and (is_store(result) or result.name in _JSON)
            if not (is_found and _is_below(result, top)):
                yield result
        elif entry.name in _JSON and _is_experiments(folder):
            yield path


def _is_experiments(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def of_file(file: Path) -> Iterator[Path]:
    """Give a file as `find` would: itself, or the result that it vouches for; or nothing."""
    if manifest_of(file) is not None:
        yield file
    elif _is_inside_manifests(file) and file.suffix == ".json":
        yield _vouched_for(file)


def _is_inside_manifests(path: Path) -> bool:
    folders = list(Path(os.path.abspath(path)).parents)[:2]
    return any(folder.name == _MANIFESTS for folder in folders)


def _is_below(path: Path, top: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(top))


def _vouched_for(manifest: Path) -> Path:
    """Give the place of a manifest's result; the manifest itself if it is none of a result."""
    try:
        return _result_of(manifest)
    except StoreError:
        return manifest


def _result_of(manifest: Path) -> Path:
    named = integrity.read_manifest(manifest)["store"]
    result = Path(os.path.normpath(manifest.parent / named))
    if Path(os.path.abspath(manifest)) not in _manifest_places(result):
        raise StoreError(f"{manifest}: vouches for {named}, whose manifest is not here")
    return result


def check(path: Path) -> Checked | None:
    """Look for anything wrong with one result that `find` has found.

    Returns
    -------
    Checked or None
        None if it is gone, with its manifest: whoever writes into the folder has taken it back.
    """
    for _ in range(_LOOKS):
        before = _state(path)
        found = _check(path)
        if before == _state(path) and before is not None:
            return found
        if not path.exists() and manifest_of(path) is None:
            return None
    return found


def _state(path: Path) -> tuple[Any, ...] | None:
    """Take what changes when a result or its manifest is written; None in the midst of that."""
    manifest = manifest_of(path)
    try:
        return manifest, manifest and manifest.stat().st_mtime_ns, integrity.size(path)
    except (OSError, StoreError):
        return None


def _check(path: Path) -> Checked:
    manifest = manifest_of(path)
    findings: list[str]
    if not path.exists():
        findings = ["missing, although its manifest is there"]
    elif is_store(path):
        findings = store_findings(path)
    elif manifest is not None or path.name in _JSON:
        findings = _file_findings(path, manifest)
    else:
        return Checked(path, tuple(_manifest_findings(path)))
    within = list(Path(os.path.abspath(path)).parents)[:2]
    is_finished = manifest is not None or not any(map(_is_experiments, within))
    return Checked(path, tuple(findings), is_finished)


def store_findings(path: Path) -> list[str]:
    """Look for anything wrong with a store, and with its manifest if it has one."""
    manifest = manifest_of(path)
    findings = store.check(path, manifest)
    if manifest is not None and not findings:
        key = store.open_store(path).attrs.get("stage_key")
        if integrity.read_manifest(manifest)["stage_key"] != key:
            findings.append(f"stage_key: not the one in {manifest.name}")
    return findings


def _manifest_findings(manifest: Path) -> list[str]:
    try:
        _result_of(manifest)
    except StoreError as error:
        return [str(error).removeprefix(f"{manifest}: ")]
    return []


def _of_other_digests(document: Path) -> list[str]:
    """Find the results that are not those whose provenance a PROV document tells."""
    findings = []
    for name, facts in integrity.read_json(document)["entity"].items():
        manifest = manifest_of(document.parent / name.removeprefix("results:"))
        if manifest is None or "rl:stage_key" not in facts:
            continue
        if integrity.read_manifest(manifest).get("digest") != facts["rl:sha256"]:
            findings.append(name.removeprefix("results:"))
    if not findings:
        return []
    others = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
    return [f"{findings[0]}{others}: computed again since; run the pipeline to its end"]


def _file_findings(path: Path, manifest: Path | None) -> list[str]:
    """Compare a file with its manifest; a JSON result must be what it is, too."""
    try:
        facts = {} if manifest is None else integrity.read_manifest(manifest)
        if manifest is not None and facts.get("digest") != integrity.digest(path):
            return [f"digest: not the one in {manifest.name}"]
        if path.name == _PROV:
            return _of_other_digests(path)
        if path.name not in _JSON:
            return []
        values = integrity.read_json(path)
        key = values["provenance"]["stage_key"]
        part = _HAS[path.name]
        if not isinstance(values[part], dict):
            return [f"{part}: must be a mapping"]
    except (KeyError, TypeError) as error:
        return [f"not a {path.name}: has no {error_line(error)}"]
    except (OSError, ValueError, StoreError) as error:
        return [error_line(error)]
    if manifest is not None and facts.get("stage_key") != key:
        return [f"stage_key: not the one in {manifest.name}"]
    return []

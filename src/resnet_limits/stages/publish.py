"""From a computed result to a finished one: provenance, store, manifest, in this order.

The one way in which the command line and the workflow's scripts write results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import xarray as xr

from resnet_limits import integrity, provenance, store
from resnet_limits.kinds import COMPUTED, JSON_KINDS, SIZES

if TYPE_CHECKING:
    from resnet_limits.config import Experiment


def stated(
    dataset: xr.Dataset | Mapping[str, xr.Dataset], attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """Give what a manifest repeats of its store, so that nothing needs to be opened for it.

    Parameters
    ----------
    dataset : Dataset, or mapping of str to Dataset
        The store's content.
    attrs : mapping
        Its root attributes.

    Returns
    -------
    dict
        ``status`` (counts by meaning), ``device`` and ``wall_time_s``.
    """
    return {
        "status": store.status_counts(dataset),
        "device": attrs["device"],
        "wall_time_s": attrs["wall_time_s"],
    }


def publish(
    dataset: xr.Dataset | Mapping[str, Any],
    path: Path | str,
    *,
    kind: str,
    experiment: Experiment,
    key: str,
    device: str,
    seeds: Iterable[int] = (),
    started: float,
    manifest: Path | str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a result with all that it must carry, and then declare it finished.

    Parameters
    ----------
    dataset : Dataset, mapping of str to Dataset, or mapping of JSON values
        What a stage function returned: one dataset, one per group (``errors``), or the
        dictionary of one of ``kinds.JSON_KINDS``.
    path : path
        Final name of the store, or of the JSON file.
    kind : str
        The kind of result, which is also the name of its stage.
    experiment : Experiment
        The validated experiment.
    key : str
        The result's stage key.
    device : str
        Where it was computed, unless an attribute ``device`` of the dataset says otherwise.
    seeds : iterable of int
        The seeds inside the result.
    started : float
        ``time.monotonic()`` at the start of the computation.
    manifest : path, optional
        The manifest, written last. One that is there already is removed first, so that it never
        vouches for a result it has not seen. Without it the result is a plain file for its user.
    facts : mapping, optional
        Further JSON values for the manifest.

    Returns
    -------
    Path
        The final name.

    Raises
    ------
    StoreError
        If the dataset is not what its kind must be, or the name may not be used.
    """
    own = dataset.attrs if isinstance(dataset, xr.Dataset) else {}
    attrs = provenance.collect(
        experiment,
        stage=kind,
        key=key,
        device=str(own.get("device", device)),
        seeds=seeds,
        started=started,
        cell={name: own[name] for name in SIZES if name in own},
    )
    if kind in COMPUTED:
        # By which a run that would replace it can say what has changed.
        read = provenance.values_read(kind, experiment)
        attrs["values_read"] = json.dumps(read, separators=(",", ":"))
    if manifest is not None:
        Path(manifest).unlink(missing_ok=True)
    if kind in JSON_KINDS:
        values = cast("Mapping[str, Any]", dataset)
        written = integrity.write_json({**values, "provenance": attrs}, path)
    else:
        written = store.write(dataset, path, kind, attrs=attrs)
        facts = {**stated(dataset, attrs), **(facts or {})}
    if manifest is not None:
        integrity.write_manifest(manifest, written, kind=kind, stage_key=key, **(facts or {}))
    return written

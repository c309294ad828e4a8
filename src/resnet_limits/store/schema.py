"""What each kind of store holds: dimensions, types and meaning of its variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits.config import PAIRS
from resnet_limits.kinds import CELL_KEYS, STATUS, STATUS_ATTRS

SCHEMA_VERSION = "1"

PROVENANCE = (
    "experiment_file",
    "config_hash",
    "code_hash",
    "stage_key",
    "package_version",
    "git_state",
    "library_versions",
    "device",
    "cuda_visible_devices",
    "seeds",
    "created",
    "wall_time_s",
    "peak_memory_bytes",
    "history",
)
"""Root attributes that every published store carries."""


@dataclass(frozen=True)
class Variable:
    """What one variable of a store must be.

    Attributes
    ----------
    dims : tuple of str
        Dimensions in order; one that ends in ``?`` may be absent.
    dtype : str
        ``"float64"``, ``"float"`` (32 or 64 bits), ``"int"`` (any width) or ``"int8"``.
    long_name : str
        What it is, with the symbol of docs/concepts/notation.md.
    units : str or None
        Written as the attribute ``units``; None for indices and flags.
    required : bool
        Whether a store without it is refused.
    attrs : mapping
        Further attributes.
    """

    dims: tuple[str, ...]
    dtype: str
    long_name: str
    units: str | None = "1"
    required: bool = True
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Schema:
    """What one kind of store must be.

    Attributes
    ----------
    title, summary : str
        Root attributes.
    variables, coords : dict
        Name to `Variable`.
    attrs : tuple of str
        Root attributes that must be there.
    grouped : bool
        Whether the variables live in one group per pair rather than at the root.
    """

    title: str
    summary: str
    variables: dict[str, Variable]
    coords: dict[str, Variable]
    attrs: tuple[str, ...] = ()
    grouped: bool = False

    @property
    def all(self) -> dict[str, Variable]:
        """Variables and coordinates together."""
        return {**self.variables, **self.coords}


def _index(name: str, long_name: str, *, required: bool = True) -> Variable:
    return Variable((name,), "int", long_name, units=None, required=required)


_STEP = _index("step", "number of gradient steps taken, k (0: before the first update)")
_SEED = _index("seed", "seed of the embedding rows and block weights")
_ROTATION = Variable(
    ("input", "rank"),
    "float64",
    "orthonormal basis Q of the span of the inputs; Phi = [W_e Q, W_u]",
    required=False,
)


_NODES = Variable(
    ("seed",), "int", "depth nodes of the seed's limit, plan_nodes or more; 0 if not_run", None
)
_ENDING = {
    "status": Variable(("seed",), "int8", "how the run ended", units=None, attrs=STATUS_ATTRS),
    "diverged_step": Variable(
        ("seed",), "int", "first step with a diverged value; -1 if there is none", None
    ),
}


def _limit_schema(title: str, summary: str, *, seeded: bool, attrs: tuple[str, ...]) -> Schema:
    seed = ("seed",) if seeded else ()
    out = ("sample", "token?", "target")
    coefficients = ("sample", "token?", "embedding_direction")

    def variable(dims: tuple[str, ...], long_name: str) -> Variable:
        return Variable(seed + dims, "float64", long_name)

    return Schema(
        title,
        summary,
        {
            "output": variable(("step", *out), "output of the limit network, f_k"),
            "output_stderr": variable(
                ("step", *out), "standard error of output: scramblings, depth grid, rounding"
            ),
            "loss": variable(
                ("step",),
                "loss, averaged over samples (and tokens), weighted if the problem has weights",
            ),
            "loss_stderr": variable(
                ("step",), "standard error of loss: scramblings, depth grid, rounding"
            ),
            "hidden_coef": variable(
                ("step", "node", *coefficients),
                "minimum-norm coordinates of the residual stream h_k(s) on Phi = [W_e W_u]",
            ),
            "backward_coef": variable(
                ("step", "node", *coefficients),
                "minimum-norm coordinates of the backward field b_k(s) on Phi = [W_e W_u]",
            ),
            "output_replicate": variable(
                ("replicate", "step", *out), "output of each independent scrambling"
            ),
            "hidden_coef_replicate": variable(
                ("replicate", "step", *coefficients),
                "hidden_coef at depth s = 1 of each independent scrambling",
            ),
            "depth_error": variable(
                ("step",), "estimated error of the output that comes from the depth grid"
            ),
            "output_depth_change": variable(
                ("step", *out), "change of output with half as many depth nodes more"
            ),
            "hidden_coef_depth_change": variable(
                ("step", *coefficients),
                "change of hidden_coef at depth s = 1 with half as many depth nodes more",
            ),
            "rounding": variable(
                ("step",),
                "error of states by rounding and the tolerance of fixed points",
            ),
            "input_rotation": _ROTATION,
            **({"nodes": _NODES, **_ENDING} if seeded else {}),
        },
        {
            "step": _STEP,
            "node": Variable(
                ("node",), "float64", "depth s in [0, 1] of a node; between nodes, a polynomial"
            ),
            "replicate": _index("replicate", "number of the scrambling", required=False),
            **({"seed": _SEED} if seeded else {}),
        },
        ("quadrature_points", "quadrature_kind", *attrs),
    )


_FIELD = ("seed", "step", "depth_point", "sample", "token?", "coordinate")
_CELL_STEP = ("cell", "step")

SCHEMAS: dict[str, Schema] = {
    "problem": Schema(
        "Data of the learning problem",
        "Inputs x and targets y, the same for every network and limit of the experiment.",
        {
            "x": Variable(("sample", "token?", "input"), "float64", "inputs, x"),
            "y": Variable(("sample", "token?", "target"), "float64", "targets, y"),
            "weight": Variable(
                ("sample", "token?"),
                "float64",
                "weight of a row in the loss, of any sum, omega; equal where it is absent",
                required=False,
            ),
            "input_rotation": _ROTATION,
        },
        {},
    ),
    "dmft": _limit_schema(
        "DMFT limit",
        "Training dynamics at infinite depth, width and embedding dimension.",
        seeded=False,
        attrs=(),
    ),
    "mean_ode": _limit_schema(
        "Mean ODE",
        "Training dynamics at infinite depth and width and finite embedding dimension, for each "
        "seed's embedding rows.",
        seeded=True,
        attrs=("embed_dim",),
    ),
    "wide": _limit_schema(
        "Infinitely wide network of finite depth",
        "Training dynamics at infinite width, finite depth and finite embedding dimension, for "
        "each seed's embedding rows.",
        seeded=True,
        attrs=CELL_KEYS["wide"],
    ),
    "finite": Schema(
        "Finite residual networks",
        "Training dynamics of networks of one shape, one per seed.",
        {
            "output": Variable(
                ("seed", "step", "sample", "token?", "target"), "float64", "network output, f_k"
            ),
            "loss": Variable(
                ("seed", "step"),
                "float64",
                "loss, averaged over samples (and tokens), weighted if the problem has weights",
            ),
            "hidden": Variable(_FIELD, "float", "residual stream, h_k^l"),
            "backward": Variable(_FIELD, "float", "backward field, b_k^l = D d loss_i / d h^l"),
            **_ENDING,
        },
        {
            "seed": _SEED,
            "step": _STEP,
            "layer": Variable(("depth_point",), "int", "layer index l of a depth point", None),
            "s": Variable(("depth_point",), "float64", "depth fraction of a depth point, s = l/L"),
        },
        ("depth", "width", "embed_dim", "engine", "engine_reason"),
    ),
    "errors": Schema(
        "Distances between finite networks and limits",
        "One group per pair that is compared; a cell is one combination of sizes and seed, where "
        "0 stands for infinite or for a size that the pair does not depend on.",
        {
            "hidden_rms": Variable(
                _CELL_STEP,
                "float64",
                "root mean square of the difference of h over samples and coordinates at s = 1",
            ),
            "hidden_max_mean_abs": Variable(
                _CELL_STEP,
                "float64",
                "largest over stored depths of the mean absolute difference of h",
            ),
            "hidden_rms_at": Variable(
                (*_CELL_STEP, "depth_point"),
                "float64",
                "root mean square of the difference of h over samples and coordinates at depth s",
                required=False,
                attrs={
                    "comment": "At the stored depths, and where there are more than 65 at 65 of "
                    "them, evenly spread. NaN where a cell has fewer depths than another, as "
                    "its s is. At s = 1 it is hidden_rms."
                },
            ),
            "output_rms": Variable(
                _CELL_STEP,
                "float64",
                "root mean square of the difference of f over samples and targets",
            ),
            "hidden_rms_stderr": Variable(
                _CELL_STEP,
                "float64",
                "root mean square standard error of the difference behind hidden_rms, from the "
                "limits' quadrature",
            ),
            "output_rms_stderr": Variable(
                _CELL_STEP,
                "float64",
                "root mean square standard error of the difference behind output_rms, from the "
                "limits' quadrature",
            ),
            "status": Variable(
                ("cell",), "int8", "how the runs compared ended", units=None, attrs=STATUS_ATTRS
            ),
        },
        {
            "step": _STEP,
            "depth": Variable(("cell",), "int", "number of layers, L", None),
            "width": Variable(("cell",), "int", "hidden units per block, M", None),
            "embed_dim": Variable(("cell",), "int", "embedding dimension, D", None),
            "seed": Variable(("cell",), "int", "seed of embedding rows and block weights", None),
            "parameters": Variable(("cell",), "float64", "P = L M D; 0 where a size is infinite"),
            "weights": Variable(
                ("cell",),
                "float64",
                "weights of all branches, L D sum (a + c) M_b; 0 where a size is infinite",
                required=False,
            ),
            "s": Variable(
                ("cell", "depth_point"),
                "float64",
                "depth fraction of a cell's depth point, s = l/L; NaN where the cell has none",
                required=False,
            ),
        },
        grouped=True,
    ),
}
"""What each kind of store holds."""


def _has_dtype(dtype: np.dtype, wanted: str) -> bool:
    if wanted == "int":
        return dtype.kind == "i"
    if wanted == "float":
        return dtype in (np.dtype("float32"), np.dtype("float64"))
    return dtype == np.dtype(wanted)


def _schema_findings(dataset: xr.Dataset, variables: Mapping[str, Variable]) -> list[str]:
    """Compare one dataset (or group) with what its kind holds."""
    findings = []
    for name, wanted in variables.items():
        if name not in dataset.variables:
            if wanted.required:
                findings.append(f"{name}: missing")
            continue
        found = dataset[name]
        dims = tuple(
            dim.removesuffix("?")
            for dim in wanted.dims
            if not dim.endswith("?") or dim.removesuffix("?") in dataset.sizes
        )
        if found.dims != dims:
            findings.append(f"{name}: dimensions {found.dims}, must be {dims}")
        if not _has_dtype(found.dtype, wanted.dtype):
            findings.append(f"{name}: type {found.dtype}, must be {wanted.dtype}")
    findings += [
        f"{name}: unknown variable; give it an attribute long_name"
        for name, variable in dataset.variables.items()
        if name not in variables and "long_name" not in variable.attrs
    ]
    return findings


def as_parts(dataset: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Group name to dataset; the root's name is empty."""
    return {"": dataset} if isinstance(dataset, xr.Dataset) else dict(dataset)


def kind_findings(kind: str, attrs: Mapping[str, Any], parts: dict[str, xr.Dataset]) -> list[str]:
    """Compare a store's attributes, groups and variables with what its kind must be."""
    schema = SCHEMAS[kind]
    findings = [f"attribute {name}: missing" for name in schema.attrs if name not in attrs]
    if schema.grouped:
        findings += [
            f"group {name}: must be one of {', '.join(PAIRS)}"
            for name in parts
            if name not in PAIRS
        ]
    elif set(parts) != {""}:
        findings.append(f"groups {', '.join(parts)}: a {kind} store has none")
    for group, part in parts.items():
        prefix = f"{group}/" if group else ""
        findings += [prefix + finding for finding in _schema_findings(part, schema.all)]
    return findings


def status_counts(dataset: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, int]:
    """Count runs by how they ended, over all groups.

    Returns
    -------
    dict
        ``{"ok": n, "diverged": n, "not_run": n}``; empty if nothing has a ``status``.
    """
    values = [part["status"].values for part in as_parts(dataset).values() if "status" in part]
    if not values:
        return {}
    counts = np.bincount(np.concatenate(values).astype(int), minlength=len(STATUS))
    return {name: int(count) for name, count in zip(STATUS, counts, strict=False)}

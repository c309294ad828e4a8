"""Datasets of a made-up study that obeys the law of errors exactly, up to scatter over seeds.

For tests of what reads stores: nothing is trained and nothing is solved. The shapes, dimensions and
names are those of the real stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits.cells import VARIABLES
from resnet_limits.config import Experiment, Shape, experiment_from_dict
from resnet_limits.errors.families import Family, fit_families
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.problem import embedding_rows, make_problem

HIDDEN = {"1/L": 0.5, "sqrt(D/(LM))": 0.7, "1/sqrt(D)": 1.1}
OUTPUT = {"1/L": 0.3, "D/(LM)": 0.15, "1/sqrt(LM)": 0.3, "1/sqrt(D)": 0.6}
PAIR_TERMS = {
    "finite-wide": {"D/(LM)", "sqrt(D/(LM))", "1/sqrt(LM)"},
    "wide-mean_ode": {"1/L"},
    "mean_ode-dmft": {"1/sqrt(D)"},
    "finite-mean_ode": {"1/L", "D/(LM)", "sqrt(D/(LM))", "1/sqrt(LM)"},
    "finite-dmft": {"1/L", "D/(LM)", "sqrt(D/(LM))", "1/sqrt(LM)", "1/sqrt(D)"},
}
SINGLE = {
    "finite-wide": ("D/(LM)", {"hidden": 0.5, "output": 1.0}),
    "wide-mean_ode": ("1/L", {"hidden": 1.0, "output": 1.0}),
    "mean_ode-dmft": ("1/D", {"hidden": 0.5, "output": 0.5}),
}
LIMIT_STDERR = 2e-4
_NODES = np.array([0.0, 0.1127, 0.5, 0.8873, 1.0])


def experiment(**sections: Any) -> Experiment:
    """A valid experiment; sections given replace the default ones."""
    return experiment_from_dict(
        {
            "experiment": "synthetic",
            "problem": {"data": {"kind": "gaussian", "samples": 4, "inputs": 2, "targets": 2}},
            "sweep": {
                "grid": {
                    "depth": [4, 8, 16, 32],
                    "width": [8, 16, 32, 64, 128],
                    "embed_dim": [8, 16, 32, 64, 128],
                },
                "seeds": 4,
            },
            **sections,
        }
    )


def terms_of(pair: str, quantity: str) -> dict[str, float]:
    amplitudes = HIDDEN if quantity == "hidden" else OUTPUT
    return {name: value for name, value in amplitudes.items() if name in PAIR_TERMS[pair]}


def law(pair: str, quantity: str, L: float, M: float, D: float) -> float:
    """The error of a pair: its terms in quadrature."""
    values = {
        "1/L": 1 / L,
        "D/(LM)": D / (L * M),
        "sqrt(D/(LM))": np.sqrt(D / (L * M)),
        "1/sqrt(LM)": 1 / np.sqrt(L * M),
        "1/sqrt(D)": 1 / np.sqrt(D),
    }
    return float(
        np.sqrt(sum((a * values[name]) ** 2 for name, a in terms_of(pair, quantity).items()))
    )


@dataclass
class Study:
    """A made-up experiment with all its results.

    Attributes
    ----------
    diverged : set of (depth, width, embed_dim, seed)
        Networks that diverged.
    opened : list of (kind, cell)
        What `open_store` was asked for.
    """

    experiment: Experiment
    diverged: set[tuple[int, int, int, int]] = field(default_factory=set)
    opened: list[tuple[str, dict[str, int]]] = field(default_factory=list)

    # --- stores ---------------------------------------------------------------------------------

    def open_store(self, kind: str, cell: dict[str, int]) -> xr.Dataset:
        self.opened.append((kind, dict(cell)))
        if kind == "problem":
            return self.problem()
        if kind == "dmft":
            return self.dmft()
        if kind == "finite":
            return self.finite(**cell)
        raise KeyError(kind)

    def problem(self) -> xr.Dataset:
        problem = make_problem(self.experiment)
        return xr.Dataset(
            {"x": (("sample", "input"), problem.x), "y": (("sample", "target"), problem.y)}
        )

    def dmft(self) -> xr.Dataset:
        problem = make_problem(self.experiment)
        steps = np.arange(self.experiment.training.steps)
        samples, inputs = problem.x.shape
        targets = problem.y.shape[-1]
        learned = 1 - np.exp(-0.25 * steps)[:, None, None]
        output = learned * 0.7 * problem.y
        coef = np.zeros((len(steps), len(_NODES), samples, inputs + targets))
        coef[..., :inputs] = problem.x
        coef[..., :inputs] -= (
            0.4 * (learned[:, None] * _NODES[:, None, None] ** 2) * problem.x[:, ::-1]
        )
        coef[..., inputs:] = output[:, None] * np.sin(1.2 * _NODES)[:, None, None]
        loss = 0.5 * ((output - problem.y) ** 2).sum(-1).mean(-1)
        out, field_dims = ("step", "sample", "target"), ("sample", "embedding_direction")
        return xr.Dataset(
            {
                "output": (out, output),
                "output_stderr": (out, np.full(output.shape, LIMIT_STDERR)),
                "loss": ("step", loss),
                "loss_stderr": ("step", LIMIT_STDERR * np.sqrt(1.0 + steps)),
                "hidden_coef": (("step", "node", *field_dims), coef),
                "backward_coef": (("step", "node", *field_dims), coef[:, ::-1]),
                "output_replicate": (("replicate", *out), output[None]),
                "hidden_coef_replicate": (("replicate", "step", *field_dims), coef[None, :, -1]),
                "depth_error": ("step", np.full(len(steps), 1e-6)),
                "output_depth_change": (out, np.full(output.shape, 1e-6)),
                "hidden_coef_depth_change": (("step", *field_dims), 0.0 * coef[:, -1]),
                "rounding": ("step", np.full(len(steps), 1e-12)),
            },
            {"step": steps, "node": _NODES, "replicate": [0]},
            {"quadrature_points": 4096, "quadrature_kind": "sobol"},
        )

    def finite(self, depth: int, width: int, embed_dim: int) -> xr.Dataset:
        study, problem, limit = self.experiment, make_problem(self.experiment), self.dmft()
        seeds = np.array(study.seeds_of(Shape(depth, width, embed_dim)))
        steps = np.array(saved_steps(study))
        layers = np.array(depth_layers(study, depth))
        s = layers / depth
        rng = np.random.default_rng([depth, width, embed_dim])
        wander = 0.7 * np.sqrt(embed_dim / (depth * width))
        # Polynomial interpolation in s, with numpy alone: an independent check of `fields`.
        basis = np.vander(s, len(_NODES)) @ np.linalg.inv(np.vander(_NODES))
        coef = np.einsum("pn,knir->kpir", basis, limit["hidden_coef"].values[steps])
        hidden = np.empty((len(seeds), len(steps), len(s), len(problem.x), embed_dim))
        for k, seed in enumerate(seeds):
            rows = embedding_rows(problem, study.seed, int(seed), embed_dim)
            jumps = rng.normal(size=(len(s) - 1, len(problem.x), embed_dim))
            noise = np.concatenate([np.zeros_like(jumps[:1]), jumps.cumsum(axis=0)])
            hidden[k] = coef @ rows.T + wander * noise / np.sqrt(len(s) - 1)
        size = law("finite-dmft", "output", depth, width, embed_dim)
        shift = size * rng.normal(size=(len(seeds), 1, *problem.y.shape))
        output = limit["output"].values[steps] + shift
        loss = 0.5 * ((output - problem.y) ** 2).sum(-1).mean(-1)
        status = np.array(
            [DIVERGED if (depth, width, embed_dim, k) in self.diverged else OK for k in seeds],
            dtype=np.int8,
        )
        late = (status == DIVERGED)[:, None] & (np.arange(len(steps)) > len(steps) // 2)
        for values in (hidden, output, loss):
            values[late] = np.nan
        out = ("seed", "step", "sample", "target")
        field_dims = ("seed", "step", "depth_point", "sample", "coordinate")
        return xr.Dataset(
            {
                "output": (out, output),
                "loss": (("seed", "step"), loss),
                "hidden": (field_dims, hidden.astype(np.float32)),
                "backward": (field_dims, hidden.astype(np.float32)),
                "status": ("seed", status),
                "diverged_step": ("seed", np.where(status == DIVERGED, len(steps) // 2 + 1, -1)),
            },
            {
                "seed": seeds,
                "step": steps,
                "layer": ("depth_point", layers),
                "s": ("depth_point", s),
            },
            {"depth": depth, "width": width, "embed_dim": embed_dim, "engine": "dense"},
        )

    # --- errors and rates -----------------------------------------------------------------------

    def errors(self) -> dict[str, xr.Dataset]:
        return {pair: self._pair_errors(pair) for pair in self.experiment.pairs}

    def _cells(self, pair: str) -> list[tuple[int, int, int, int]]:
        return sorted(
            {
                (
                    0 if pair == "mean_ode-dmft" else shape.depth,
                    0 if "finite" not in pair else shape.width,
                    shape.embed_dim,
                    seed,
                )
                for shape in self.experiment.shapes
                for seed in self.experiment.seeds_of(shape)
            }
        )

    def _pair_errors(self, pair: str) -> xr.Dataset:
        cells = self._cells(pair)
        steps = np.array(saved_steps(self.experiment))
        rng = np.random.default_rng(len(pair))
        L, M, D, seed = np.array(cells).T
        sizes = np.where(np.array([L, M, D]) == 0, np.inf, np.array([L, M, D], float))
        status = np.array(
            [DIVERGED if "finite" in pair and cell in self.diverged else OK for cell in cells],
            dtype=np.int8,
        )
        variables: dict[str, Any] = {"status": ("cell", status)}
        scatter = np.exp(0.1 * rng.normal(size=(len(cells), 1)))
        growth = np.linspace(0.4, 1.0, len(steps))
        level = {"finite-wide": 0.1, "wide-mean_ode": 1.0, "mean_ode-dmft": 1.0}.get(pair, 3.0)
        for name, quantity in (
            ("hidden_rms", "hidden"),
            ("hidden_max_mean_abs", "hidden"),
            ("output_rms", "output"),
        ):
            value = np.array([law(pair, quantity, *sizes[:, k]) for k in range(len(cells))])
            error = value[:, None] * scatter * growth
            error[status == DIVERGED] = np.nan
            variables[name] = (("cell", "step"), error)
            if name != "hidden_max_mean_abs":
                stderr = np.full(error.shape, LIMIT_STDERR * level * 7)
                variables[f"{name}_stderr"] = (("cell", "step"), stderr)
        depths = [
            np.array(depth_layers(self.experiment, int(size) or 16)) / (size or 16) for size in L
        ]
        s = np.full((len(cells), max(map(len, depths))), np.nan)
        for k, own in enumerate(depths):
            s[k, : len(own)] = own
        # In this study distances grow in proportion to the depth.
        by_depth = variables["hidden_rms"][1][:, :, None] * s[:, None, :]
        variables["hidden_rms_at"] = (("cell", "step", "depth_point"), by_depth)
        return xr.Dataset(
            variables,
            {
                "s": (("cell", "depth_point"), s),
                "step": steps,
                "depth": ("cell", L),
                "width": ("cell", M),
                "embed_dim": ("cell", D),
                "seed": ("cell", seed),
                "parameters": ("cell", (L * M * D).astype(float)),
            },
        )

    def rates(self) -> dict[str, Any]:
        steps = saved_steps(self.experiment)
        shown = sorted({5, steps[-1]} & set(steps))
        growth = dict(zip(steps, np.linspace(0.4, 1.0, len(steps)), strict=True))
        pairs = {
            pair: {
                quantity: {
                    str(step): self._fit(pair, quantity, float(growth[step])) for step in shown
                }
                for quantity in ("hidden", "hidden_max_mean_abs", "output")
            }
            for pair in self.experiment.pairs
        }
        families = {
            name: Family(
                tuple(members),
                self.experiment.sweep.families[name].depth.exponent,
                self.experiment.sweep.families[name].embed_dim.exponent,
            )
            for name, members in self.experiment.families.items()
        }
        return {
            "experiment": self.experiment.experiment,
            "steps": shown,
            "pairs": pairs,
            "families": fit_families(self.errors(), families, shown, 0) if families else {},
        }

    def _fit(self, pair: str, quantity: str, growth: float) -> dict[str, Any]:
        quantity = "output" if quantity == "output" else "hidden"
        cells = self._cells(pair)
        total, bad = len(cells), len(self.diverged & set(cells)) if "finite" in pair else 0
        fit: dict[str, Any] = {
            "cells": {
                "total": total,
                "used": total - bad,
                "diverged": bad,
                "below_resolution": 0,
                "missing": 0,
            },
        }
        if bad == total:
            return {**fit, "exponent": None, "reason": "no cell is left"}
        amplitudes = {name: growth * value for name, value in terms_of(pair, quantity).items()}
        if pair in SINGLE:
            variable, theory = SINGLE[pair]
            if len({shape.depth for shape in self.experiment.shapes}) == 1 and variable == "1/L":
                return {
                    **fit,
                    "exponent": None,
                    "reason": "too few distinct values of 1/L: 1 of the 3 needed",
                }
            amplitude = next(iter(amplitudes.values()))
            exponent = theory[quantity] - 0.01
            fit |= {
                "variable": variable,
                "model": "A x^b",
                "exponent": exponent,
                "exponent_interval": [exponent - 0.03, exponent + 0.03],
                "theory": theory[quantity],
                "amplitude": amplitude,
                "amplitude_interval": [0.95 * amplitude, 1.05 * amplitude],
                "amplitude_at_theory": 0.99 * amplitude,
                "amplitude_at_theory_interval": [0.96 * amplitude, 1.02 * amplitude],
            }
        if len(amplitudes) > 1:
            fit["model"] = "error^2 = " + " + ".join(f"(A {name})^2" for name in amplitudes)
            fit["terms"] = {
                name: {"amplitude": value, "amplitude_interval": [0.94 * value, 1.06 * value]}
                for name, value in amplitudes.items()
            }
        if pair == "finite-dmft":
            fit["fixed_budget"] = self._budget(quantity)
        return fit

    def _budget(self, quantity: str) -> dict[str, Any]:
        shapes = {
            shape: law("finite-dmft", quantity, *shape)
            for shape in self.experiment.shapes
            if any((*shape, seed) not in self.diverged for seed in self.experiment.seeds)
        }
        best: dict[int, Any] = {}
        for shape, error in shapes.items():
            place = int(np.log2(shape.parameters) // 2)
            if place not in best or error < shapes[best[place]]:
                best[place] = shape
        if len(best) < 3:
            return {"exponent": None, "points": [], "reason": "too few shapes"}
        theory = -1 / 6 if quantity == "hidden" else -1 / 5
        return {
            "exponent": theory + 0.01,
            "exponent_interval": [theory - 0.02, theory + 0.04],
            "theory": theory,
            "points": [
                {"parameters": shape.parameters, "error": shapes[shape], **shape._asdict()}
                for shape in best.values()
            ],
        }


# --- errors alone ---------------------------------------------------------------------------------

STEP = 5


def table(cells: np.ndarray, error: np.ndarray) -> xr.Dataset:
    """Errors (cells,) at step `STEP` of cells (cells, 4): depth, width, embed_dim and seed."""
    L, M, D, k = cells.T
    values = ("cell", "step"), error[:, None]
    variables = {name: values for name, _ in VARIABLES.values()}
    zeros = {f"{name}_stderr": (("cell", "step"), 0 * error[:, None]) for name in variables}
    return xr.Dataset(
        {**variables, **zeros, "status": ("cell", np.full(len(k), OK, np.int8))},
        {
            "step": [STEP],
            "depth": ("cell", L),
            "width": ("cell", M),
            "embed_dim": ("cell", D),
            "seed": ("cell", k),
            "parameters": ("cell", (L * M * D).astype(float)),
        },
    ).copy(deep=True)


def no_prediction(steps: int) -> dict[str, Any]:
    """A prediction.json in which theory gives no amplitude."""
    nothing = {"amplitude": [None] * steps, "uncertainty": [None] * steps}
    return {
        "step": list(range(steps)),
        "hidden": dict.fromkeys(HIDDEN, nothing),
        "output": dict.fromkeys(OUTPUT, nothing),
        "scale": {"hidden": [1.0] * steps},
    }


def inside(value: float, interval: Sequence[float]) -> bool:
    """Whether a value lies in an interval."""
    return interval[0] <= value <= interval[1]

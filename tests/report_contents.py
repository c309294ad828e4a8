"""A small experiment's report, made without the pipeline: values that tests may break."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from resnet_limits.config import Experiment, experiment_from_dict
from resnet_limits.report.page import Contents, Drawing
from resnet_limits.report.run import Made, Reached

# One pixel, and a picture without a script.
SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="300" viewBox="0 0 720 300">'
    b'<rect width="720" height="300" fill="#fff"/><path d="M40 20V260H700" fill="none" '
    b'stroke="#000"/><path d="M40 60L700 240" stroke="#0072b2" stroke-width="3"/></svg>'
)

CELLS = {"total": 12, "used": 11, "diverged": 1, "below_resolution": 2, "missing": 0}
FIT = {
    "variable": "D/(LM)",
    "exponent": 0.51,
    "exponent_interval": [0.48, 0.54],
    "theory": 0.5,
    "amplitude_at_theory": 0.7,
    "amplitude_at_theory_interval": [0.6, 0.8],
    "cells": CELLS,
    "limit_tolerance_needed": 0.0006,
}


def claim(words: str, pair: str, observable: str, step: int, **values: Any) -> dict[str, Any]:
    return {
        "claim": words,
        "where": {"pair": pair, "observable": observable, "step": step},
        "theory": None,
        "predicted": None,
        "predicted_uncertainty": None,
        "measured": None,
        "interval": None,
        "chance": None,
        "width": 0.1,
        "range": None,
        "slopes": [],
        "verdict": "undecided",
        "why": "no shape is large enough",
        **values,
    }


CLAIMS = [
    claim(
        "exponent of D/(LM)", "finite-wide", "hidden", 5,
        theory=0.5, measured=0.507, interval=[0.47, 0.53], verdict="agrees",
        why="inside the 95 % interval, which at +-0.03 is no wider than +-0.1",
        range={"rule": "large ones", "shapes": 9, "of": 12, "depth": [2, 8], "width": [8, 8]},
        slopes=[{"from": 0.01, "to": 0.1, "exponent": 0.52, "interval": [0.4, 0.6]}],
    ),
    claim("exponent of D/(LM)", "finite-wide", "hidden", 14, theory=0.5),
    claim(
        "amplitude of sqrt(D/(LM))", "finite-wide", "hidden", 14,
        predicted=0.824, predicted_uncertainty=0.003, measured=0.61, interval=[0.58, 0.64],
        verdict="disagrees",
        why="were the claim true, a deviation this large would have a chance of 1.0e-05; adjusted "
        "for the number of claims, 5 (Holm), that is 5.0e-05, at most 0.05",
    ),
    claim(
        "exponent in P of the best shapes", "finite-dmft", "output", 14, width=1 / 60,
        theory=-0.2, predicted=-0.175, measured=-0.18, interval=[-0.33, -0.028],
        why="the 95 % interval, +-0.15, is wider than +-0.017; 29 seeds would decide",
    ),
    claim(
        "amplitude of the sum D/(LM) + 1/sqrt(LM)", "finite-wide", "output", 5,
        predicted=1.0, predicted_uncertainty=0.02, measured=1.03, interval=[0.98, 1.09],
        verdict="agrees", why="inside the 95 % interval, which at +-5% is no wider than +-10%",
    ),
]  # fmt: skip


def rates(claims: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Give what rates.json may hold."""
    return {
        "experiment": "tiny",
        "steps": [5, 14],
        "pairs": {
            "finite-wide": {
                "hidden": {"5": FIT, "14": FIT},
                "output": {"14": {**FIT, "exponent": None, "reason": "too few values"}},
            }
        },
        "families": {},
        "claims": copy.deepcopy(CLAIMS if claims is None else claims),
    }


def experiment(values: Mapping[str, Any]) -> Experiment:
    return experiment_from_dict(dict(values), where="tiny")


def made(**finite: Any) -> list[Made]:
    """Give the results of a few kinds; of the finite networks with other values."""
    facts = {
        "devices": ["cpu"],
        "code_hashes": ["c0de" * 8],
        "git_states": ["a" * 40],
        "versions": ["0.1.0"],
        "libraries": ["numpy 2.0, torch 2.11"],
        "first": "2026-01-01T00:00:00Z",
        "last": "2026-01-01T00:10:00Z",
    }
    networks: dict[str, Any] = {
        "count": 4,
        "ok": 7,
        "diverged": 1,
        "unwell": ["finite/L2_M8_D4 (1 of 2 seeds diverged)"],
        "seconds": 130.0,
        "peak_bytes": 2**30,
        **facts,
        **finite,
    }
    return [
        Made("dmft", count=1, seconds=12.0, peak_bytes=2**29, **facts),
        Made("mean_ode", count=1, missing=["mean_ode/D16"], ok=2, seconds=3.0, **facts),
        Made("finite", **networks),
    ]


REACHED = [Reached("dmft", 4.3e-4, 1e-5), Reached("mean_ode/D4", 6.5e-4, 2e-5)]


def drawing(name: str = "three_terms", **values: Any) -> Drawing:
    """Give a figure with a table of twelve rows."""
    rows = [[str(4 * k), f"{0.3 / k:.4f}"] for k in range(1, 13)]
    table = "depth,hidden_rms\n" + "".join(f"{','.join(row)}\n" for row in rows)
    given: dict[str, Any] = {
        "name": name,
        "title": "Each cause alone",
        "message": "The distance falls as 1/L: the exponent is 0.99 (0.97 to 1.01).",
        "caption": "Left the **hidden states**.\n\n- **Points**: one shape each.\n",
        "notes": ["360 of 360 cells used."],
        "picture": SVG,
        "kind": "image/svg+xml",
        "table": table.encode(),
        "header": ["depth", "hidden_rms"],
        "rows": rows[:10],
        "row_count": 12,
        "files": [f"figures/{name}.png"],
    }
    return Drawing(**{**given, **values})


def contents(values: Mapping[str, Any], **other: Any) -> Contents:
    """Give all that a page tells of the experiment with these values."""
    given: dict[str, Any] = {
        "experiment": experiment(values),
        "rates": rates(),
        "figures": [drawing("three_terms"), drawing("frontier", title="Best shapes")],
        "made": made(),
        "reached": REACHED,
        "configuration": "experiment: tiny\nseed: 0\n",
        "version": "0.1.0",
        "beside": {"workflow.html": "the pipeline’s jobs, their graph and run times"},
    }
    return Contents(**{**given, **other})

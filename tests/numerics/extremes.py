"""Problems of extreme numbers, all of them allowed in an experiment file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 1e30


def extreme(case: int, folder: Path) -> dict[str, Any]:
    """Draw the values of an experiment file by the number of the case, with data in a folder."""
    rng = np.random.default_rng(case)

    def choice(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def size(*, zero: bool = True) -> float:
        kind = rng.choice(["one", "any", "largest", "zero"], p=[0.55, 0.3, 0.1, 0.05])
        if kind == "zero":
            return 0.0 if zero else 1e-30
        powers = {"one": 1.0, "any": 10.0 ** rng.uniform(-30, 30), "largest": LARGEST}
        return float(powers[kind])

    steps = choice(1, 3, 6)
    stored = choice(["all"], [0, steps - 1], [steps - 1], [max(0, steps - 2)])
    return {
        "experiment": "extreme",
        "problem": {"data": data(rng, case, folder), "loss": choice(*LOSSES)},
        "model": {
            "unit": {"activation": choice("linear", "tanh", "erf", "relu", "gelu", "silu")},
            "residual_scale": size(zero=False),
            "init_std": {name: size() for name in ("input", "output", "embedding", "unembedding")},
        },
        "training": {
            "steps": steps,
            "learning_rate": size(),
            "train_embeddings": choice(False, True),
        },
        "sweep": {
            "grid": {"depth": [2], "width": [4], "embed_dim": [4]},
            "seeds": 3,
            "engine": choice("dense", "implicit"),
            "pairs": ["finite-dmft"],
        },
        "numerics": {"precision": choice("float64", "float32"), "device": "cpu"},
        "save": {
            "depth_points": choice(2, 3),
            "steps": "all" if stored == ["all"] else sorted(set(stored)),
            "dtype": choice("float64", "float32"),
        },
    }


SIZES = ("residual_scale", "learning_rate", "input", "output", "embedding", "unembedding")


def set_size(values: dict[str, Any], case: int, size: float) -> None:
    """Give one of the scales, chosen by the number of the case, a size."""
    name = SIZES[case % len(SIZES)]
    model = values["model"]
    sections = {"residual_scale": model, "learning_rate": values["training"]}
    sections.get(name, model["init_std"])[name] = size


LOSSES = ("squared_error", "mean_squared_error")


def data(rng: np.random.Generator, case: int, folder: Path) -> dict[str, Any]:
    """Draw normal data, a linear teacher's, or a file's, with or without tokens."""
    kind = rng.choice(["gaussian", "linear_teacher", "file"])
    sizes = {"samples": 2, "inputs": 2, "targets": 2, "seed": case}
    if kind == "gaussian":
        return {"kind": "gaussian", **sizes}
    scales = 10.0 ** rng.choice([0.0, 29.0, rng.uniform(-30, 29)], size=2)
    if kind == "linear_teacher":
        norm, noise = map(float, scales)
        return {"kind": "linear_teacher", **sizes, "input_norm": norm, "noise": noise}
    token = [2] if rng.random() < 0.3 else []
    x, y = (scale * np.clip(rng.standard_normal((2, *token, 2)), -3, 3) for scale in scales)
    path = folder / f"{case}.npz"
    np.savez(path, x=x, y=y)
    return {"kind": "file", "path": str(path)}

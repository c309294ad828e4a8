"""The explorer's page of a made-up experiment: its size, and the time and memory it takes to open.

``python benchmarks/explorer.py [--cells 5000]`` writes results without training anything, makes the
page with the command line, opens it in a headless Chromium and reads from it: the time from the
request until all is drawn and, then and after some use, the heap of JavaScript (by the debugging
protocol) and the resident memory of the renderer (from ``/proc``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from resnet_limits import integrity, store
from resnet_limits.cells import VARIABLES
from resnet_limits.config import PAIRS
from resnet_limits.kinds import CELL_KEYS, DIVERGED, NOT_RUN, OK, SIZES
from resnet_limits.laws import PREDICTED, in_quadrature, law_of, terms_of
from resnet_limits.stages.paths import Paths

AMPLITUDES = {
    "hidden": {"1/L": 0.5, "sqrt(D/(LM))": 0.7, "1/sqrt(D)": 1.1},
    "output": {"1/L": 0.3, "D/(LM)": 0.15, "1/sqrt(LM)": 0.3, "1/sqrt(D)": 0.6},
}
"""Of the last step; in proportion to the step, from a third at step 0."""

POINTS = 17
DIVERGED_CELL, LOST_CELL = 0, -1
"""Places of a network that diverged and of one that was not run."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
]


def growth(steps: int) -> np.ndarray:
    """Factor of all amplitudes at each step."""
    return np.linspace(1 / 3, 1.0, steps)


def made_pair(pair: str, grid: Sequence[Sequence[int]], seeds: int, steps: int) -> xr.Dataset:
    """Distances of one pair that follow its law, up to a scatter of ten per cent over seeds.

    Some are below resolution; of pairs with a network, the first diverged half way and the last
    was not run.
    """
    depends = law_of(pair, "hidden").depends
    own = [values if name in depends else [0] for name, values in zip(SIZES, grid, strict=True)]
    cells = np.array([(*sizes, seed) for sizes in itertools.product(*own) for seed in range(seeds)])
    sizes, count = cells[:, :3], len(cells)
    rng = np.random.default_rng(len(pair))
    status = np.full(count, OK, np.int8)
    if pair.startswith("finite"):
        status[[DIVERGED_CELL, LOST_CELL]] = DIVERGED, NOT_RUN
    scatter = np.exp(0.1 * rng.normal(size=(count, steps)))
    variables: dict[str, Any] = {"status": ("cell", status)}
    for observable, (name, stderr_name) in VARIABLES.items():
        quantity = "output" if observable == "output" else "hidden"
        amplitudes = {
            term: AMPLITUDES[quantity].get(term, 0.0) for term in terms_of(pair, quantity)
        }
        value = in_quadrature(amplitudes, sizes)[:, None] * growth(steps) * scatter
        # By embedding and seed, as those of real limits are; one in seven is large.
        stderr = 1e-3 * np.exp(rng.normal(size=(8192, steps)))[cells[:, 2] + cells[:, 3]]
        stderr[cells[:, 3] == 1] *= 20
        for values in (value, stderr):
            values[status == NOT_RUN] = np.nan
            values[status == DIVERGED, steps // 2 :] = np.nan
        variables[name] = (("cell", "step"), value)
        variables[stderr_name] = (("cell", "step"), stderr)
    s = np.broadcast_to(np.linspace(0, 1, POINTS), (count, POINTS))
    last = variables["hidden_rms"][1]
    profile = last[:, :, None] * np.sqrt(s)[:, None, :]
    profile = profile * np.exp(0.02 * rng.normal(size=profile.shape))
    profile[..., -1] = last
    variables["hidden_rms_at"] = (("cell", "step", "depth_point"), profile)
    parameters = np.prod(sizes, axis=1, dtype=float)
    return xr.Dataset(
        variables,
        {
            "step": np.arange(steps),
            **{name: ("cell", cells[:, k]) for k, name in enumerate((*SIZES, "seed"))},
            "parameters": ("cell", parameters),
            "weights": ("cell", 2 * parameters),
            "s": (("cell", "depth_point"), s.copy()),
        },
    )


def made_prediction(steps: int) -> dict[str, Any]:
    """Give the amplitudes of the made-up law, as prediction.json has them."""
    return {
        "step": list(range(steps)),
        **{
            quantity: {
                term: {
                    "amplitude": (value * growth(steps)).tolist(),
                    "uncertainty": (0.01 * value * growth(steps)).tolist(),
                }
                for term, value in AMPLITUDES[quantity].items()
            }
            for quantity in PREDICTED
        },
        "notes": {},
    }


def made_loss(kind: str, seeds: int, steps: int, rng: np.random.Generator) -> xr.Dataset:
    """Losses that fall, of one store."""
    falling = 0.5 * np.exp(-0.1 * np.arange(steps))
    if kind == "dmft":
        return xr.Dataset({"loss": ("step", falling)}, {"step": np.arange(steps)})
    scatter = np.exp(0.1 * rng.normal(size=(seeds, steps)))
    return xr.Dataset(
        {"loss": (("seed", "step"), falling * scatter)},
        {"seed": np.arange(seeds), "step": np.arange(steps)},
    )


def make_results(
    folder: Path,
    depths: Sequence[int],
    widths: Sequence[int],
    embed_dims: Sequence[int],
    *,
    seeds: int = 4,
    steps: int = 15,
    name: str = "made-up",
) -> Path:
    """Write a folder of results as a finished pipeline leaves it, of what the explorer reads.

    Losses alone stand in the stores of networks and limits.
    """
    paths = Paths(folder.parent, folder.name)
    grid = (depths, widths, embed_dims)
    pairs = {pair: made_pair(pair, grid, seeds, steps) for pair in PAIRS}
    attrs = {
        "experiment_file": yaml.safe_dump({"experiment": name}),
        "created": "2026-01-01T00:00:00Z",
    }
    errors = store.write(pairs, paths.store("errors"), attrs=attrs)
    integrity.write_manifest(paths.manifest("errors"), errors, kind="errors", stage_key="made up")
    integrity.write_json(made_prediction(steps), paths.store("prediction"))
    rng = np.random.default_rng(0)
    for kind in ("dmft", "mean_ode", "wide", "finite"):
        own = [grid[SIZES.index(key)] for key in CELL_KEYS[kind]]
        for sizes in itertools.product(*own):
            cell = dict(zip(CELL_KEYS[kind], sizes, strict=True))
            store.write(made_loss(kind, seeds, steps, rng), paths.store(kind, **cell))
    return folder


# --- measuring ------------------------------------------------------------------------------------


def renderer() -> tuple[float, float, float]:
    """Megabytes of this program's own largest renderer, resident and at most, and its seconds.

    From ``/proc``.
    """
    parents, found = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.partition(":")[::2] for line in (process / "status").read_text().splitlines()
            )
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        number = int(process.name)
        parents[number] = int(status["PPid"])
        if b"--type=renderer" in words and "VmRSS" in status:
            found[number] = [int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]
    (size, peak), number = max(
        (sizes, number) for number, sizes in found.items() if _is_own(number, parents)
    )
    ticks = (Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[11:13]
    return size, peak, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _is_own(process: int, parents: dict[int, int]) -> bool:
    while process in parents:
        process = parents[process]
        if process == os.getpid():
            return True
    return False


def measure(page_file: Path) -> dict[str, Any]:
    """Open the page and use it."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        debugger = page.context.new_cdp_session(page)
        debugger.send("Performance.enable")

        def memory() -> dict[str, float]:
            metrics = {
                metric["name"]: metric["value"]
                for metric in debugger.send("Performance.getMetrics")["metrics"]
            }
            size, peak, seconds = renderer()
            return {
                "js_heap_mb": round(metrics["JSHeapUsedSize"] / 2**20, 1),
                "renderer_rss_mb": round(size, 1),
                "renderer_peak_mb": round(peak, 1),
                "renderer_cpu_s": round(seconds, 2),
            }

        page.goto("about:blank")
        empty = memory()
        started = time.perf_counter()
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        opened = time.perf_counter() - started
        result = {"open_s": round(opened, 2), "empty": empty, "opened": memory()}
        # Every pair and observable at every third step, then trajectories of forty cells.
        for pair in page.eval_on_selector_all("#pair option", "all => all.map(o => o.value)"):
            page.select_option("#pair", pair)
            for name in page.eval_on_selector_all(
                "#observable option", "all => all.map(o => o.value)"
            ):
                page.select_option("#observable", name)
                page.focus("#step")
                for _ in range(4):
                    page.keyboard.press("ArrowLeft")
                    page.wait_for_timeout(150)
        page.select_option("#pair", "finite-dmft")
        for _ in range(40):
            page.click("#next")
            page.wait_for_timeout(50)
        result["used"] = memory()
        debugger.send("HeapProfiler.collectGarbage")
        result["used_and_collected"] = memory()
        browser.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=5000, help="networks, a multiple of 100")
    parser.add_argument("--keep", type=Path, help="folder for results and page")
    options = parser.parse_args()
    widths = [8 * k for k in range(1, options.cells // 100 + 1)]
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        folder = root / "made-up"
        if not folder.exists():
            make_results(folder, [4, 8, 16, 32, 64], widths, [16, 32, 64, 128, 256])
        page, data = root / "page.html", root / "cells.parquet"
        command = ["explore", str(folder), "--out", str(page)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "resnet_limits", *command], check=True)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        subprocess.run(
            [sys.executable, "-m", "resnet_limits", *command, "--data", str(data)], check=True
        )
        result = {
            "page_mb": round(page.stat().st_size / 1e6, 2),
            "parquet_mb": round(data.stat().st_size / 1e6, 2),
            "write_wall_s": round(wall, 1),
            "write_cpu_s": round(processor, 1),
            "write_peak_mb": round(after.ru_maxrss / 1024),
            **measure(page),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

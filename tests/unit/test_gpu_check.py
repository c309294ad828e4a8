"""The check of a GPU, with the CPU in its place: what it finds, and that it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_limits import devices

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        import gpu_check
    finally:
        sys.path.remove(str(PROGRAM.parent))
    return gpu_check


@pytest.fixture
def check(gpu_check, tmp_path, monkeypatch):
    """One activation, and rates that nobody waits for."""
    monkeypatch.setattr(gpu_check, "ACTIVATIONS", ["tanh"])
    monkeypatch.setattr(gpu_check, "bandwidth", lambda *_: 1e10)
    monkeypatch.setattr(gpu_check, "matrix_rate", lambda *_: 1e10)
    table = gpu_check.Table(tmp_path / "results" / "a.md", "a", [])
    return gpu_check.Check(table, "cpu", gpu_check.TINY)


def rows(check):
    return [line for line in check.table.file.read_text().splitlines() if line.startswith("| ")]


@pytest.mark.slow
def test_the_whole_program(gpu_check, check, capsys):
    assert gpu_check.main(["--try-on-cpu", "--out", str(check.table.file.parent)]) == 0
    (file,) = check.table.file.parent.iterdir()
    text = file.read_text()
    assert "not finished" not in text
    assert "**no**" not in text
    for part in ("Rates", "Networks against", "Limits against", "Recorded", "Steps", "Cost model"):
        assert f"## {part}" in text
    for limit in ("DMFT", "Mean ODE", "wide"):
        assert f"| {limit} | tanh | float32 |" in text
    for engine in ("dense", "implicit"):
        assert f"| {engine} | tanh | float64 |" in text
        assert f'"{engine}": (' in text
    assert text in capsys.readouterr().out or str(file)


def test_every_activation_is_compared(gpu_check):
    from resnet_limits.units import ACTIVATIONS

    assert gpu_check.ACTIVATIONS is ACTIVATIONS


def test_all_parts_fit_in_eight_minutes(gpu_check):
    seconds = gpu_check.Sizes().seconds
    assert list(seconds) == list(gpu_check.PARTS)
    assert sum(seconds.values()) <= 480


@pytest.mark.parametrize(("size", "found"), [(1e-12, 0), (1e-8, 1), (1e-2, 2), (np.nan, 2)])
def test_networks_that_differ_are_found(gpu_check, check, monkeypatch, size, found):
    """The negative control: every second training is a little off."""
    trained, calls = gpu_check.train, []

    def perturbed(*arguments, **options):
        training = trained(*arguments, **options)
        calls.append(0)
        return training if len(calls) % 2 else replace(training, output=training.output + size)

    monkeypatch.setattr(gpu_check, "train", perturbed)
    gpu_check.engines(check)
    assert check.table.bad == found * 2
    assert check.table.good + check.table.bad == 4


@pytest.mark.parametrize("method", ["dmft", "mean_ode", "wide"])
def test_limits_that_differ_are_found(gpu_check, check, monkeypatch, method):
    solve, calls = getattr(gpu_check.Limits, method), []

    def perturbed(self, *arguments):
        solution = solve(self, *arguments)
        calls.append(0)
        solution.trajectory.hidden[:] += 1e-2 * (len(calls) % 2)
        return solution

    monkeypatch.setattr(gpu_check.Limits, method, perturbed)
    gpu_check.limits(check)
    assert (check.table.good, check.table.bad) == (4, 2)


def test_a_rounded_product_is_found(gpu_check, check, monkeypatch):
    gpu_check.rates(check)
    assert check.table.bad == 0
    product = torch.Tensor.__matmul__
    # What tensor cores keep of float32.
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: product(a.bfloat16(), b.bfloat16())
    )
    gpu_check.rates(check)
    assert check.table.bad == 1


def test_what_fails_is_a_line_and_the_rest_goes_on(gpu_check, check, monkeypatch):
    def fail(_check):
        raise RuntimeError("CUDA error:\nout of | luck")

    def wait(_check):
        time.sleep(30)

    def stop(_check):
        raise KeyboardInterrupt

    parts = {"rates": fail, "graphs": wait, "constants": gpu_check.constants}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    sizes = replace(gpu_check.TINY, seconds={"rates": 9.0, "graphs": 0.2, "constants": 99.0})
    started = time.monotonic()
    assert gpu_check.run(replace(check, sizes=sizes)) == 1
    assert time.monotonic() - started < 29
    text = check.table.file.read_text()
    assert "| rates | RuntimeError: CUDA error: out of / luck | **no** |" in text
    assert "| graphs | not seen: out of time after 0 s | **no** |" in text
    assert "2 lines hold, 2 do not.\n" in text
    # What there is when somebody stops it stays.
    monkeypatch.setattr(gpu_check, "PARTS", {"constants": stop})
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run(replace(check, sizes=sizes))
    assert check.table.file.read_text() == text
    assert [file.name for file in check.table.file.parent.iterdir()] == ["a.md"]


def test_one_case_that_fails_leaves_the_others(gpu_check, check, monkeypatch):
    trained = gpu_check.train

    def sometimes(*arguments, **options):
        if options["engine"] == "dense":
            raise MemoryError
        return trained(*arguments, **options)

    monkeypatch.setattr(gpu_check, "train", sometimes)
    gpu_check.engines(check)
    assert (check.table.good, check.table.bad) == (2, 2)
    assert "| dense | tanh | float64 | MemoryError: failed | **no** |" in rows(check)


def test_what_does_not_fit_is_not_seen(gpu_check, check, monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda _device: 1000)
    gpu_check.steps(check)
    assert check.table.good == 0
    assert all("not seen: needs" in line for line in rows(check)[2:])


def test_without_cuda_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--out", str(tmp_path / "results")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: numerics.device: cuda is asked for, but no CUDA device")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_it_needs_only_the_numerical_part():
    """What a machine with CUDA must have besides Python, and nothing of the workflow."""
    needed = {"numpy", "scipy", "torch", "numba", "llvmlite", "pydantic", "yaml"}
    others = ["xarray", "zarr", "dask", "matplotlib", "snakemake", "sklearn", "typer", "numcodecs"]
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
    code += f"for name in {others}: sys.modules[name] = None\n"
    code += f"import gpu_check; print(all(name in sys.modules for name in {sorted(needed)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_float32_stays_float32_where_an_environment_says_otherwise():
    """Some containers let matrix products round to ten bits."""
    code = "import torch\nfrom resnet_limits import devices\n"
    code += (
        "torch.cuda.is_available = lambda: True\nbefore = torch.get_float32_matmul_precision()\n"
    )
    code += "devices.choose('auto')\nprint(before, torch.get_float32_matmul_precision())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["high", "highest"]

"""What the vector code of the dense engine's kernels buys over plain loops compiled by numba.

The three products of ``networks/kernels.py`` against twins that are written here as plain loops, in
the tiles that were fastest of those tried (weight rows x states: 4 x 4 and 4 x 2 in project; 4 x 1,
4 x 2 and 8 x 1 in expand; 1 x 5, 1 x 10 and 2 x 5 in update). Both run in one thread, in turns, on
layers that together exceed the caches. A ratio is the processor time of the plain loops over that
of the kernels, next to each other in time; the median over rounds is printed. Usage:
``python benchmarks/llvm_kernels.py [--rounds 15] [--out benchmarks/results/llvm_kernels.md]``.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit

from resnet_limits.networks import kernels, vectors

# M and D; the plain loops want multiples of four.
SIZES = ((500, 500), (1000, 1000), (2000, 2000))
SAMPLES = (1, 10)
# Numbers of all layers together, far more than caches hold.
_NUMBERS = 1 << 25

# As in the kernels, NaN and infinity keep their meaning; sums may be taken in any order.
_plain = njit(fastmath={"contract", "reassoc", "nsz", "arcp"}, boundscheck=False)


@_plain
def project(w, x, scale, first, last, out):
    """``out[n, m] = scale * w[m] . x[n]``; four weight rows and up to four states at a time."""
    states, columns = x.shape
    for m in range(first, last - 3, 4):
        w0, w1, w2, w3 = w[m], w[m + 1], w[m + 2], w[m + 3]
        n = 0
        while n + 4 <= states:
            x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = w.dtype.type(0)
            c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = w.dtype.type(0)
            for i in range(columns):
                a0, a1, a2, a3 = (
                    a0 + w0[i] * x0[i],
                    a1 + w1[i] * x0[i],
                    a2 + w2[i] * x0[i],
                    a3 + w3[i] * x0[i],
                )
                b0, b1, b2, b3 = (
                    b0 + w0[i] * x1[i],
                    b1 + w1[i] * x1[i],
                    b2 + w2[i] * x1[i],
                    b3 + w3[i] * x1[i],
                )
                c0, c1, c2, c3 = (
                    c0 + w0[i] * x2[i],
                    c1 + w1[i] * x2[i],
                    c2 + w2[i] * x2[i],
                    c3 + w3[i] * x2[i],
                )
                d0, d1, d2, d3 = (
                    d0 + w0[i] * x3[i],
                    d1 + w1[i] * x3[i],
                    d2 + w2[i] * x3[i],
                    d3 + w3[i] * x3[i],
                )
            for j, sums in enumerate(
                ((a0, a1, a2, a3), (b0, b1, b2, b3), (c0, c1, c2, c3), (d0, d1, d2, d3))
            ):
                for k in range(4):
                    out[n + j, m + k] = scale * sums[k]
            n += 4
        while n < states:
            x0 = x[n]
            a0 = a1 = a2 = a3 = w.dtype.type(0)
            for i in range(columns):
                a0 += w0[i] * x0[i]
                a1 += w1[i] * x0[i]
                a2 += w2[i] * x0[i]
                a3 += w3[i] * x0[i]
            for k, total in enumerate((a0, a1, a2, a3)):
                out[n, m + k] = scale * total
            n += 1


@_plain
def expand(w, c, scale, first, last, out):
    """``out[n] += scale * sum_m c[n, m] w[m]``; four weight rows and up to two states at a time."""
    states, columns = out.shape
    for m in range(first, last - 3, 4):
        w0, w1, w2, w3 = w[m], w[m + 1], w[m + 2], w[m + 3]
        n = 0
        while n + 2 <= states:
            y, z = out[n], out[n + 1]
            a0, a1 = scale * c[n, m], scale * c[n, m + 1]
            a2, a3 = scale * c[n, m + 2], scale * c[n, m + 3]
            b0, b1 = scale * c[n + 1, m], scale * c[n + 1, m + 1]
            b2, b3 = scale * c[n + 1, m + 2], scale * c[n + 1, m + 3]
            for i in range(columns):
                v0, v1, v2, v3 = w0[i], w1[i], w2[i], w3[i]
                y[i] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                z[i] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
            n += 2
        while n < states:
            y = out[n]
            a0, a1 = scale * c[n, m], scale * c[n, m + 1]
            a2, a3 = scale * c[n, m + 2], scale * c[n, m + 3]
            for i in range(columns):
                y[i] += a0 * w0[i] + a1 * w1[i] + a2 * w2[i] + a3 * w3[i]
            n += 1


@_plain
def update(w, c, x, step, first, last):
    """``w[m] += step * sum_n c[n, m] x[n]``; two weight rows and up to five states at a time."""
    states, columns = x.shape
    for m in range(first, last - 1, 2):
        y, z, n = w[m], w[m + 1], 0
        while n + 5 <= states:
            x0, x1, x2, x3, x4 = x[n], x[n + 1], x[n + 2], x[n + 3], x[n + 4]
            a0, a1, a2 = step * c[n, m], step * c[n + 1, m], step * c[n + 2, m]
            a3, a4 = step * c[n + 3, m], step * c[n + 4, m]
            b0, b1, b2 = step * c[n, m + 1], step * c[n + 1, m + 1], step * c[n + 2, m + 1]
            b3, b4 = step * c[n + 3, m + 1], step * c[n + 4, m + 1]
            for i in range(columns):
                v0, v1, v2, v3, v4 = x0[i], x1[i], x2[i], x3[i], x4[i]
                y[i] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3 + a4 * v4
                z[i] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3 + b4 * v4
            n += 5
        while n < states:
            x0, a0, b0 = x[n], step * c[n, m], step * c[n, m + 1]
            for i in range(columns):
                y[i] += a0 * x0[i]
                z[i] += b0 * x0[i]
            n += 1


def projecting(product: Callable[..., None]) -> Callable[..., None]:
    """Project on all layers' weights."""

    @njit
    def run(weights, x, coefficients, scale, out):
        for layer in range(len(weights)):
            product(weights[layer], x, scale, 0, weights.shape[1], coefficients)

    return run


def expanding(product: Callable[..., None]) -> Callable[..., None]:
    """Expand in all layers' weights."""

    @njit
    def run(weights, x, coefficients, scale, out):
        for layer in range(len(weights)):
            product(weights[layer], coefficients, scale, 0, weights.shape[1], out)

    return run


@njit
def kernels_project(weights, x, scale, first, last, out):
    """Project, by the kernel."""
    kernels._project_rows(weights, 0, x, 0, len(x), scale, first, last, out, 0)


@njit
def kernels_expand(source, coefficients, scale, first, last, out):
    """Expand in all columns, by the kernel."""
    columns, states = source.shape[1], len(out)
    kernels._expand_rows(
        source, 0, coefficients, 0, states, scale, first, last, 0, columns, out, 0
    )  # fmt: skip


@njit
def kernels_update(weights, coefficients, x, step, first, last):
    """Update, by the kernel."""
    kernels._update_rows(weights, 0, coefficients, x, 0, len(x), step, first, last)


def updating(product: Callable[..., None]) -> Callable[..., None]:
    """Update all layers' weights."""

    @njit
    def run(weights, x, coefficients, scale, out):
        for layer in range(len(weights)):
            product(weights[layer], coefficients, x, scale, 0, weights.shape[1])

    return run


PRODUCTS = {
    "project": (projecting(kernels_project), projecting(project)),
    "expand": (expanding(kernels_expand), expanding(expand)),
    "update": (updating(kernels_update), updating(update)),
}
"""Each product as it is, and as plain loops."""


def measure(
    name: str, width: int, embed_dim: int, samples: int, dtype: np.dtype, rounds: int
) -> tuple[float, float, float]:
    """Median nanoseconds per weight of both, and the median ratio of neighbours in time."""
    rng = np.random.default_rng(0)
    layers = _NUMBERS // (width * embed_dim)
    weights = rng.standard_normal((layers, width, embed_dim)).astype(dtype)
    x = rng.standard_normal((samples, embed_dim)).astype(dtype)
    results, found = [], []
    for run in PRODUCTS[name]:
        # The same numbers from both, as far as rounding goes.
        w, out = weights[:2].copy(), np.zeros_like(x)
        c = np.random.default_rng(1).standard_normal((samples, width)).astype(dtype)
        run(w, x, c, dtype.type(1e-3), out)
        results.append([array.copy() for array in (w, out, c)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(one).max())
    c = rng.standard_normal((samples, width)).astype(dtype)
    out = np.zeros_like(x)
    for _ in range(rounds):
        times = []
        for run in PRODUCTS[name]:
            start = time.thread_time()
            run(weights, x, c, dtype.type(1e-9), out)
            times.append(time.thread_time() - start)
        found.append(times)
    ours, plain = np.median(found, axis=0) / weights.size * 1e9
    return ours, plain, float(np.median([plain / ours for ours, plain in found]))


def processor() -> str:
    """Name the processor, and its vectors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, vectors of {8 * vectors._BYTES} bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="runs of each, in turns")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"{processor()}, one thread, processor time, median of {arguments.rounds} rounds in turns.")
    say("")
    say("| product | precision | N | M | D | kernel, ns a weight | plain loops | plain / kernel |")
    say("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in PRODUCTS:
        for dtype in (np.dtype("float64"), np.dtype("float32")):
            for samples in SAMPLES:
                for width, embed_dim in SIZES:
                    ours, plain, ratio = measure(
                        name, width, embed_dim, samples, dtype, arguments.rounds
                    )
                    say(
                        f"| {name} | {dtype} | {samples} | {width} | {embed_dim} "
                        f"| {ours:.3f} | {plain:.3f} | {ratio:.2f} |"
                    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

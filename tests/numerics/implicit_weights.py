"""The weights that an implicit network stands for, made explicit.

An implicit network has drawn of a block matrix W what its products needed: ``X = W^T A`` and
``Y = W C``. Any ``W = A X^T + Y C^T - A (A^T Y) C^T + (1 - A A^T) G (1 - C C^T)`` has these
products, whatever G; with a Gaussian G it is the matrix of the law.
"""

from __future__ import annotations

import numpy as np

from resnet_limits.networks.implicit import ImplicitNetwork, _Chunk


def bases(network: ImplicitNetwork, layer: int, which: str, seed: int):
    """A, X, Y, C of one matrix, as columns."""
    at = network.layers[layer]
    matrix = getattr(at, which)
    chunk = _Chunk(at.unit, at.p, at.r, at.rows)
    carriers, probes = (at.p, chunk.dp) if which == "incoming" else (at.r, chunk.g)
    v = probes[seed].double().numpy().T
    z = np.concatenate([carriers[seed].double().numpy().T, v], axis=1)
    a = matrix.left[seed, : matrix.lefts].double().numpy().T
    y = matrix.image[seed, : matrix.rights].double().numpy().T
    x = z @ matrix.xi[seed, :, : matrix.lefts]
    c = v @ matrix.tau[seed, :, : matrix.rights]
    # A seed may have fewer directions than the batch; its columns are zero then.
    used, seen = np.linalg.norm(a, axis=0) > 0, np.linalg.norm(c, axis=0) > 0
    return a[:, used], x[:, used], y[:, seen], c[:, seen]


def explicit(network: ImplicitNetwork, layer: int, which: str, seed: int, noise) -> np.ndarray:
    """The matrix W, shape (D, m), with the entries that no product has seen from `noise`."""
    a, x, y, c = bases(network, layer, which, seed)
    rest = noise(len(a), len(c))
    rest = rest - a @ (a.T @ rest)
    rest = rest - (rest @ c) @ c.T
    return a @ x.T + y @ c.T - a @ (a.T @ y) @ c.T + rest

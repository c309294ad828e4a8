"""Implicit networks and the weights that they stand for, made explicit.

An implicit network has drawn of a block matrix W what its products needed: ``X = W^T A`` and
``Y = W C``. Any ``W = A X^T + Y C^T - A (A^T Y) C^T + (1 - A A^T) G (1 - C C^T)`` has these
products, whatever G; with a Gaussian G it is the matrix of the law.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

import reference
from resnet_limits.networks.implicit import ImplicitNetwork, _Chunk


def bases(network: ImplicitNetwork, layer: int, branch: int, which: str, seed: int):
    """A, X, Y, C of one matrix, as columns; unit space unit by unit."""
    at = network.layers[layer][branch]
    matrix = getattr(at, which)
    chunk = _Chunk(at.unit, at.p, at.r, at.rows)
    t, v = (chunk.p, chunk.dp) if which == "incoming" else (chunk.r, chunk.g)
    t, v = (
        x[seed].unflatten(1, (-1, chunk.units)).mT.flatten(1).double().numpy().T for x in (t, v)
    )
    z = np.concatenate([t, v], axis=1)
    a = matrix.left[seed, : matrix.lefts].double().numpy().T
    y = matrix.image[seed, : matrix.rights].double().numpy().T
    x = z @ matrix.xi[seed, :, : matrix.lefts]
    c = v @ matrix.tau[seed, :, : matrix.rights]
    # A seed may have fewer directions than the batch; its columns are zero then.
    used, seen = np.linalg.norm(a, axis=0) > 0, np.linalg.norm(c, axis=0) > 0
    return a[:, used], x[:, used], y[:, seen], c[:, seen]


def explicit(network: ImplicitNetwork, layer: int, branch: int, which: str, seed: int, noise):
    """The matrix W, shape (D, m), with the entries that no product has seen from `noise`."""
    a, x, y, c = bases(network, layer, branch, which, seed)
    rest = noise(len(a), len(c))
    rest = rest - a @ (a.T @ rest)
    rest = rest - (rest @ c) @ c.T
    return a @ x.T + y @ c.T - a @ (a.T @ y) @ c.T + rest


class Trajectory(NamedTuple):
    network: ImplicitNetwork
    output: np.ndarray
    states: list
    cotangents: list

    def of_seed(self, index):
        """Outputs, states and cotangents of one seed, by name."""
        found = {"output": self.output[:, index]}
        for name in ("states", "cotangents"):
            for branch, x in enumerate(getattr(self, name)):
                found[f"{name} {branch}"] = x[:, :, index]
        return found


def trajectory(dynamics, shape, seeds, dtype=torch.float64):
    """Train with the implicit engine; return the network, the outputs and the states of every step.

    Outputs are (K, S, rows, d_out), states and cotangents lists, one of (K, layers, S, rows, D) for
    each branch.
    """
    rows = np.stack([embedding_rows(dynamics, shape, seed) for seed in seeds])
    network = ImplicitNetwork(dynamics, shape, seeds, rows, 0, dtype=dtype)
    output, states, cotangents = [], [], []
    for step in range(dynamics.steps):
        f = network.forward_pass()
        cotangent = dynamics.cotangent(f, network.targets, step)
        network.backward_pass(cotangent, update=step + 1 < dynamics.steps)
        output.append(f.clone())
        states.append([h.clone() for h in network.states])
        cotangents.append([b.clone() for b in network.cotangents])

    def joined(steps):
        return torch.stack(steps).double().numpy()

    by_branch = [[joined(x) for x in zip(*kind, strict=True)] for kind in (states, cotangents)]
    return Trajectory(network, joined(output), *by_branch)


def embedding_rows(dynamics, shape, seed):
    size = dynamics.inputs.shape[1] + dynamics.targets.shape[1]
    return np.random.default_rng(seed).standard_normal((shape.embed_dim, size))


def replay(network, seed, index, twin=None):
    """Train explicit weights that have the products which the implicit network has drawn.

    Gives outputs, states and cotangents by name, as :meth:`Trajectory.of_seed`.
    """
    dynamics, shape = network.dynamics, network.shape
    rng = np.random.default_rng(99)
    root = np.sqrt(shape.embed_dim)

    def weights(which, std):
        return [
            [
                explicit(
                    network,
                    layer,
                    number,
                    which,
                    index,
                    lambda d, m, b=branch: rng.standard_normal((d, m)) * root * getattr(b, std),
                )
                for layer in range(shape.depth)
            ]
            for number, branch in enumerate(dynamics.layer)
        ]

    ins, outs = weights("incoming", "input_std"), weights("outgoing", "output_std")
    rows = embedding_rows(dynamics, shape, seed)
    plain = reference.train(dynamics, shape, rows, ins, outs, twin=twin)
    found = {"output": plain.output}
    for name in ("states", "cotangents"):
        for branch, x in enumerate(getattr(plain, name)):
            found[f"{name} {branch}"] = x
    return found


def disagreement(found, wanted):
    """The largest difference of any kind of state, as a share of the largest number of that."""
    assert found.keys() == wanted.keys()
    return max(np.abs(found[n] - wanted[n]).max() / np.abs(wanted[n]).max() for n in wanted)

"""The dense engine: networks whose block weights are held in memory.

Explicit forward and backward passes over the layers (theory.md, "The finite network"), all seeds of
a shape side by side. The weights are read once in the forward pass; the backward pass reads them
again and updates each layer while it is still in the cache. No autograd graph is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from resnet_limits import randomness
from resnet_limits.config import Shape
from resnet_limits.dynamics import Dynamics

# Below this many weights in one matrix, all seeds together in one batched product are faster than
# the kernels one by one. A constant of the shape, so that every machine decides alike.
_STREAMED_FROM = 300 * 300


@dataclass(frozen=True)
class _Arrays:
    """What one layer works on; all but the weights are places in the network's own arrays.

    Weights are ``(S, m, D)``, states ``(S, rows, D)`` and coefficients ``(S, rows, m)``, with m the
    number of units times their in- or out-vectors; tensors, or for one seed at a time, without S,
    numpy's views of them.
    """

    incoming: Any
    outgoing: Any
    h: Any
    next_h: Any
    p: Any
    g: Any
    r: Any
    dp: Any
    b: Any
    next_b: Any


class _Layer(Protocol):
    """The four products of a layer with its weights."""

    def read(self, scale: float) -> None:
        """``p = scale * I^T h``."""

    def write(self, gain: float) -> None:
        """``next_h = h + gain * O g``."""

    def read_back(self, scale: float, step: float | None) -> None:
        """``r = scale * O^T next_b``; then, with a step, ``O += step * next_b g^T``."""

    def write_back(self, gain: float, step: float | None) -> None:
        """``b = next_b + gain * I dp``; then, with a step, ``I += step * h dp^T``."""


class _BatchedLayer:
    """The products as matrix products, all seeds in one batch."""

    def __init__(self, arrays: _Arrays) -> None:
        self.at = arrays

    def read(self, scale: float) -> None:
        at = self.at
        torch.bmm(at.h, at.incoming.transpose(1, 2), out=at.p)
        at.p.mul_(scale)

    def write(self, gain: float) -> None:
        at = self.at
        torch.baddbmm(at.h, at.g, at.outgoing, alpha=gain, out=at.next_h)

    def read_back(self, scale: float, step: float | None) -> None:
        at = self.at
        torch.bmm(at.next_b, at.outgoing.transpose(1, 2), out=at.r)
        at.r.mul_(scale)
        if step is not None:
            at.outgoing.baddbmm_(at.g.transpose(1, 2), at.next_b, alpha=step)

    def write_back(self, gain: float, step: float | None) -> None:
        at = self.at
        torch.baddbmm(at.next_b, at.dp, at.incoming, alpha=gain, out=at.b)
        if step is not None:
            at.incoming.baddbmm_(at.dp.transpose(1, 2), at.h, alpha=step)


class _StreamedLayer:
    """The products on the CPU, seed by seed, each reading the weights once."""

    def __init__(self, arrays: _Arrays, kernels: ModuleType, partial: np.ndarray) -> None:
        self.kernels = kernels
        self.partial = partial
        self.dtype = partial.dtype.type
        names = [field.name for field in fields(arrays)]
        self.seeds = [
            _Arrays(**{name: getattr(arrays, name)[seed].numpy() for name in names})
            for seed in range(len(arrays.h))
        ]

    @classmethod
    def of_network(cls, arrays: Sequence[_Arrays]) -> list[_StreamedLayer]:
        """Make all layers of a network, with one scratch array that stays in the cache."""
        threads = torch.get_num_threads()
        # Compiled code and its loading are for large shapes only.
        from resnet_limits.networks import kernels

        kernels.use_threads(threads)
        h = arrays[0].h
        partial = np.empty((kernels.PARTS, *h.shape[1:]), dtype=h.numpy().dtype)
        return [cls(layer, kernels, partial) for layer in arrays]

    def read(self, scale: float) -> None:
        for at in self.seeds:
            self.kernels.project(at.incoming, at.h, self.dtype(scale), at.p)

    def write(self, gain: float) -> None:
        for at in self.seeds:
            self.kernels.expand(at.outgoing, at.g, at.h, self.dtype(gain), self.partial, at.next_h)

    def read_back(self, scale: float, step: float | None) -> None:
        for at in self.seeds:
            arguments = (at.outgoing, at.next_b, self.dtype(scale), at.r)
            if step is None:
                self.kernels.project(*arguments)
            else:
                self.kernels.project_update(*arguments, at.g, self.dtype(step))

    def write_back(self, gain: float, step: float | None) -> None:
        for at in self.seeds:
            arguments = (at.incoming, at.dp, at.next_b, self.dtype(gain), self.partial, at.b)
            if step is None:
                self.kernels.expand(*arguments)
            else:
                self.kernels.expand_update(*arguments, at.h, self.dtype(step))


class DenseNetwork:
    """A batch of residual networks of one shape, one for each seed.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    shape : Shape
        Depth L, width M, embedding dimension D.
    seeds : sequence of int
        Seeds of the block weights, S of them.
    embedding : ndarray, shape (S, D, r)
        Embedding rows ``[W_e Q, W_u]`` of every seed.
    root_seed : int
        Root of the random streams.
    dtype, device : torch dtype and device
        Arithmetic; draws are made in float64 on the CPU whatever these are.

    Attributes
    ----------
    hidden : Tensor, shape (L + 1, S, rows, D)
        ``h^0 .. h^L`` of the last forward pass.
    backward : Tensor, shape (L + 1, S, rows, D)
        ``b^0 .. b^L`` of the last backward pass.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        shape: Shape,
        seeds: Sequence[int],
        embedding: np.ndarray,
        root_seed: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dynamics = dynamics
        self.shape = shape
        self.unit = dynamics.unit
        rows, r_in = dynamics.inputs.shape
        depth, width, embed_dim = shape
        a, c, batch = self.unit.in_vectors, self.unit.out_vectors, len(seeds)

        def put(array: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

        def room(*size: int) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self.embedding = put(embedding[:, :, :r_in])
        self.unembedding = put(embedding[:, :, r_in:])
        self.inputs, self.targets = put(dynamics.inputs), put(dynamics.targets)
        std = float(np.sqrt(embed_dim))
        self.incoming = _block_weights(
            "block_in", root_seed, seeds, shape, a, std * dynamics.input_std, dtype
        ).to(device)
        self.outgoing = _block_weights(
            "block_out", root_seed, seeds, shape, c, std * dynamics.output_std, dtype
        ).to(device)
        self.hidden = room(depth + 1, batch, rows, embed_dim)
        self.backward = room(depth + 1, batch, rows, embed_dim)
        p, g = room(depth, batch, rows, width * a), room(depth, batch, rows, width * c)
        r, dp = room(batch, rows, width * c), room(batch, rows, width * a)
        streamed = self.incoming.device.type == "cpu" and width * embed_dim >= _STREAMED_FROM
        arrays = [
            _Arrays(
                incoming=self.incoming[layer],
                outgoing=self.outgoing[layer],
                h=self.hidden[layer],
                next_h=self.hidden[layer + 1],
                p=p[layer],
                g=g[layer],
                r=r,
                dp=dp,
                b=self.backward[layer],
                next_b=self.backward[layer + 1],
            )
            for layer in range(depth)
        ]
        self.layers: Sequence[_Layer] = (
            _StreamedLayer.of_network(arrays) if streamed else [_BatchedLayer(at) for at in arrays]
        )
        # The same arrays as the unit wants them, (S, M, vectors, rows).
        self.p = [self._by_unit(layer, a) for layer in p]
        self.g = [self._by_unit(layer, c) for layer in g]
        self.r, self.dp = self._by_unit(r, c), self._by_unit(dp, a)

    def _by_unit(self, states: Tensor, vectors: int) -> Tensor:
        return states.view(*states.shape[:2], self.shape.width, vectors).permute(0, 2, 3, 1)

    def forward_pass(self) -> Tensor:
        """Compute all hidden states; return the outputs, shape (S, rows, d_out)."""
        depth, width, embed_dim = self.shape
        gain = self.dynamics.residual_scale / (depth * width)
        self.hidden[0] = self.inputs @ self.embedding.transpose(1, 2)
        for layer, p, g in zip(self.layers, self.p, self.g, strict=True):
            layer.read(1.0 / embed_dim)
            g.copy_(self.unit.forward(p))
            layer.write(gain)
        return (self.hidden[depth] @ self.unembedding) / embed_dim

    def backward_pass(self, gradient: Tensor, *, update: bool) -> None:
        """Compute all backward states and, layer by layer, take the gradient step.

        Parameters
        ----------
        gradient : Tensor, shape (S, rows, d_out)
            Gradient of each row's loss with respect to its output.
        update : bool
            Whether to update the weights.
        """
        dynamics = self.dynamics
        depth, width, embed_dim = self.shape
        gain = dynamics.residual_scale / (depth * width)
        step = -1.0 / (dynamics.residual_scale * gradient.shape[1])
        step_in = step * dynamics.rate_in if update else None
        step_out = step * dynamics.rate_out if update else None
        torch.bmm(gradient, self.unembedding.transpose(1, 2), out=self.backward[depth])
        for layer, p, g in zip(self.layers[::-1], self.p[::-1], self.g[::-1], strict=True):
            layer.read_back(1.0 / embed_dim, step_out)
            self.dp.copy_(self.unit.backward(p, g, self.r))
            layer.write_back(gain, step_in)
        if update and dynamics.rate_embedding:
            scale = step * dynamics.rate_embedding
            self.embedding += scale * (self.backward[0].transpose(1, 2) @ self.inputs)
            self.unembedding += scale * (self.hidden[depth].transpose(1, 2) @ gradient)


def _block_weights(
    role: str,
    root_seed: int,
    seeds: Sequence[int],
    shape: Shape,
    vectors: int,
    std: float,
    dtype: torch.dtype,
) -> Tensor:
    """Draw weights (L, S, M x vectors, D), one stream for each seed and layer."""
    depth, width, embed_dim = shape
    weights = torch.empty((depth, len(seeds), width * vectors, embed_dim), dtype=dtype)

    def draw(place: tuple[int, int]) -> None:
        layer, index = place
        rng = randomness.generator(root_seed, role, seeds[index], *shape, layer)
        normal = rng.standard_normal((width * vectors, embed_dim))
        normal *= std
        weights[layer, index] = torch.from_numpy(normal)

    places = [(layer, index) for layer in range(depth) for index in range(len(seeds))]
    # The generators release the interpreter's lock while they fill an array.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        list(pool.map(draw, places))
    return weights


def memory_bytes(dynamics: Dynamics, shape: Shape, dtype: torch.dtype) -> int:
    """Bytes that one network (one seed) takes while it is trained: mostly its block weights."""
    vectors = dynamics.unit.in_vectors + dynamics.unit.out_vectors
    depth, width, embed_dim = shape
    rows = len(dynamics.inputs)
    states = rows * (2 * (depth + 1) * embed_dim + depth * vectors * width)
    return (vectors * shape.parameters + states) * dtype.itemsize

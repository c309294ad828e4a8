"""The dense engine: networks whose block weights are held in memory.

Explicit forward and backward passes over the layers (theory.md, "The finite network"), all seeds of
a shape side by side. The weights are read once in the forward pass; the backward pass reads them
again and updates each layer while it is still in the cache. No autograd graph is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from resnet_limits import randomness
from resnet_limits.config import Shape
from resnet_limits.dynamics import Dynamics

# Below this many weights in one matrix, all seeds together in one batched product are faster than
# the kernels one by one. A constant of the shape, so that every machine decides alike.
_STREAMED_FROM = 300 * 300


class _BatchedProducts:
    """Products with one layer's weights, all seeds in one batched matrix product.

    Weights are ``(S, m, D)``, states ``(S, rows, D)`` and coefficients ``(S, rows, m)``.
    """

    def project(self, weights: Tensor, states: Tensor, out: Tensor) -> None:
        """``out[n, m] = sum_d weights[m, d] states[n, d]``."""
        torch.bmm(states, weights.transpose(1, 2), out=out)

    def expand(self, weights: Tensor, coefficients: Tensor) -> Tensor:
        """``sum_m coefficients[n, m] weights[m, d]``."""
        return torch.bmm(coefficients, weights)

    def project_update(
        self, weights: Tensor, states: Tensor, out: Tensor, coefficients: Tensor, scale: float
    ) -> None:
        """``project``, then ``weights += scale * coefficients^T states``."""
        self.project(weights, states, out)
        weights.baddbmm_(coefficients.transpose(1, 2), states, alpha=scale)

    def expand_update(
        self, weights: Tensor, coefficients: Tensor, states: Tensor, scale: float
    ) -> Tensor:
        """``expand``, then ``weights += scale * coefficients^T states``."""
        total = self.expand(weights, coefficients)
        weights.baddbmm_(coefficients.transpose(1, 2), states, alpha=scale)
        return total


class _StreamedProducts:
    """The same products on the CPU, seed by seed, each reading the weights once."""

    def __init__(self) -> None:
        # Compiled code and its loading are for large shapes only.
        from resnet_limits.networks import kernels

        self.kernels = kernels
        kernels.use_threads(torch.get_num_threads())

    @staticmethod
    def _add_up(partial: np.ndarray, total: np.ndarray) -> None:
        # A diverged network's infinities are found, and named, after the pass.
        with np.errstate(invalid="ignore", over="ignore"):
            partial.sum(axis=0, out=total)

    def _partial(self, states: Tensor) -> np.ndarray:
        _, rows, embed_dim = states.shape
        return np.empty((self.kernels.PARTS, rows, embed_dim), dtype=states.numpy().dtype)

    def project(self, weights: Tensor, states: Tensor, out: Tensor) -> None:
        for w, h, p in zip(weights.numpy(), states.numpy(), out.numpy(), strict=True):
            self.kernels.project(w, h, p)

    def expand(self, weights: Tensor, coefficients: Tensor) -> Tensor:
        total = coefficients.new_empty((*coefficients.shape[:2], weights.shape[2]))
        partial = self._partial(total)
        for w, c, t in zip(weights.numpy(), coefficients.numpy(), total.numpy(), strict=True):
            self.kernels.expand(w, c, partial)
            self._add_up(partial, t)
        return total

    def project_update(
        self, weights: Tensor, states: Tensor, out: Tensor, coefficients: Tensor, scale: float
    ) -> None:
        arrays = (weights, states, out, coefficients)
        for w, h, p, c in zip(*(array.numpy() for array in arrays), strict=True):
            self.kernels.project_update(w, h, p, c, w.dtype.type(scale))

    def expand_update(
        self, weights: Tensor, coefficients: Tensor, states: Tensor, scale: float
    ) -> Tensor:
        total = torch.empty_like(states)
        partial = self._partial(states)
        arrays = (weights, coefficients, states, total)
        for w, c, h, t in zip(*(array.numpy() for array in arrays), strict=True):
            self.kernels.expand_update(w, c, partial, h, w.dtype.type(scale))
            self._add_up(partial, t)
        return total


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
        self.preactivation = room(depth, batch, rows, width * a)
        self.activation = room(depth, batch, rows, width * c)
        self.cotangent = room(batch, rows, width * c)
        streamed = self.incoming.device.type == "cpu" and width * embed_dim >= _STREAMED_FROM
        self.products = _StreamedProducts() if streamed else _BatchedProducts()

    def _by_unit(self, states: Tensor, vectors: int) -> Tensor:
        """View ``(S, rows, M x vectors)`` as the unit wants it, ``(S, M, vectors, rows)``."""
        return states.view(*states.shape[:2], self.shape.width, vectors).permute(0, 2, 3, 1)

    @staticmethod
    def _by_row(states: Tensor) -> Tensor:
        """Bring ``(S, M, vectors, rows)`` back to ``(S, rows, M x vectors)``."""
        return states.permute(0, 3, 1, 2).flatten(2, 3).contiguous()

    def forward_pass(self) -> Tensor:
        """Compute all hidden states; return the outputs, shape (S, rows, d_out)."""
        depth, width, embed_dim = self.shape
        gain = self.dynamics.residual_scale / (depth * width)
        self.hidden[0] = self.inputs @ self.embedding.transpose(1, 2)
        for layer in range(depth):
            h, p = self.hidden[layer], self.preactivation[layer]
            self.products.project(self.incoming[layer], h, p)
            p /= embed_dim
            g = self.unit.forward(self._by_unit(p, self.unit.in_vectors))
            self.activation[layer] = self._by_row(g)
            change = self.products.expand(self.outgoing[layer], self.activation[layer])
            torch.add(h, change, alpha=gain, out=self.hidden[layer + 1])
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
        dynamics, products, unit = self.dynamics, self.products, self.unit
        depth, width, embed_dim = self.shape
        gain = dynamics.residual_scale / (depth * width)
        step = -1.0 / (dynamics.residual_scale * gradient.shape[1])
        torch.bmm(gradient, self.unembedding.transpose(1, 2), out=self.backward[depth])
        r = self.cotangent
        for layer in reversed(range(depth)):
            b, h = self.backward[layer + 1], self.hidden[layer]
            p, g = self.preactivation[layer], self.activation[layer]
            incoming, outgoing = self.incoming[layer], self.outgoing[layer]
            if update:
                products.project_update(outgoing, b, r, g, step * dynamics.rate_out)
            else:
                products.project(outgoing, b, r)
            r /= embed_dim
            cotangents = self._by_row(
                unit.backward(
                    self._by_unit(p, unit.in_vectors),
                    self._by_unit(g, unit.out_vectors),
                    self._by_unit(r, unit.out_vectors),
                )
            )
            if update:
                change = products.expand_update(incoming, cotangents, h, step * dynamics.rate_in)
            else:
                change = products.expand(incoming, cotangents)
            torch.add(b, change, alpha=gain, out=self.backward[layer])
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

"""What both engines are: a batch of networks of one shape, with its states and embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.dynamics import Dynamics, Embeddings
from resnet_limits.kinds import Shape

NUMPY = {torch.float64: np.float64, torch.float32: np.float32}
"""numpy's names of torch's types."""


class Network(ABC):
    """A batch of residual networks of one shape, one for each seed.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    shape : Shape
        Depth L, width M, embedding dimension D.
    embedding : ndarray, shape (S, D, r)
        Embedding rows ``[W_e Q, W_u]`` of every seed.
    dtype, device : torch dtype and device
        Of the states and embeddings.

    Attributes
    ----------
    embedding, unembedding : Tensor, shape (S, D, r_in) and (S, D, d_out)
        ``W_e Q`` and W_u.
    inputs, targets : Tensor, shape (rows, r_in) and (rows, d_out)
        The data.
    states : list of Tensor
        What each branch of a layer reads, of the last forward pass: ``states[0]``, shape (L + 1, S,
        rows, D), are ``h^0 .. h^L``, and ``states[b]``, shape (L, S, rows, D), those between
        branches b - 1 and b.
    cotangents : list of Tensor
        The same of the last backward pass: ``b^0 .. b^L``, then those before branches 1, 2, ...
    gains : tuple of float
        ``alpha_b / (L M_b)`` of every branch.
    step : int
        Number of the state, from 0.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        shape: Shape,
        embedding: NDArray[np.float64],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.dynamics, self.shape = dynamics, shape
        rows, r_in = dynamics.inputs.shape
        depth, width, embed_dim = shape

        def put(array: NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

        self.embedding = put(embedding[:, :, :r_in])
        self.unembedding = put(embedding[:, :, r_in:])
        self.inputs, self.targets = put(dynamics.inputs), put(dynamics.targets)
        layers = [depth + 1] + [depth] * (len(dynamics.layer) - 1)
        self.states, self.cotangents = (
            [zeros((n, len(embedding), rows, embed_dim), dtype).to(device) for n in layers]
            for _ in range(2)
        )
        self.gains = tuple(
            branch.scale / (depth * branch.width(width)) for branch in dynamics.layer
        )
        self.step = 0
        self.embeddings = Embeddings(dynamics, self.embedding, self.unembedding, 1.0 / embed_dim)

    @property
    def hidden(self) -> Tensor:
        """``h^0 .. h^L`` of the last forward pass, shape (L + 1, S, rows, D)."""
        return self.states[0]

    @property
    def backward(self) -> Tensor:
        """``b^0 .. b^L`` of the last backward pass, shape (L + 1, S, rows, D)."""
        return self.cotangents[0]

    def before(self, branch: int) -> Tensor:
        """Give the states that a branch of every layer reads, shape (L, S, rows, D)."""
        return self.states[branch][: self.shape.depth]

    def after(self, branch: int) -> Tensor:
        """Give the states that a branch of every layer has written, shape (L, S, rows, D)."""
        return _after(self.states, branch)

    def cotangent_before(self, branch: int) -> Tensor:
        """Give the cotangents of :meth:`before`."""
        return self.cotangents[branch][: self.shape.depth]

    def cotangent_after(self, branch: int) -> Tensor:
        """Give the cotangents of :meth:`after`."""
        return _after(self.cotangents, branch)

    @abstractmethod
    def forward_pass(self) -> Tensor:
        """Compute all states; return the outputs, shape (S, rows, d_out)."""

    @abstractmethod
    def backward_pass(self, cotangent: Tensor, *, update: bool) -> None:
        """Compute all cotangents; with `update`, take the training step to the next state.

        Parameters
        ----------
        cotangent : Tensor, shape (S, rows, d_out)
            Of the outputs at this state, as ``Dynamics.cotangent`` gives it.
        update : bool
            Whether to update the weights.
        """

    def _read_out(self) -> Tensor:
        """Give the outputs of the last layer's states, shape (S, rows, d_out)."""
        return self.embeddings.output(self.hidden[-1].mT)

    def _start_back(self, cotangent: Tensor) -> None:
        """Set ``b^L``."""
        self.backward[-1] = self.embeddings.pull_back(self.hidden[-1].mT, cotangent).mT

    def _learn_embedding(self, cotangent: Tensor) -> None:
        """Take the training step of the embeddings, those that are trained."""
        first, last = self.backward[0].mT, self.hidden[-1].mT
        self.embeddings.learn(self.step, first, last, cotangent)


def _after(states: list[Tensor], branch: int) -> Tensor:
    return states[branch + 1] if branch + 1 < len(states) else states[0][1:]


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros from numpy, which asks the system for large pages: they are read faster."""
    return torch.from_numpy(np.zeros(shape, dtype=NUMPY[dtype]))

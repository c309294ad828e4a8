"""What both engines are: a batch of networks of one shape, with its states and embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.dynamics import Dynamics
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
    hidden : Tensor, shape (L + 1, S, rows, D)
        ``h^0 .. h^L`` of the last forward pass.
    backward : Tensor, shape (L + 1, S, rows, D)
        ``b^0 .. b^L`` of the last backward pass.
    gain : float
        ``alpha / (L M)``.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        shape: Shape,
        embedding: NDArray[np.float64],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.dynamics, self.shape, self.unit = dynamics, shape, dynamics.layer[0].unit
        rows, r_in = dynamics.inputs.shape

        def put(array: NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

        self.embedding = put(embedding[:, :, :r_in])
        self.unembedding = put(embedding[:, :, r_in:])
        self.inputs, self.targets = put(dynamics.inputs), put(dynamics.targets)
        states = (shape.depth + 1, len(embedding), rows, shape.embed_dim)
        self.hidden, self.backward = (zeros(states, dtype).to(device) for _ in range(2))
        self.gain = dynamics.layer[0].scale / (shape.depth * shape.width)

    @abstractmethod
    def forward_pass(self) -> Tensor:
        """Compute all hidden states; return the outputs, shape (S, rows, d_out)."""

    @abstractmethod
    def backward_pass(self, gradient: Tensor, *, update: bool) -> None:
        """Compute all backward states and take the gradient step.

        Parameters
        ----------
        gradient : Tensor, shape (S, rows, d_out)
            Gradient of each row's loss with respect to its output.
        update : bool
            Whether to update the weights.
        """

    def _learn_embedding(self, gradient: Tensor) -> None:
        """Take the gradient step of the embeddings, if they are trained."""
        dynamics = self.dynamics
        if not dynamics.rate_embedding:
            return
        scale = -dynamics.rate_embedding / (dynamics.residual_scale * gradient.shape[1])
        self.embedding += scale * (self.backward[0].mT @ self.inputs)
        self.unembedding += scale * (self.hidden[-1].mT @ gradient)


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros from numpy, which asks the system for large pages: they are read faster."""
    return torch.from_numpy(np.zeros(shape, dtype=NUMPY[dtype]))

"""How much there is to compute: the few numbers that time and memory of a result depend on.

One description for whoever plans jobs, chooses an engine, admits a network or a limit to memory, or
tells how long the rest will take. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from resnet_limits.config import Experiment
from resnet_limits.kinds import Shape, branch_width

INFINITE = Shape(0, 0, 0)
"""The shape of a limit; a size that a limit does have stands in place of its 0."""


class MemoryRefusedError(RuntimeError):
    """A network or a limit does not fit in memory, and has not been started."""


class _Dynamics(Protocol):
    """What of ``dynamics.Dynamics`` counts."""

    @property
    def inputs(self) -> Any: ...
    @property
    def targets(self) -> Any: ...
    @property
    def layer(self) -> Any: ...
    @property
    def rule(self) -> Any: ...
    @property
    def steps(self) -> int: ...
    @property
    def initial_law(self) -> str: ...


@dataclass(frozen=True)
class Branch:
    """The units of one residual branch.

    Attributes
    ----------
    in_vectors, out_vectors : int
        a and c, of a unit.
    kept_vectors : int
        Numbers that a unit keeps for its backward pass beside g, in each row.
    ratio : float
        Units of the branch over the width M.
    normed : bool
        Whether the branch reads the residual stream through a norm.
    """

    in_vectors: int = 1
    out_vectors: int = 1
    kept_vectors: int = 0
    ratio: float = 1.0
    normed: bool = False

    def width(self, width: int) -> int:
        """Units of the branch, M_b, for the width M."""
        return branch_width(self.ratio, width)

    @property
    def vectors(self) -> int:
        """In- and out-vectors of a unit together."""
        return self.in_vectors + self.out_vectors


@dataclass(frozen=True)
class Work:
    """What the cost of a network or a limit depends on.

    Attributes
    ----------
    shape : Shape
        L, M, D; 0 for what is infinite.
    rows, steps, seeds : int
        Samples times tokens, K and S.
    branches : tuple of Branch
        The branches of a layer.
    itemsize : int
        Bytes of one number of the arithmetic.
    inputs, targets : int
        Independent inputs and targets; together the reduced dimension r.
    buffers : int
        Numbers that the training rule keeps beside each weight.
    additive : bool
        Whether the training rule only ever adds gradients to a weight.
    dense_only : bool
        Whether no engine but the dense one trains the networks.
    saved : int
        Bytes of the hidden and backward states of all seeds that are kept.
    """

    shape: Shape
    rows: int
    steps: int
    seeds: int
    branches: tuple[Branch, ...] = (Branch(),)
    itemsize: int = 8
    inputs: int = 0
    targets: int = 0
    saved: int = 0
    buffers: int = 0
    additive: bool = True
    dense_only: bool = False

    @property
    def vectors(self) -> int:
        """In- and out-vectors of a unit of each branch together."""
        return sum(branch.vectors for branch in self.branches)

    @property
    def directions(self) -> int:
        """Reduced dimension r."""
        return self.inputs + self.targets

    @classmethod
    def of(
        cls, dynamics: _Dynamics, shape: Shape, seeds: int, itemsize: int, saved: int = 0
    ) -> Work:
        """Work of so many seeds of a shape on a problem; arguments as the attributes."""
        rows, inputs = dynamics.inputs.shape
        branches = tuple(
            Branch(
                branch.unit.in_vectors,
                branch.unit.out_vectors,
                branch.unit.kept_vectors,
                branch.ratio,
                not branch.norm.is_identity,
            )
            for branch in dynamics.layer
        )
        return cls(
            shape,
            rows,
            dynamics.steps,
            seeds,
            branches,
            itemsize,
            inputs,
            dynamics.targets.shape[1],
            saved,
            dynamics.rule.buffers,
            dynamics.rule.is_additive(dynamics.steps),
            dynamics.initial_law != "gaussian",
        )


# Vectors of the units that are known without torch, from their sections and the number of tokens.
# Those of others are asked of ``units``; a test keeps them in step.
_VECTORS: dict[str, Callable[[Any, int], tuple[int, int, int]]] = {
    "perceptron": lambda _unit, _tokens: (1, 1, 0),
    "gated_perceptron": lambda _unit, _tokens: (2, 1, 1),
    "attention_head": lambda unit, tokens: (3 * unit.key_dim, unit.key_dim, tokens),
    "convolution": lambda unit, _tokens: (len(unit.offsets), 1, 1),
}


def branches_of(experiment: Experiment, tokens: int | None) -> tuple[Branch, ...]:
    """Tell the branches of a layer from the experiment alone.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    tokens : int or None
        Tokens of a sample, where the data have any.
    """
    found = []
    for branch in experiment.model.branches:
        unit = branch.unit
        if unit.kind in _VECTORS:
            vectors = _VECTORS[unit.kind](unit, tokens or 1)
        else:
            from resnet_limits.units import make_unit

            made = make_unit(**unit.model_dump(), tokens=tokens)
            vectors = (made.in_vectors, made.out_vectors, made.kept_vectors)
        found.append(Branch(*vectors, branch.width_ratio, branch.norm != "none"))
    return tuple(found)


def block_weights(shape: Shape, branches: Sequence[Branch]) -> int:
    """Count the weights of all residual branches of a network, ``L D sum_b (a_b + c_b) M_b``."""
    units = sum(branch.vectors * branch.width(shape.width) for branch in branches)
    return shape.depth * shape.embed_dim * units


def saved_bytes(
    shape: Shape, rows: int, steps: Sized, layers: Sized, seeds: int, itemsize: int
) -> int:
    """Bytes of the hidden and backward states that are kept of all networks of a shape.

    Parameters
    ----------
    shape : Shape
        L, M, D.
    rows : int
        Samples times tokens.
    steps, layers : sized
        Those that are kept.
    seeds : int
        Number of networks.
    itemsize : int
        Bytes of one number as it is stored.
    """
    return 2 * seeds * len(steps) * len(layers) * rows * shape.embed_dim * itemsize

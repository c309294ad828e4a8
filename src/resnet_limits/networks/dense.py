"""The dense engine: networks whose block weights are held in memory.

Explicit forward and backward passes over the layers and their branches (docs/concepts/scaling.md),
all seeds of a shape side by side. A pass reads each weight once. Training steps are taken in place,
or are kept as low-rank factors beside weights that nothing writes to. No autograd graph is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from resnet_limits import jit, randomness
from resnet_limits.dynamics import Dynamics
from resnet_limits.kinds import Shape
from resnet_limits.networks import cost
from resnet_limits.networks.base import NUMPY, Network, zeros
from resnet_limits.networks.products import (
    Arrays,
    Batched,
    Compiled,
    Matrix,
    Products,
    Scales,
    gradients,
)
from resnet_limits.rules import Table, move, table
from resnet_limits.work import Work


class _Branch:
    """One branch of all layers: its weights, what its units have seen, and its products.

    Parameters
    ----------
    network : DenseNetwork
        What it is part of.
    number : int
        Its place in a layer, from 0.
    seeds : sequence of int
        Seeds of the block weights.
    root_seed : int
        Root of the random streams.
    kept : int
        Training steps that there is room for as factors.
    batched : bool
        Whether to use batched matrix products.
    """

    def __init__(
        self,
        network: DenseNetwork,
        number: int,
        seeds: Sequence[int],
        root_seed: int,
        kept: int,
        batched: bool,
    ) -> None:
        dynamics, (depth, width, embed_dim) = network.dynamics, network.shape
        branch = dynamics.layer[number]
        self.rule, self.unit, self.norm = dynamics.rule, branch.unit, branch.norm
        self.number, self.steps, self.kept = number, dynamics.steps, kept
        self.rates = branch.rate_in, branch.rate_out
        a, c = self.unit.in_vectors, self.unit.out_vectors
        batch, rows, units = len(seeds), len(dynamics.inputs), branch.width(width)
        like = network.hidden
        number_of = NUMPY[like.dtype]

        def room(*size: int) -> Tensor:
            return zeros((depth, batch, *size), like.dtype).to(like.device)

        def weights(role: str, vectors: int, std: float) -> Tensor:
            return _block_weights(
                role,
                root_seed,
                seeds,
                network.shape,
                units * vectors,
                float(np.sqrt(embed_dim)) * std,
                like.dtype,
                number,
                dynamics.initial_law,
            ).to(like.device)

        h, b = network.before(number), network.cotangent_before(number)
        next_b, past = network.cotangent_after(number), kept * rows
        identity = self.norm.is_identity
        self.at = Arrays(
            incoming=weights("block_in", a, branch.input_std),
            outgoing=weights("block_out", c, branch.output_std),
            u=h if identity else room(rows, embed_dim),
            h=h,
            next_h=network.after(number),
            b=b,
            next_b=next_b,
            base_b=next_b if identity else b,
            p=room(rows, units * a),
            g=room(rows, units * c),
            r=room(rows, units * c),
            dp=room(rows, units * a),
            past_u=room(past, embed_dim),
            past_dp=room(past, units * a),
            past_b=room(past, embed_dim),
            past_g=room(past, units * c),
        )
        scales = Scales(number_of(1.0 / embed_dim), number_of(network.gains[number]))
        self.products: Products = (
            Batched(self.at, scales) if batched else Compiled(self.at, scales, self.unit)
        )
        # Units and products in one, where that is faster.
        one = self.products if isinstance(self.products, Compiled) else None
        self.passes = one if one is not None and one.passes is not None else None
        # What a unit keeps beside g, as the unit gives it; passes compute it again.
        self.beside = room(units, 0 if self.passes else self.unit.kept_vectors, rows)
        # The same arrays as the unit wants them, (S, M, vectors, rows), layer by layer.
        self.p, self.g, self.r, self.dp = (
            [layer.unflatten(2, (units, vectors)).permute(0, 2, 3, 1) for layer in array]
            for array, vectors in ((self.at.p, a), (self.at.g, c), (self.at.r, c), (self.at.dp, a))
        )
        # Steps that are not kept and do more than add are taken after the backward pass.
        self.moves = not kept and not self.rule.is_additive(self.steps)
        buffers = self.rule.buffers if self.moves else 0
        self.trained = [
            (rate, [array, *(torch.zeros_like(array) for _ in range(buffers if rate else 0))])
            for rate, array in zip(self.rates, (self.at.incoming, self.at.outgoing), strict=True)
        ]
        self.tables = [table(self.rule, rate, self.steps) for rate in self.rates] if kept else []
        # 1 / (alpha R) of every update.
        self.shares = [
            1.0 / (branch.scale * dynamics.batch_size(step)) for step in range(self.steps - 1)
        ]
        self.number_of, self.rows = number_of, rows

    def begin(self, step: int) -> None:
        """Set the state."""
        used = min(step, self.kept) * self.rows
        self.products.begin(used, *(self._matrix(side, step) for side in (0, 1)))

    def _matrix(self, side: int, step: int) -> Matrix:
        """Give what the weights of a side, 0 incoming and 1 outgoing, are at a state."""
        number = self.number_of
        if self.kept:
            initial, past = self._from_table(self.tables[side], step)
            return Matrix(number(initial), past, number(0))
        change = 0.0
        if not self.moves and step < len(self.shares):
            gain = self.rule.transition(step, self.rates[side]).gradient[0]
            change = self.shares[step] * gain if self.rates[side] else 0.0
        return Matrix(number(1), np.zeros(0, number), number(change))

    def _from_table(self, of: Table, step: int) -> tuple[float, np.ndarray]:
        factors = np.zeros(self.kept)
        count = min(step, self.kept)
        factors[:count] = -of.gradients[step, :count] * self.shares[:count]
        return of.initial[step], np.repeat(factors, self.rows).astype(self.number_of)

    def forward_all(self, layers: range) -> None:
        """Compute the states after the branch, which is the only one, in all layers."""
        if self.passes is not None and self.norm.is_identity:
            self.passes.forward(layers)
            return
        for layer in layers:
            self.forward(layer)

    def backward_all(self, layers: range, learn: bool) -> None:
        """Compute the cotangents before the branch, which is the only one, in all layers."""
        if self.passes is not None and self.norm.is_identity:
            self.passes.backward(layers, learn)
            return
        for layer in reversed(layers):
            self.backward(layer, learn)

    def forward(self, layer: int) -> None:
        """Compute the states after the branch."""
        at, c = self.at, self.unit.out_vectors
        if not self.norm.is_identity:
            at.u[layer] = self.norm.forward(at.h[layer], -1, 1.0 / at.h.shape[3])
        if self.passes is not None:
            self.passes.forward(range(layer, layer + 1))
            return
        self.products.read(layer)
        values = self.unit.forward(self.p[layer])
        if self.unit.kept_vectors:
            self.beside[layer] = values[..., c:, :]
            values = values[..., :c, :]
        self.g[layer].copy_(values)
        self.products.write(layer)

    def backward(self, layer: int, learn: bool) -> None:
        """Compute the cotangents before the branch."""
        at, values = self.at, self.g[layer]
        if self.passes is not None:
            self.passes.backward(range(layer, layer + 1), learn)
        else:
            self.products.read_back(layer, learn)
            if self.unit.kept_vectors:
                values = torch.cat([values, self.beside[layer]], dim=-2)
            self.dp[layer].copy_(self.unit.backward(self.p[layer], values, self.r[layer]))
            self.products.write_back(layer, learn)
        if not self.norm.is_identity:
            h, b = at.h[layer], at.b[layer]
            pulled = self.norm.pull_back(h, b, -1, 1.0 / h.shape[2])
            torch.add(at.next_b[layer], pulled, out=b)

    def learn(self, step: int) -> None:
        """Take the training step as far as the backward pass has not."""
        at = self.at
        if self.kept:
            rows = slice(step * self.rows, (step + 1) * self.rows)
            for past, new in (
                *((at.past_dp, at.dp), (at.past_u, at.u)),
                *((at.past_g, at.g), (at.past_b, at.next_b)),
            ):
                past[:, :, rows] = new
        elif self.moves:
            factors = (at.dp, at.u), (at.g, at.next_b)
            for (rate, parts), (coefficients, states) in zip(self.trained, factors, strict=True):
                if rate:
                    self._move(step, rate, parts, coefficients, states)
        else:
            self.products.learn()

    def _move(
        self, step: int, rate: float, parts: list[Tensor], coefficients: Tensor, states: Tensor
    ) -> None:
        """Take one matrix and its buffers of all layers through a step."""
        transition = self.rule.transition(step, rate)
        c, x, *parts = (array.flatten(0, 1) for array in (coefficients, states, *parts))
        for where, gradient in gradients(c, x, self.shares[step]):
            move(transition, [part[where] for part in parts], gradient)


class DenseNetwork(Network):
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
    kept : int, optional
        Training steps that there is room for as factors; 0: each is taken in place. By default
        :func:`~resnet_limits.networks.cost.kept_steps`. For the CPU's kernels only.
    batched : bool, optional
        Batched matrix products in place of the CPU's kernels; always on a GPU, and where numba has
        been told not to compile.
    graphs : bool
        Whether a GPU's passes are recorded once and replayed. Turn off to debug.

    Attributes
    ----------
    kept : int
        As given, or the default.
    branches : list
        The branches of a layer.
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
        kept: int | None = None,
        batched: bool | None = None,
        graphs: bool = True,
    ) -> None:
        super().__init__(dynamics, shape, embedding, dtype, device)
        on_cpu = torch.device(device).type == "cpu"
        if batched is None:
            batched = not on_cpu or not jit.enabled()
        if batched:
            kept = 0
        elif kept is None:
            kept = cost.kept_steps(Work.of(dynamics, shape, len(seeds), dtype.itemsize))
        self.kept = kept
        self.branches = [
            _Branch(self, number, seeds, root_seed, kept, batched)
            for number in range(len(dynamics.layer))
        ]
        size = (len(seeds), len(dynamics.inputs), self.targets.shape[1])
        self._cotangent = zeros(size, dtype).to(device)
        self._output = torch.empty_like(self._cotangent)
        self._run = _run if on_cpu or not graphs else _Recordings().run

    def forward_pass(self) -> Tensor:
        """Compute all states; return the outputs, shape (S, rows, d_out)."""
        for branch in self.branches:
            branch.begin(self.step)
        self._run(self._all_forward)
        return self._output.clone()

    def backward_pass(self, cotangent: Tensor, *, update: bool) -> None:
        """Compute all cotangents; with `update`, take the training step to the next state.

        Raises
        ------
        ValueError
            If steps are kept as factors and there is no room for another.
        """
        if update and self.kept and self.step >= self.kept:
            raise ValueError("no room for another gradient step as factors")
        self._cotangent.copy_(cotangent)
        self._in_place = update and not self.kept
        self._run(self._all_backward)
        if not update:
            return
        for branch in self.branches:
            branch.learn(self.step)
        self._learn_embedding(self._cotangent)
        self.step += 1

    def _all_forward(self) -> None:
        torch.matmul(self.inputs, self.embedding.mT, out=self.hidden[0])
        layers = range(self.shape.depth)
        if len(self.branches) == 1:
            self.branches[0].forward_all(layers)
            layers = range(0)
        for layer in layers:
            for branch in self.branches:
                branch.forward(layer)
        self._output.copy_(self._read_out())

    def _all_backward(self) -> None:
        self._start_back(self._cotangent)
        layers = range(self.shape.depth)
        if len(self.branches) == 1:
            self.branches[0].backward_all(layers, self._in_place)
            layers = range(0)
        for layer in reversed(layers):
            for branch in reversed(self.branches):
                branch.backward(layer, self._in_place)


def _run(work: Callable[[], None]) -> None:
    work()


class _Recordings:
    """Work on a GPU that is recorded once and then replayed: one launch, not thousands.

    A recording is of work on fixed arrays, which reads nothing back and gives the same when it is
    done twice: libraries make what they need on their first use, which a recording must not
    contain, so that the work is done once before it is recorded.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def run(self, work: Callable[[], None]) -> None:
        """Do the work; record it first if its name is new."""
        # By name: with the work itself, network and recordings would keep each other in memory.
        name = work.__name__
        if name not in self.graphs:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                work()
            torch.cuda.current_stream().wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                work()
            self.graphs[name] = graph
        self.graphs[name].replay()


def _block_weights(
    role: str,
    root_seed: int,
    seeds: Sequence[int],
    shape: Shape,
    rows: int,
    std: float,
    dtype: torch.dtype,
    branch: int = 0,
    law: str = "gaussian",
) -> Tensor:
    """Draw weights (L, S, rows, D), one stream for each seed, layer and branch."""
    depth, _, embed_dim = shape
    weights = torch.from_numpy(np.empty((depth, len(seeds), rows, embed_dim), dtype=NUMPY[dtype]))
    # The first branch has no number in the names of its streams.
    later = (branch,) if branch else ()

    def draw(place: tuple[int, int]) -> None:
        layer, index = place
        rng = randomness.generator(root_seed, role, seeds[index], *shape, layer, *later)
        into = weights[layer, index].view(-1)
        # A stream gives the same numbers in pieces, which take little room beside the weights.
        for piece in into.split(cost.PIECE):
            numbers = randomness.draw(rng, law, (len(piece),))
            numbers *= std
            piece.copy_(torch.from_numpy(numbers))

    places = [(layer, index) for layer in range(depth) for index in range(len(seeds))]
    # The generators release the interpreter's lock while they fill an array.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        list(pool.map(draw, places))
    return weights

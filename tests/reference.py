"""The network of docs/concepts/scaling.md written naively and trained with gradients by autograd.

Nothing here uses the package's norms, rules, batches or backward passes: it is what they are
compared with. A `twin` is the same network with one mistake, which a comparison must tell apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

TWINS = (
    "branches in another order",
    "branches in parallel",
    "cotangent from before the branch",
    "rows of all samples",
    "coupled decay",
)


class Reference(NamedTuple):
    """One seed's training.

    Attributes
    ----------
    output : ndarray, shape (K, rows, d_out)
    loss : ndarray, shape (K,)
    states, cotangents : list of ndarray
        The first of shape (K, L + 1, rows, D), ``h^l`` and ``b^l``, then for each further branch
        of shape (K, L, rows, D) what it reads and that state's cotangent.
    gradients : list of list of Tensor
        At each state G of what is trained: for each branch and layer of I (D, M_b a), then of O
        (D, M_b c), then of W_e Q and W_u.
    weights : list of list of Tensor
        At each state the weights themselves, in that order.
    """

    output: np.ndarray
    loss: np.ndarray
    states: list[np.ndarray]
    cotangents: list[np.ndarray]
    gradients: list[list[torch.Tensor]]
    weights: list[list[torch.Tensor]]

    @property
    def hidden(self):
        return self.states[0]

    @property
    def backward(self):
        return self.cotangents[0]


def _normed(norm, h):
    """The norm of each row of (D, rows)."""
    kind = type(norm).__name__
    if kind == "Identity":
        return h
    assert kind == "RMS"
    return h / torch.sqrt((h**2).mean(0) + 1e-6)


def _losses(kind, f, y):
    if kind == "cross_entropy":
        return -(y * torch.log_softmax(f, 1)).sum(1)
    each = 0.5 * ((f - y) ** 2).sum(1)
    return each / y.shape[1] if kind == "mean_squared_error" else each


def _shares(dynamics, batch):
    """What each row counts in the loss over a batch; shape (rows,), sum 1."""
    rows = len(dynamics.inputs)
    weights = np.ones(rows) if dynamics.weights is None else dynamics.weights
    inside = np.isin(np.arange(rows), batch)
    return torch.tensor(inside * weights / (inside * weights).sum())


def _steps(rule, rate, weight, velocity, gradient, step, coupled):
    """The weight and its velocity after a step, as written in the theory."""
    eta = rate * (rule.factors[step] if step < len(rule.factors) else 1.0)
    if coupled:
        gradient = gradient + rule.decay * weight
    velocity = rule.momentum * velocity + gradient
    move = gradient + rule.momentum * velocity if rule.nesterov else velocity
    kept = 1.0 if coupled else 1.0 - eta * rule.decay
    return kept * weight - eta * move, velocity


def train(dynamics, shape, rows, ins, outs, twin=None):
    """Train one network from given weights.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem, with the rule ``GradientDescent``.
    shape : Shape
        L, M, D.
    rows : ndarray, shape (D, r)
        ``[W_e Q, W_u]``.
    ins, outs : list of list of ndarray
        For each branch and layer a matrix (D, M_b a) or (D, M_b c).
    twin : str, optional
        One of :data:`TWINS`: the mistake to make.
    """
    assert twin is None or twin in TWINS
    L, M, D = shape
    layer, count = dynamics.layer, dynamics.inputs.shape[1]
    B = len(layer)
    widths = [max(1, round(branch.ratio * M)) for branch in layer]
    x, y = torch.tensor(dynamics.inputs).T, torch.tensor(dynamics.targets)
    table = torch.tensor(rows)
    weights = [torch.tensor(w) for each in (ins, outs) for branch in each for w in branch]
    weights += [table[:, :count].clone(), table[:, count:].clone()]
    # In raw gradients: L M_b D / alpha_b^2 of I and O, D / alpha of the embeddings.
    scales = [
        L * widths[b] * D / layer[b].scale ** 2
        for _ in range(2)
        for b in range(B)
        for _ in range(L)
    ]
    scales += [D / dynamics.residual_scale] * 2
    rates = [branch.rate_in for branch in layer for _ in range(L)]
    rates += [branch.rate_out for branch in layer for _ in range(L)]
    rates += [dynamics.rate_embedding, dynamics.rate_unembedding]
    velocities = [torch.zeros_like(w) for w in weights]
    order = list(range(B))[::-1] if twin == "branches in another order" else list(range(B))
    found = Reference([], [], [[] for _ in range(B)], [[] for _ in range(B)], [], [])
    for step in range(dynamics.steps):
        leaves = [w.detach().requires_grad_(True) for w in weights]
        embedding, unembedding = leaves[-2:]
        states, written = [[] for _ in range(B)], {}
        h = embedding @ x
        for number in range(L):
            start = h
            for place, b in enumerate(order):
                branch = layer[b]
                states[place].append(h)
                incoming, outgoing = leaves[b * L + number], leaves[(B + b) * L + number]
                read = start if twin == "branches in parallel" else h
                p = incoming.T @ _normed(branch.norm, read) / D
                g = branch.unit.forward(p.unflatten(0, (widths[b], -1)))
                g = g[:, : branch.unit.out_vectors].flatten(0, 1)
                h = h + branch.scale / (L * widths[b]) * outgoing @ g
                written[b, number] = (place, g)
        states[0].append(h)
        f = (unembedding.T @ _normed(dynamics.final_norm, h) / D).T
        losses = _losses(dynamics.loss.kind, f, y)
        every = range(len(y))
        batch = every
        if dynamics.batches is not None and step < len(dynamics.batches):
            batch = dynamics.batches[step]
        flat = [h for each in states for h in each]
        loss = (_shares(dynamics, list(batch)) * losses).sum()
        raw = torch.autograd.grad(loss, [*leaves, *flat], allow_unused=True)
        raw = [
            torch.zeros_like(of) if g is None else g
            for g, of in zip(raw, leaves + flat, strict=True)
        ]
        gradients = [s * g for s, g in zip(scales, raw, strict=False)]
        # b = D R times the derivative of the loss.
        b_flat = iter(len(batch) * D * g for g in raw[len(leaves) :])
        cotangents = [[next(b_flat) for _ in each] for each in states]
        if twin == "cotangent from before the branch":
            for (b, number), (place, g) in written.items():
                before = cotangents[place][number]
                gradients[(B + b) * L + number] = (
                    before @ g.detach().T / len(batch) / layer[b].scale
                )
        if twin == "rows of all samples":
            gradients = [g * len(batch) / len(y) for g in gradients]
        found.output.append(f.detach().numpy())
        found.loss.append((_shares(dynamics, list(every)) * losses).sum().item())
        for kept, each in ((found.states, states), (found.cotangents, cotangents)):
            for to, new in zip(kept, each, strict=True):
                to.append(torch.stack(new).detach().mT.numpy())
        found.gradients.append(gradients)
        found.weights.append([leaf.detach() for leaf in leaves])
        if step + 1 < dynamics.steps:
            stepped = [
                _steps(dynamics.rule, *each, step, twin == "coupled decay")
                for each in zip(rates, found.weights[-1], velocities, gradients, strict=True)
            ]
            weights, velocities = ([each[n] for each in stepped] for n in (0, 1))
    return Reference(
        np.array(found.output),
        np.array(found.loss),
        [np.array(each) for each in found.states],
        [np.array(each) for each in found.cotangents],
        found.gradients,
        found.weights,
    )

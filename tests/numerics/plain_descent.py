"""Gradient descent on explicit weights in reduced coordinates, with plain loops and autograd.

What it shares with the solver are the units' maps alone. Norms, losses, rules, batches and weights
of rows are written out.
"""

import numpy as np
import torch

RMS_EPSILON = 1e-6


def normed(norm, h):
    """A norm of states (r, rows), by its name or as a function."""
    if norm == "none":
        return h
    if norm == "rms":
        return h / (h.square().sum(0) + RMS_EPSILON).sqrt()
    return norm(h)


def row_losses(kind, f, y):
    if kind == "cross_entropy":
        return torch.nn.functional.cross_entropy(f, y, reduction="none")
    return (f - y).square().sum(1) / (2.0 if kind == "squared_error" else 2.0 * y.shape[1])


class SGD:
    """A matrix that learns: momentum, nesterov, decoupled decay, factors of the rate."""

    def __init__(self, momentum=0.0, nesterov=False, decay=0.0, factors=()):
        self.mu, self.nesterov, self.decay, self.factors = momentum, nesterov, decay, factors
        self.v = {}

    def __call__(self, name, k, w, g, rate):
        if rate == 0:
            return w
        eta = rate * self.factors[k] if self.factors else rate
        self.v[name] = self.mu * self.v.get(name, 0.0) + g
        step = g + self.mu * self.v[name] if self.nesterov else self.v[name]
        return w - eta * self.decay * w - eta * step


def descend(dynamics, root, weights, norms, rule, *, final_norm="none", twin="right"):
    """Outputs of all states.

    Parameters
    ----------
    weights : list of pairs of Tensor, shapes (L, points, a, r) and (L, points, c, r)
        Standard normal weights of every branch.
    norms : list
        Of every branch.
    rule : callable
        As SGD.
    twin : str
        ``right``, or a broken twin: ``order`` of the branches turned round, ``parallel`` branches,
        or out-vectors that learn from the cotangent ``before`` the branch.
    """
    root = torch.tensor(root)
    r_in = dynamics.inputs.shape[1]
    x, y = torch.tensor(dynamics.inputs), torch.tensor(dynamics.targets)
    branches = dynamics.layer
    order = range(len(branches)) if twin != "order" else range(len(branches))[::-1]
    matrices = {"e": root[:, :r_in].clone(), "u": root[:, r_in:].clone()}
    for b, (branch, (ins, outs)) in enumerate(zip(branches, weights, strict=True)):
        matrices[f"i{b}"] = branch.input_std * ins.double()
        matrices[f"o{b}"] = branch.output_std * outs.double()
    outputs = []
    for k in range(dynamics.steps):
        for matrix in matrices.values():
            matrix.requires_grad_(True)
        h = matrices["e"] @ x.T
        depth = len(weights[0][0])
        seen = []
        for layer in range(depth):
            start = h
            for b in order:
                branch, (ins, outs) = branches[b], (matrices[f"i{b}"], matrices[f"o{b}"])
                before = start if twin == "parallel" else h
                u = normed(norms[b], before)
                p = torch.einsum("par,rn->pan", ins[layer], u)
                g = branch.unit.forward(p)[:, : branch.unit.out_vectors]
                seen.append((b, layer, h, g))
                gain = branch.scale / (depth * len(p))
                h = h + gain * torch.einsum("pcr,pcn->rn", outs[layer], g)
        f = (matrices["u"].T @ normed(final_norm, h)).T
        outputs.append(f.detach().numpy().copy())
        if k == dynamics.steps - 1:
            break
        batch = list(range(len(x)) if dynamics.batches is None else dynamics.batches[k])
        omega = torch.ones(len(x)) if dynamics.weights is None else torch.tensor(dynamics.weights)
        omega = omega[batch].double() / omega[batch].double().sum()
        loss = (omega * row_losses(dynamics.loss.kind, f[batch], y[batch])).sum()
        names = list(matrices)
        befores = [state for _, _, state, _ in seen]
        found = torch.autograd.grad(loss, [*matrices.values(), *befores])
        gradients = dict(zip(names, found[: len(names)], strict=True))
        if twin == "before":
            for (b, layer, _, g), cotangent in zip(seen, found[len(names) :], strict=True):
                gain = branches[b].scale / (depth * len(g))
                gradients[f"o{b}"][layer] = gain * torch.einsum("rn,pcn->pcr", cotangent, g)
        # The factor D is in the root.
        factors = {"e": 1 / dynamics.residual_scale, "u": 1 / dynamics.residual_scale}
        rates = {"e": dynamics.rate_embedding, "u": dynamics.rate_unembedding}
        for b, branch in enumerate(branches):
            factor = depth * weights[b][0].shape[1] / branch.scale**2
            factors |= {f"i{b}": factor, f"o{b}": factor}
            rates |= {f"i{b}": branch.rate_in, f"o{b}": branch.rate_out}
        matrices = {
            name: rule(name, k, w, factors[name] * gradients[name], rates[name]).detach()
            for name, w in matrices.items()
        }
    return np.array(outputs)


def dealt(limits, plan, layers):
    """The units' weights of each branch in each of so many layers, which all are nodes."""
    samples = limits.trajectories.sample(plan, range(1), shared=False)
    each = (sample.at_nodes(np.full(layers, 1 / layers)) for sample in samples)
    return [
        tuple(torch.stack(vectors)[:, 0] for vectors in zip(*nodes, strict=True)) for nodes in each
    ]

"""Independent solution of the linear DMFT limit, through its closed moment equations.

For a linear unit the pre-activation is ``I . w`` and all that the dynamics see of the units at
depth s is the second moment ``C(s) = E[(I, O)(I, O)^T]``, a matrix of size 2r, which a gradient
step maps to ``T C T^T``. Nothing is shared with the package: no quadrature over units, no
collocation. Depth is discretised by the trapezoidal rule on uniform grids, and Richardson's
extrapolation over halved steps takes the error, a series in even powers of the step, to rounding.
"""

from itertools import pairwise

import numpy as np


def _on_grid(x, y, rate, steps, root, alpha, intervals, loss_weight):
    rows, d_in = x.shape
    r = len(root)
    embedding, unembedding = root[:, :d_in], root[:, d_in:]
    moments = np.tile(np.eye(2 * r), (intervals + 1, 1, 1))
    spacing = 1.0 / intervals
    outputs = []
    for _ in range(steps):
        cross = alpha * moments[:, r:, :r]  # E[O I^T]
        w = np.empty((intervals + 1, r, rows))
        w[0] = embedding @ x.T
        for j in range(intervals):
            right = w[j] + 0.5 * spacing * cross[j] @ w[j]
            w[j + 1] = np.linalg.solve(np.eye(r) - 0.5 * spacing * cross[j + 1], right)
        output = w[-1].T @ unembedding
        outputs.append(output)
        gradient = (output - y) * loss_weight
        z = np.empty_like(w)
        z[-1] = unembedding @ gradient.T
        for j in range(intervals, 0, -1):
            right = z[j] + 0.5 * spacing * cross[j].T @ z[j]
            z[j - 1] = np.linalg.solve(np.eye(r) - 0.5 * spacing * cross[j - 1].T, right)
        overlap = w @ z.transpose(0, 2, 1) / rows
        transfer = np.tile(np.eye(2 * r), (intervals + 1, 1, 1))
        transfer[:, :r, r:] = -rate / alpha * overlap
        transfer[:, r:, :r] = -rate / alpha * overlap.transpose(0, 2, 1)
        moments = transfer @ moments @ transfer.transpose(0, 2, 1)
    return np.array(outputs)


def solve(x, y, rate, steps, root, alpha=1.0, loss_weight=1.0, levels=6, coarsest=8):
    """Outputs (steps, rows, targets) and the size of the last extrapolation's correction."""
    table = [
        _on_grid(x, y, rate, steps, root, alpha, coarsest * 2**level, loss_weight)
        for level in range(levels)
    ]
    order, previous = 1, table[-1]
    while len(table) > 1:
        previous = table[-1]
        table = [fine + (fine - coarse) / (4**order - 1) for coarse, fine in pairwise(table)]
        order += 1
    return table[0], np.abs(table[0] - previous).max()

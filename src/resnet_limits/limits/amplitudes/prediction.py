"""The whole error law of a problem, from its limit alone (docs/concepts/amplitudes.md)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from resnet_limits.kinds import Shape
from resnet_limits.laws import law_of
from resnet_limits.limits import depth, kernels
from resnet_limits.limits.amplitudes import bias, cost, gram, layers, noise, width
from resnet_limits.limits.amplitudes.amplitude import Amplitude, Amplitudes
from resnet_limits.limits.amplitudes.sizes import Distance, UnitNoise, shape_distances
from resnet_limits.limits.cost import Quadrature
from resnet_limits.limits.depth import Array
from resnet_limits.limits.models import Limits
from resnet_limits.limits.plan import REPLICATES, Plan
from resnet_limits.limits.quadrature import CUBATURE
from resnet_limits.limits.solver import LimitError
from resnet_limits.work import INFINITE, MemoryRefusedError, Work

logger = logging.getLogger(__name__)

TOLERANCE = {
    "1/L": 1e-2,
    "sqrt(D/(LM))": 5e-3,
    "1/sqrt(D)": 5e-3,
    "1/sqrt(LM)": 2e-2,
    "D/(LM)": 3e-2,
}
"""Uncertainty of an amplitude, relative to its largest over the steps, above which it is refined,
where that is cheap; where limits may be off by more than `OWN_TOLERANCE`, as many times as much."""
OWN_TOLERANCE = 1e-3
# How many times as many points are tried next.
_MORE = 4


class PredictionError(RuntimeError):
    """A prediction that fails its own check."""


@dataclass(frozen=True)
class Prediction:
    """The terms of the distance from the DMFT limit.

    Attributes
    ----------
    hidden, output : dict of str to Amplitude or None
        By the terms of the law of ``finite-dmft``, in its order; None where theory gives none yet,
        or it was too expensive.
    hidden_at : dict of str to Amplitude or None
        Those of the hidden state at `changes.DEPTHS`, shape (K, n).
    identity : Identity or None
        The check of the kernels, where there are any.
    notes : dict of str to str
        Why an amplitude of which theory gives one is None or not finite, by its term; and why there
        are no distances, by ``shape``.
    distances : dict of str to Distance
        Of the hidden state and of the outputs of networks of a shape, if one is asked for.
    """

    hidden: dict[str, Amplitude | None]
    output: dict[str, Amplitude | None]
    hidden_at: dict[str, Amplitude | None]
    identity: width.Identity | None
    notes: dict[str, str]
    distances: dict[str, Distance] = field(default_factory=dict)


@dataclass(frozen=True)
class Shaped:
    """A shape of which distances are wanted.

    Attributes
    ----------
    shape : Shape
        L, M, D.
    roots : sequence of ndarray, shape (r, r)
        Roots of the Gram matrices of embeddings of D rows.
    """

    shape: Shape
    roots: Sequence[Array]


def _relative(found: Amplitudes) -> float:
    """Largest uncertainty of the amplitudes, relative to the largest over the steps of each."""
    worst = 0.0
    for amplitude in filter(None, (found.hidden, found.output)):
        finite = amplitude.finite
        largest = float(amplitude.value[finite].max(initial=0.0))
        if largest > 0:
            worst = max(worst, float(amplitude.uncertainty[finite].max()) / largest)
    return worst


def _not_finite(found: Amplitudes) -> str | None:
    """Say from which step on an amplitude is not finite; None if it is at all steps."""
    parts = filter(None, (found.hidden, found.output))
    first = [int(np.argmin(part.finite)) for part in parts if not part.finite.all()]
    return f"not finite from step {min(first)} on: its equations diverge" if first else None


class _Predictor:
    """Finds one part after the other, each as precisely as is cheap."""

    def __init__(self, limits: Limits, plan: Plan, most_seconds: float, rotated: bool) -> None:
        self.limits, self.most_seconds, self.rotated = limits, most_seconds, rotated
        self.exact = plan.quadrature == CUBATURE
        self.plan = plan if self.exact else replace(plan, replicates=REPLICATES)
        self.loose = max(1.0, plan.tolerance / OWN_TOLERANCE)
        dynamics, arithmetic = limits.dynamics, limits.arithmetic
        single = plan.precision == "float32"
        compiled = single and all(kernels.code_of(b.unit) is not None for b in dynamics.layer)
        self.sizes = cost.Sizes(
            Work.of(dynamics, INFINITE, 1, arithmetic.dtype.itemsize),
            tuple(branch.unit.is_smooth for branch in dynamics.layer),
            tuple(branch.unit.tokens for branch in dynamics.layer),
            Quadrature(plan.points, plan.replicates, plan.nodes, single, compiled),
        )
        self.notes: dict[str, str] = {}
        self.identity: width.Identity | None = None
        # What the distances of a shape take over from the parts.
        self._bias: Array | None = None
        self._slopes: list[gram.Slope] = []

    def _too_long(self, expected: float) -> str:
        return (
            f"it would take about {expected / 60:.0f} minutes of one core, and "
            f"{self.most_seconds / 60:.0f} are allowed"
        )

    def _refined(
        self,
        term: str,
        points: int,
        find: Callable[[Plan], Amplitudes],
        seconds: Callable[[int], float],
        exact: bool | None = None,
    ) -> Amplitudes:
        """Find a part with more and more points, as long as that is cheap and needed."""
        exact = self.exact if exact is None else exact
        plan = self.plan if exact else replace(self.plan, points=points)
        if (expected := seconds(plan.points)) > self.most_seconds:
            self.notes[term] = self._too_long(expected)
            return Amplitudes()
        while True:
            try:
                found = find(plan)
            except LimitError as error:
                self.notes[term] = str(error)
                return Amplitudes()
            uncertain = _relative(found)
            logger.info("%s: %d points: uncertain by %.1e", term, plan.points, uncertain)
            more = replace(plan, points=_MORE * plan.points)
            allowed = min(self.most_seconds, cost.REFINED_SECONDS)
            if exact or uncertain <= self.loose * TOLERANCE[term] or seconds(more.points) > allowed:
                if why := _not_finite(found):
                    self.notes[term] = why
                return found
            plan = more

    def width(self) -> Amplitudes:
        """Find A_W."""

        def find(plan: Plan) -> Amplitudes:
            variance, self.identity = width.width_variance_at(self.limits.trajectories, plan)
            end = np.ascontiguousarray(variance[..., -1])
            return Amplitudes(Amplitude.of_fields(end), None, Amplitude.of_fields(variance))

        def seconds(points: int) -> float:
            return cost.width_seconds(self.sizes, points, self.plan.replicates)

        return self._refined("sqrt(D/(LM))", cost.WIDTH_POINTS, find, seconds)

    def gram(self) -> Amplitudes:
        """Find A_D."""
        root = self.limits.limit_root
        if self.rotated and self.limits.dynamics.initial_law != "gaussian":
            self.notes["1/sqrt(D)"] = (
                "the inputs do not span their space, and the effect of embeddings that are not "
                "Gaussian in a basis of the span is not known"
            )
            return Amplitudes()
        solutions = cost.gram_solutions(gram.entries(root @ root))

        def find(plan: Plan) -> Amplitudes:
            self._slopes = gram.gram_slopes(self.limits.trajectories, plan)
            return gram.gram_amplitudes(self._slopes, root @ root)

        def seconds(points: int) -> float:
            return cost.limit_seconds(self.sizes, points, self.plan.replicates, solutions)

        return self._refined(
            "1/sqrt(D)",
            cost.GRAM_POINTS,
            find,
            seconds,
        )

    def layers(self) -> Amplitudes:
        """Find A_L."""

        def seconds(points: int) -> float:
            each = points * self.plan.nodes
            return cost.limit_seconds(self.sizes, each, self.plan.replicates, 1 + len(cost.DEPTHS))

        return self._refined(
            "1/L",
            cost.LAYER_POINTS,
            lambda plan: layers.layer_amplitudes(self.limits.trajectories, plan),
            seconds,
        )

    def bias(self) -> Amplitudes:
        """Find A of the outputs."""
        trajectories = self.limits.trajectories

        def find(plan: Plan) -> Amplitudes:
            grid = depth.continuous(plan.nodes)
            chosen = range(plan.replicates)
            samples = trajectories.sample(plan, chosen, self.exact)
            noise = None
            if not self.exact:
                many = replace(plan, points=cost.BIAS_NOISE * plan.points, precision="float32")
                noise = trajectories.sample(many, chosen, shared=False)
            how = bias.Numerics(cost.BIAS_CELLS, noise, plan.root_seed)
            dynamics, root = self.limits.dynamics, self.limits.limit_root
            found = bias.output_bias(dynamics, root, grid, samples, numerics=how)
            self._bias = found.mean(0).numpy()
            return Amplitudes(output=Amplitude.of_means(found.numpy()))

        def seconds(points: int) -> float:
            return cost.bias_seconds(self.sizes, points, self.plan.replicates)

        return self._refined("D/(LM)", cost.BIAS_POINTS, find, seconds)

    def noise(self) -> Amplitudes:
        """Find B."""

        def find(plan: Plan) -> Amplitudes:
            sampled = replace(plan, points=cost.NOISE_POINTS, replicates=plan.points)
            return Amplitudes(output=noise.unit_noise(self.limits.trajectories, sampled)[1])

        def seconds(samples: int) -> float:
            return cost.limit_seconds(self.sizes, cost.NOISE_POINTS, samples, 1)

        return self._refined("1/sqrt(LM)", cost.NOISE_SAMPLES, find, seconds, exact=False)

    def distances(self, shaped: Shaped) -> dict[str, Distance]:
        """Find the distances of networks of a shape, if all is known that they take."""
        if self._bias is None:
            self.notes["shape"] = "to leading order only: D/(LM) is not known"
            return {}
        expected = cost.shape_seconds(self.sizes, self.plan.replicates, len(shaped.roots))
        if expected > self.most_seconds:
            self.notes["shape"] = f"to leading order only: {self._too_long(expected)}"
            return {}
        trajectories, layers = self.limits.trajectories, shaped.shape.depth
        sampled = replace(self.plan, points=cost.NOISE_POINTS, replicates=cost.NOISE_SAMPLES)
        try:
            inside, output_noise = noise.unit_noise(trajectories, sampled, layers)
            units = UnitNoise(inside.value**2, output_noise.value**2, self._bias)
            hidden, output = shape_distances(
                trajectories,
                self.plan,
                shaped.shape,
                shaped.roots,
                units,
                self._slopes,
            )
        except LimitError as error:
            self.notes["shape"] = f"to leading order only: {error}"
            return {}
        return {"hidden": hidden, "output": output}


def predict(
    limits: Limits,
    plan: Plan,
    most_seconds: float = cost.MOST_SECONDS,
    *,
    most_bytes: float = math.inf,
    rotated: bool = False,
    shaped: Shaped | None = None,
) -> Prediction:
    """Find every amplitude that theory gives, at every step, training no network.

    Parameters
    ----------
    limits : Limits
        The problem.
    plan : Plan
        Nodes, precision and scramblings of its DMFT limit; points are chosen anew for each part, as
        amplitudes need far fewer than the limit.
    most_seconds : float
        Time on one core above which a part is not begun.
    most_bytes : float
        Memory that is there.
    rotated : bool
        Whether the inputs are those in a basis of their span.
    shaped : Shaped, optional
        A shape, of whose networks the distances are wanted.

    Raises
    ------
    MemoryRefusedError
        If it would not fit in memory.
    PredictionError
        If the kernels do not make the drifts of the states.
    """
    predictor = _Predictor(limits, plan, most_seconds, rotated)
    if (size := cost.peak_bytes(predictor.sizes)) > most_bytes:
        raise MemoryRefusedError(
            f"prediction: needs {size / 2**30:.1f} GiB of memory, and {most_bytes / 2**30:.1f} GiB "
            "are available; allowed: fewer samples or fewer steps"
        )
    # The part with a check comes first: one that fails it is the end.
    of_width = predictor.width()
    identity = predictor.identity
    if identity is not None and not identity.holds:
        raise PredictionError(
            "prediction: the kernels do not reproduce the drifts of the states, whose size is "
            f"{identity.drift:.1e}: they differ by {identity.deviation:.1e}, with a standard error "
            f"of {identity.stderr:.1e}"
        )
    parts: Mapping[str, Amplitudes] = {
        "sqrt(D/(LM))": of_width,
        "1/L": predictor.layers(),
        "1/sqrt(D)": predictor.gram(),
        "1/sqrt(LM)": predictor.noise(),
        "D/(LM)": predictor.bias(),
    }
    hidden, output, hidden_at = (
        {term: getattr(parts[term], place) for term in law_of("finite-dmft", name).terms}
        for place, name in (("hidden", "hidden"), ("output", "output"), ("hidden_at", "hidden"))
    )
    distances = predictor.distances(shaped) if shaped else {}
    return Prediction(hidden, output, hidden_at, identity, predictor.notes, distances)

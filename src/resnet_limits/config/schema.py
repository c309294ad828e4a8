"""The experiment file as pydantic models: what may stand in it, and what follows from it.

Unknown keys are errors and every value has bounds.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, Strict, field_validator, model_validator

from resnet_limits.config.data import Data
from resnet_limits.config.messages import NAME_RULE
from resnet_limits.config.model import (
    ConvolutionUnit,
    ModelConfig,
    SeededBatches,
    TrainingConfig,
)
from resnet_limits.config.sweep import LIMIT_PAIRS, PAIRS, SweepConfig, most_seeds
from resnet_limits.config.values import (
    NAME,
    DepthPoints,
    Section,
    Seed,
    Steps,
    number,
)
from resnet_limits.kinds import Shape

LossKind = Literal["squared_error", "mean_squared_error", "cross_entropy"]

LOSSES: tuple[str, ...] = get_args(LossKind)
"""Names of the losses."""

# Names of devices, which some systems take for such in every folder and with every ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_MAX_DEPTH_WITH_ALL_LAYERS = 100_000
_REAL_VALUED_DATA = ("gaussian", "linear_teacher", "in_context_regression")


# --- problem --------------------------------------------------------------------------------------


class ProblemConfig(Section):
    """What is learned: the data and the loss."""

    data: Data = Field(description="Where inputs and targets come from.")
    loss: LossKind = Field(
        "squared_error",
        description=(
            "squared_error: half the squared distance to the targets; mean_squared_error: the same "
            "divided by the number of targets; cross_entropy: of the softmax with one-hot targets. "
            "Averaged over samples and tokens."
        ),
    )

    @model_validator(mode="after")
    def _one_hot(self) -> Self:
        if self.loss == "cross_entropy" and self.data.kind in _REAL_VALUED_DATA:
            raise ValueError(
                f"loss cross_entropy needs one-hot targets, which {self.data.kind} data do not "
                "have; allowed: squared_error, mean_squared_error"
            )
        return self


# --- sweep, numerics, save ------------------------------------------------------------------------


class NumericsConfig(Section):
    """Precision, device, and how exact the limits are."""

    precision: Literal["float64", "float32"] = Field(
        "float64", description="Floating-point type of the networks' and the limits' arithmetic."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes CUDA where there is a device."
    )
    limit_tolerance: Annotated[
        float, Field(ge=1e-12, le=1e3, allow_inf_nan=False), BeforeValidator(number)
    ] = Field(
        1.0e-3,
        description=(
            "RMS over (step, sample, target) of the standard error of the limits' outputs; "
            "absolute."
        ),
    )


class SaveConfig(Section):
    """What of the finite networks is kept."""

    depth_points: DepthPoints | Literal["all"] = Field(
        17, description="Number of layers kept, evenly spread from 0 to L; all keeps every layer."
    )
    steps: Steps | Literal["all"] = Field("all", description="Steps that are kept.")
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="Floating-point type of stored hidden and backward fields."
    )


# --- experiment -----------------------------------------------------------------------------------


class Experiment(Section):
    """One validated experiment file.

    Attributes
    ----------
    experiment : str
        Its name; results go to ``results/<experiment>/``.
    seed : int
        Root of every random stream.
    problem, model, training, sweep, numerics, save
        The sections of the file.
    """

    experiment: Annotated[str, Strict()] = Field(
        max_length=64,
        pattern=NAME,
        json_schema_extra={"$comment": NAME_RULE},
        description="Name of the experiment; results go to results/<experiment>/.",
    )
    seed: Seed = Field(0, description="Root of every random stream.")
    problem: ProblemConfig = Field(description="What is learned.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The training.")
    sweep: SweepConfig = Field(description="Which networks are trained.")
    numerics: NumericsConfig = Field(
        default_factory=NumericsConfig, description="Precision and device."
    )
    save: SaveConfig = Field(default_factory=SaveConfig, description="What is kept.")

    @field_validator("experiment")
    @classmethod
    def _no_device(cls, name: str) -> str:
        if _DEVICE.fullmatch(name):
            raise ValueError(f"{name} is the name of a device on some systems; allowed: any other")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.save.steps != "all" and max(self.save.steps) >= self.training.steps:
            raise ValueError(
                f"save.steps: {max(self.save.steps)} is not a step of a training with "
                f"{self.training.steps} states; allowed: 0 to {self.training.steps - 1}"
            )
        deepest = max(shape.depth for shape in self.shapes)
        if self.save.depth_points == "all" and deepest > _MAX_DEPTH_WITH_ALL_LAYERS:
            raise ValueError(
                f"save.depth_points: all with depth {deepest} keeps too much; allowed: a number of "
                f"layers, or all up to depth {_MAX_DEPTH_WITH_ALL_LAYERS}"
            )
        return self

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        """Refuse units that the data's tokens do not suit, where the file alone tells."""
        data = self.problem.data
        if data.kind == "file":
            return self
        tokens: int | None = getattr(data, "tokens", None)
        for place, branch in enumerate(self.model.branches):
            key = "model.unit" if self.model.layer is None else f"model.layer.{place}.unit"
            unit = branch.unit
            if unit.mixes_tokens and tokens is None:
                raise ValueError(
                    f"{key}.kind: {unit.kind} works on the tokens of a sample, and {data.kind} "
                    "data have none; allowed: data with tokens, or a unit that needs none"
                )
            if tokens is None or not isinstance(unit, ConvolutionUnit):
                continue
            for offset in unit.offsets:
                if abs(offset) >= tokens:
                    raise ValueError(
                        f"{key}.offsets: {offset} goes beyond the {tokens} tokens of a sample; "
                        f"allowed: {1 - tokens} to {tokens - 1}"
                    )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        """Refuse batches of more samples than the file says that there are."""
        data, batches = self.problem.data, self.training.batches
        if data.kind == "file" or batches is None:
            return self
        if isinstance(batches, SeededBatches):
            if batches.size > data.samples:
                raise ValueError(
                    f"training.batches.size: got {batches.size}; allowed: 1 to {data.samples}, "
                    "the number of samples"
                )
            return self
        for update, batch in enumerate(batches):
            if max(batch) >= data.samples:
                raise ValueError(
                    f"training.batches.{update}: there is no sample {max(batch)}; allowed: 0 "
                    f"to {data.samples - 1}, the samples of the data"
                )
        return self

    @model_validator(mode="after")
    def _law_fits(self) -> Self:
        """Refuse what holds for Gaussian weights alone where the weights are others."""
        law = self.model.initial_law
        if law == "gaussian":
            return self
        for pair in self.pairs:
            if pair != "finite-dmft":
                raise ValueError(
                    f"sweep.pairs: {pair} with model.initial_law {law}: at finite D the states of "
                    "the limits wide and mean_ode hold for Gaussian weights only; allowed: "
                    "finite-dmft, or initial_law gaussian"
                )
        if self.sweep.engine == "implicit":
            raise ValueError(
                f"sweep.engine: implicit with model.initial_law {law}: this engine holds for "
                "Gaussian weights only; allowed: auto, dense, or initial_law gaussian"
            )
        return self

    @property
    def shapes(self) -> list[Shape]:
        """Shapes of the finite networks, sorted, each once."""
        return self.sweep.all_shapes()

    @property
    def families(self) -> dict[str, list[tuple[float, Shape]]]:
        """Families of shapes by name: P as given and the shape for it, sorted by P.

        Empty where the sizes are given in another way.
        """
        return {
            name: [(P, family.shape(P)) for P in sorted(set(family.parameters))]
            for name, family in (self.sweep.families or {}).items()
        }

    @property
    def seeds(self) -> range:
        """Seeds of embeddings and block weights: those of the shape that has most."""
        return self.cell_seeds()

    def seeds_of(self, shape: Shape) -> range:
        """Seeds of the networks of one shape, which need not be one of the experiment's."""
        return range(self.sweep.seeds_for(shape.parameters))

    def cell_seeds(self, **sizes: int) -> range:
        """Seeds in the store of one cell.

        Parameters
        ----------
        **sizes : int
            ``depth``, ``width`` and ``embed_dim`` of a network; without the first two or the second
            those of a limit, which has the seeds of all networks that are compared with it, and
            at least ``limit_seeds`` where it is compared with another limit; none for all seeds of
            networks. Where no network has such sizes, all seeds too.
        """
        if len(sizes) == len(Shape._fields):
            return self.seeds_of(Shape(**sizes))
        count = self.sweep.seeds
        if not isinstance(count, int):
            most = most_seeds(self.sweep)
            key = tuple(sizes[name] for name in Shape._fields if name in sizes)
            count = most.get(key, most[()])
        if sizes:
            count = max(count, self.limit_seeds("wide" if "depth" in sizes else "mean_ode") or 1)
        return range(count)

    def limit_seeds(self, kind: str) -> int | None:
        """Least number of seeds of the limits ``mean_ode`` or ``wide`` beside their networks'.

        Returns
        -------
        int or None
            None where the experiment leaves it open: it is told from what the study costs before
            anything is planned (``stages.estimates.with_limit_seeds``). 1 where no pair compares
            such limits with other limits.
        """
        if not set(LIMIT_PAIRS[kind]) & set(self.pairs):
            return 1
        found = self.sweep.limit_seeds_for(kind)
        if kind == "mean_ode" and found is not None:
            # Each wide limit is compared with the Mean ODE of its seed.
            return max(found, self.limit_seeds("wide") or 1)
        return found

    @property
    def pairs(self) -> tuple[str, ...]:
        """Pairs to compare, each once, in the order of `PAIRS`."""
        return tuple(pair for pair in PAIRS if pair in self.sweep.pairs)

    @property
    def limits_needed(self) -> set[str]:
        """Kinds of limits (dmft, mean_ode, wide) that the pairs name."""
        return {kind for pair in self.pairs for kind in pair.split("-")} - {"finite"}

    @property
    def embed_dims(self) -> list[int]:
        """Embedding dimensions of the shapes, sorted, each once."""
        return sorted({shape.embed_dim for shape in self.shapes})

    @property
    def wide_cells(self) -> list[tuple[int, int]]:
        """Pairs (depth, embed_dim) of the shapes, sorted, each once."""
        return sorted({(shape.depth, shape.embed_dim) for shape in self.shapes})

"""The sections ``model`` and ``training``: the network apart from its sizes, and how it learns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, model_validator

from resnet_limits.config.values import Flag, NonNegative, Positive, Section, Seed, number

Activation = Literal["linear", "tanh", "erf", "relu", "gelu", "silu"]
NormKind = Literal["none", "rms"]
InitialLaw = Literal["gaussian", "uniform", "rademacher"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
"""Names of the activations, those of ``units.ACTIVATIONS``."""

NORMS: tuple[str, ...] = get_args(NormKind)
"""Names of the norms, those of ``norms.NORMS``."""

INITIAL_LAWS: tuple[str, ...] = get_args(InitialLaw)
"""Names of the laws of initial weights, those of ``randomness.LAWS``."""

MAX_STEPS = 10_000
_KeyDim = Annotated[int, Strict(), Field(ge=1, le=1024)]
_Offset = Annotated[int, Strict(), Field(ge=-1_000_000, le=1_000_000)]
_Ratio = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), BeforeValidator(number)]
_Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), BeforeValidator(number)]


# --- units ----------------------------------------------------------------------------------------


class _Unit(Section):
    """What the file alone tells of a unit.

    Attributes
    ----------
    mixes_tokens : bool
        Whether it works on the tokens of a sample, as ``units.MIXES_TOKENS`` has it.
    """

    mixes_tokens: ClassVar[bool] = False


class PerceptronUnit(_Unit):
    """Unit of a two-layer perceptron block: one in-vector, one out-vector, pointwise g."""

    kind: Literal["perceptron"] = Field("perceptron", description="Which residual unit.")
    activation: Activation = Field("tanh", description="The pointwise map g.")


class GatedPerceptronUnit(_Unit):
    """Unit of a gated perceptron block: two in-vectors, one out-vector, g = act(p1) p2."""

    kind: Literal["gated_perceptron"] = Field(description="Which residual unit.")
    activation: Activation = Field("silu", description="The activation of the gate.")


class AttentionHeadUnit(_Unit):
    """An attention head over the tokens of a sample."""

    mixes_tokens = True

    kind: Literal["attention_head"] = Field(description="Which residual unit.")
    key_dim: _KeyDim = Field(description="k, the dimension of queries, keys and values.")
    causal: Flag = Field(False, description="Whether a token sees itself and earlier ones alone.")


class ConvolutionUnit(_Unit):
    """A convolution over the tokens of a sample: g_t = act(sum_j p_(j, t + o_j))."""

    mixes_tokens = True

    kind: Literal["convolution"] = Field(description="Which residual unit.")
    offsets: Annotated[tuple[_Offset, ...], Field(min_length=1, max_length=1024)] = Field(
        description="Offsets o_j of the tokens that a token sees, each smaller than their number."
    )
    activation: Activation = Field("tanh", description="The pointwise map.")


def _named(value: object) -> object:
    """Let a unit without a kind be a perceptron."""
    return {"kind": "perceptron", **value} if isinstance(value, dict) else value


UnitConfig = Annotated[
    Annotated[
        PerceptronUnit | GatedPerceptronUnit | AttentionHeadUnit | ConvolutionUnit,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_named),
]

UNIT_KINDS = ("perceptron", "gated_perceptron", "attention_head", "convolution")
"""Names of the residual units, those of ``units.UNITS``."""


# --- model ----------------------------------------------------------------------------------------


class InitStd(Section):
    """Standard deviations of the initial weights, before the factor sqrt(D) of the blocks."""

    input: NonNegative = Field(1.0, description="s_in, of the units' in-vectors.")
    output: NonNegative = Field(1.0, description="s_out, of the units' out-vectors.")
    embedding: NonNegative = Field(1.0, description="s_e, of W_e.")
    unembedding: NonNegative = Field(1.0, description="s_u, of W_u.")


class BranchInitStd(Section):
    """Standard deviations of a branch's initial weights; the model's where they are left out."""

    input: NonNegative | None = Field(None, description="s_in, of the units' in-vectors.")
    output: NonNegative | None = Field(None, description="s_out, of the units' out-vectors.")


class BranchConfig(Section):
    """One branch of a layer; what is left out is the model's."""

    unit: UnitConfig = Field(default_factory=PerceptronUnit, description="The residual unit.")
    norm: NormKind = Field("none", description="What the branch reads the residual stream through.")
    width_ratio: _Ratio = Field(
        1.0, description="Units of the branch over the width M, rounded, at least one unit."
    )
    residual_scale: Positive | None = Field(None, description="alpha of the branch.")
    init_std: BranchInitStd = Field(
        default_factory=BranchInitStd, description="Initial standard deviations."
    )


class ModelConfig(Section):
    """The residual network, apart from its sizes."""

    unit: UnitConfig | None = Field(
        None, description="The residual unit of layers of one branch; a tanh perceptron by default."
    )
    layer: Annotated[tuple[BranchConfig, ...], Field(min_length=1, max_length=16)] | None = Field(
        None, description="The branches of one layer, in sequence, in place of unit."
    )
    final_norm: NormKind = Field("none", description="The norm before the unembedding.")
    initial_law: InitialLaw = Field(
        "gaussian",
        description=(
            "Law of the initial weights, of the same variances; other laws than gaussian for the "
            "dense engine, compared with the DMFT limit alone."
        ),
    )
    residual_scale: Positive = Field(1.0, description="alpha, the scale of the residual branch.")
    init_std: InitStd = Field(default_factory=InitStd, description="Initial standard deviations.")

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        unit, layer = values.get("unit"), values.get("layer")
        if unit is not None and layer is not None:
            raise ValueError("unit and layer are both given; allowed: one of them")
        if unit is None and layer is None:
            return {**values, "unit": PerceptronUnit()}
        return values

    @property
    def branches(self) -> tuple[BranchConfig, ...]:
        """The branches of one layer, of whichever form is given."""
        if self.layer is not None:
            return self.layer
        assert self.unit is not None
        return (BranchConfig().model_copy(update={"unit": self.unit}),)


# --- training -------------------------------------------------------------------------------------


class GradientDescentRule(Section):
    """Gradient descent, with momentum where it is given."""

    kind: Literal["sgd"] = Field("sgd", description="Which training rule.")
    momentum: _Share = Field(0.0, description="mu: v <- mu v + G; the step is v.")
    nesterov: Flag = Field(False, description="Whether the step is G + mu v.")

    @model_validator(mode="after")
    def _looks_ahead(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum; allowed: momentum above 0, or no nesterov")
        return self


class ConstantSchedule(Section):
    """The same learning rates always."""

    kind: Literal["constant"] = Field(description="Which schedule.")


class CosineSchedule(Section):
    """Factors 0.5 (1 + cos(pi k / (K - 1))) of updates k = 0 .. K - 2."""

    kind: Literal["cosine"] = Field(description="Which schedule.")


class LinearSchedule(Section):
    """Factors that rise over some updates to 1 and then fall along a line."""

    kind: Literal["linear"] = Field(description="Which schedule.")
    warmup: Annotated[int, Strict(), Field(ge=0, le=MAX_STEPS)] = Field(
        0, description="Updates over which the factor rises, by 1 / (warmup + 1) each."
    )
    final: NonNegative = Field(0.0, description="Factor of the last update.")


class TableSchedule(Section):
    """Factors as they are given."""

    kind: Literal["table"] = Field(description="Which schedule.")
    factors: Annotated[tuple[NonNegative, ...], Field(max_length=MAX_STEPS)] = Field(
        description="One number for each update, of which there is one less than states."
    )


Schedule = Annotated[
    ConstantSchedule | CosineSchedule | LinearSchedule | TableSchedule,
    Field(discriminator="kind"),
]


RULE_KINDS = ("sgd",)
"""Names of the training rules, those of ``rules.RULES``."""

SCHEDULE_KINDS = ("constant", "cosine", "linear", "table")
"""Names of the schedules, those of ``rules.SCHEDULES``."""


class SeededBatches(Section):
    """Batches of distinct samples, drawn anew for every update."""

    size: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] = Field(
        description="Samples of an update."
    )
    seed: Seed = Field(0, description="Names the draw of the batches.")


_Sample = Annotated[int, Strict(), Field(ge=0, le=999_999)]
_Batch = Annotated[tuple[_Sample, ...], Field(min_length=1, max_length=1_000_000)]


def _batches_form(value: object) -> str:
    return "lists" if isinstance(value, list | tuple) else "seeded"


_Batches = Annotated[
    Annotated[SeededBatches, Tag("seeded")]
    | Annotated[tuple[_Batch, ...], Field(max_length=MAX_STEPS), Tag("lists")],
    Discriminator(_batches_form),
]


class TrainingConfig(Section):
    """Gradient descent and what is linear in gradients like it."""

    steps: Annotated[int, Strict(), Field(ge=1, le=MAX_STEPS)] = Field(
        15, description="Number of states K; step 0 is before the first update."
    )
    learning_rate: NonNegative = Field(1.0, description="eta, in the scaling of the limit.")
    train_embeddings: Flag = Field(
        False, description="Whether W_e and W_u are trained too, with eta_e = eta_u = eta."
    )
    learning_rate_in: NonNegative | None = Field(
        None, description="eta_in of the units' in-vectors; learning_rate if left out."
    )
    learning_rate_out: NonNegative | None = Field(
        None, description="eta_out of the units' out-vectors; learning_rate if left out."
    )
    learning_rate_embedding: NonNegative | None = Field(
        None, description="eta_e of trained embeddings; learning_rate if left out."
    )
    learning_rate_unembedding: NonNegative | None = Field(
        None, description="eta_u of trained embeddings; learning_rate if left out."
    )
    rule: GradientDescentRule = Field(
        default_factory=GradientDescentRule, description="How weights move with their gradients."
    )
    weight_decay: NonNegative = Field(
        0.0, description="lambda, decoupled: weights shrink by eta lambda beside each step."
    )
    schedule: Schedule = Field(
        default_factory=lambda: ConstantSchedule(kind="constant"),
        description="Factors of all learning rates by update.",
    )
    batches: _Batches | None = Field(
        None,
        description=(
            "Samples that each update sees: seeded batches, or one list of samples an update; all "
            "samples always if left out."
        ),
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        updates = self.steps - 1
        if isinstance(self.schedule, TableSchedule) and len(self.schedule.factors) != updates:
            raise ValueError(
                f"schedule.factors: {len(self.schedule.factors)} numbers; allowed: {updates}, one "
                f"for each update of {self.steps} states"
            )
        if isinstance(self.batches, tuple):
            if len(self.batches) != updates:
                raise ValueError(
                    f"batches: {len(self.batches)} lists; allowed: {updates}, one for each update "
                    f"of {self.steps} states"
                )
            for number, batch in enumerate(self.batches):
                if len(set(batch)) < len(batch):
                    raise ValueError(
                        f"batches.{number}: a sample is named twice; allowed: distinct samples"
                    )
        if not self.train_embeddings:
            for name in ("learning_rate_embedding", "learning_rate_unembedding"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is given, but embeddings are not trained; allowed: "
                        "together with train_embeddings: true"
                    )
        return self

"""The section ``problem.data``: where inputs and targets come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, ValidationInfo, field_validator, model_validator

from resnet_limits.config.messages import short
from resnet_limits.config.values import (
    DataSize,
    Flag,
    NonNegative,
    Positive,
    Samples,
    Section,
    Seed,
    TestSamples,
)

MAX_DATA_VALUES = 10_000_000
"""Most numbers in the inputs and targets of one problem."""

# Characters of the text that ``characters`` takes, and how many different ones it has.
_TEXT_CHARACTERS, _TEXT_ALPHABET = 856, 32
_TEST = (
    "Further samples that are not trained on: they run through networks and limits with no weight "
    "in the loss."
)
_POSITIONS = "Whether the one-hot position of its token is appended to every input."


def _check_data_size(rows: int, inputs: int, targets: int, words: str = "inputs") -> None:
    if rows * (inputs + targets) > MAX_DATA_VALUES:
        what = "samples" if words == "inputs" else "samples * tokens"
        raise ValueError(
            f"{what} * ({words} + targets) = {rows * (inputs + targets)} numbers; "
            f"allowed: at most {MAX_DATA_VALUES}"
        )


class GaussianData(Section):
    """Inputs and targets with independent standard normal entries."""

    kind: Literal["gaussian"]
    samples: Samples = Field(description="Number of samples N.")
    inputs: DataSize = Field(description="Input dimension d_in.")
    targets: DataSize = Field(description="Target dimension d_out.")
    seed: Seed = Field(0, description="Names the draw of the data.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _check_data_size(self.samples, self.inputs, self.targets)
        return self


class LinearTeacherData(Section):
    """Inputs of fixed norm and targets from a noisy random linear map, y = A x + noise n."""

    kind: Literal["linear_teacher"]
    samples: Samples = Field(1, description="Number of samples N.")
    test_samples: TestSamples = Field(0, description=_TEST)
    inputs: DataSize = Field(description="Input dimension d_in.")
    targets: DataSize = Field(description="Target dimension d_out.")
    seed: Seed = Field(0, description="Names the draw of the data.")
    input_norm: Positive = Field(0.8, description="Euclidean norm of every input.")
    noise: NonNegative = Field(0.05, description="Standard deviation of the targets' noise.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _check_data_size(self.samples + self.test_samples, self.inputs, self.targets)
        return self


class DigitsData(Section):
    """Scikit-learn's 8 x 8 images of handwritten digits, standardised, with one-hot targets."""

    kind: Literal["digits"]
    samples: Annotated[int, Strict(), Field(ge=1, le=1797)] = Field(
        description="Number of images, balanced over the classes as far as possible."
    )
    test_samples: Annotated[int, Strict(), Field(ge=0, le=1796)] = Field(0, description=_TEST)
    classes: Annotated[int, Strict(), Field(ge=2, le=10)] = Field(
        10, description="The digits 0 to classes - 1 are used."
    )
    seed: Seed = Field(0, description="Names the choice of the images.")


class InContextRegressionData(Section):
    """Linear regression in context: a sample is a task, its tokens are pairs (x, y).

    The inputs of a token are x and y, those of the last one x and zeros; targets are y, and the
    last token alone counts in the loss.
    """

    kind: Literal["in_context_regression"]
    samples: Samples = Field(description="Number of tasks N.")
    tokens: Annotated[int, Strict(), Field(ge=2, le=100_000)] = Field(
        description="Pairs of a task, the query included."
    )
    inputs: DataSize = Field(description="Dimension of x; those of a token are inputs + targets.")
    targets: DataSize = Field(1, description="Target dimension d_out.")
    noise: NonNegative = Field(0.0, description="Standard deviation of the targets' noise.")
    positions: Flag = Field(False, description=_POSITIONS)
    seed: Seed = Field(0, description="Names the draw of the data.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        width = self.inputs + self.targets + self.tokens * self.positions
        _check_data_size(self.samples * self.tokens, width, self.targets, "inputs of a token")
        return self


class CharactersData(Section):
    """The next character of a short text, the one of Python's standard module ``this``."""

    kind: Literal["characters"]
    samples: Annotated[int, Strict(), Field(ge=1, le=_TEXT_CHARACTERS - 1)] = Field(
        description="Number of pieces of the text N; with tokens at most 856."
    )
    tokens: Annotated[int, Strict(), Field(ge=1, le=_TEXT_CHARACTERS - 1)] = Field(
        description="Characters of a piece."
    )
    alphabet: Annotated[int, Strict(), Field(ge=2, le=_TEXT_ALPHABET)] = Field(
        8, description="Classes: the most frequent characters, and one class of all others."
    )
    positions: Flag = Field(False, description=_POSITIONS)
    seed: Seed = Field(0, description="Names the choice of the pieces.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        # One place less than characters, as every piece needs the character behind it.
        if self.samples + self.tokens > _TEXT_CHARACTERS:
            raise ValueError(
                f"{self.samples} samples of {self.tokens} tokens; allowed: samples + tokens up to "
                f"{_TEXT_CHARACTERS}, the number of characters in the text"
            )
        width = self.alphabet + self.tokens * self.positions
        _check_data_size(self.samples * self.tokens, width, self.alphabet, "inputs of a token")
        return self


class FileData(Section):
    """Data from a file with arrays x and y, and weight and is_test where there are any."""

    kind: Literal["file"]
    path: Annotated[str, Strict()] = Field(
        min_length=1,
        max_length=4096,
        pattern=r"\.(npz|zarr|nc|zarr\.zip)/?$",
        json_schema_extra={"$comment": "a path that ends in .npz, .zarr, .zarr.zip or .nc"},
        description=(
            "File or Zarr folder with x (samples, [tokens,] inputs) and y (samples, [tokens,] "
            "targets), weight (samples, [tokens]) where rows do not count alike, and is_test "
            "(samples) where some are not trained on; a relative path starts from the experiment "
            "file's folder."
        ),
    )
    positions: Flag = Field(False, description=_POSITIONS)

    @field_validator("path")
    @classmethod
    def _resolve(cls, path: str, info: ValidationInfo) -> str:
        if not path.isprintable():
            raise ValueError(f"got {short(path)}; allowed: a path of printable characters")
        folder = (info.context or {}).get("folder")
        return path if folder is None else os.path.normpath(Path(folder) / path)


Data = Annotated[
    GaussianData
    | LinearTeacherData
    | DigitsData
    | InContextRegressionData
    | CharactersData
    | FileData,
    Field(discriminator="kind"),
]

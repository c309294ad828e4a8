"""The experiment file: what may stand in it, how it is read, and what is said of a wrong one.

`schema`, `data`, `model` and `sweep` hold the models and `values` the types of single values,
`reading` gets from a file to a validated experiment, and `messages` turns whatever is wrong into
one `InputError` line that says what, where, and what is allowed. Nothing heavy is imported, so that
the Snakefile can read an experiment quickly.
"""

from resnet_limits.config.data import (
    MAX_DATA_VALUES,
    CharactersData,
    Data,
    DigitsData,
    FileData,
    GaussianData,
    InContextRegressionData,
    LinearTeacherData,
)
from resnet_limits.config.messages import InputError, one_line
from resnet_limits.config.model import (
    ACTIVATIONS,
    INITIAL_LAWS,
    NORMS,
    RULE_KINDS,
    SCHEDULE_KINDS,
    UNIT_KINDS,
    Activation,
    BranchConfig,
    BranchInitStd,
    ConvolutionUnit,
    InitStd,
    ModelConfig,
    PerceptronUnit,
    TrainingConfig,
    UnitConfig,
)
from resnet_limits.config.reading import (
    MAX_INPUT_BYTES,
    experiment_from_dict,
    json_schema,
    load_experiment,
    read_input,
)
from resnet_limits.config.schema import (
    LOSSES,
    Experiment,
    LossKind,
    NumericsConfig,
    ProblemConfig,
    SaveConfig,
)
from resnet_limits.config.sweep import (
    ENGINES,
    MAX_CELLS,
    PAIRS,
    Engine,
    FamilyConfig,
    GridConfig,
    LimitSeedsConfig,
    Pair,
    PowerConfig,
    SeedStepConfig,
    SweepConfig,
)
from resnet_limits.config.values import MAX_NUMBER
from resnet_limits.kinds import Shape

__all__ = [
    "ACTIVATIONS", "ENGINES", "INITIAL_LAWS", "LOSSES", "MAX_CELLS", "MAX_DATA_VALUES",
    "MAX_INPUT_BYTES", "MAX_NUMBER", "NORMS", "PAIRS", "RULE_KINDS", "SCHEDULE_KINDS",
    "UNIT_KINDS", "Activation", "BranchConfig", "BranchInitStd", "CharactersData",
    "ConvolutionUnit", "Data", "DigitsData", "Engine", "Experiment", "FamilyConfig", "FileData",
    "GaussianData", "GridConfig", "InContextRegressionData", "InitStd", "InputError",
    "LimitSeedsConfig", "LinearTeacherData", "LossKind", "ModelConfig", "NumericsConfig", "Pair",
    "PerceptronUnit", "PowerConfig", "ProblemConfig", "SaveConfig", "SeedStepConfig", "Shape",
    "SweepConfig", "TrainingConfig", "UnitConfig", "experiment_from_dict", "json_schema",
    "load_experiment", "one_line", "read_input",
]  # fmt: skip

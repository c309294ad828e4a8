"""Where a result comes from.

`code` hashes the code that a result depends on, `keys` names everything that it depends on, and
`record` gathers what every store says of its making.
"""

from resnet_limits.provenance.code import PACKAGE_DIRECTORY, code_hash
from resnet_limits.provenance.keys import (
    SEEDED,
    STAGES,
    cell_key,
    cell_seeds,
    stage_key,
    stage_module,
    values_read,
)
from resnet_limits.provenance.record import collect, git_state

__all__ = [
    "PACKAGE_DIRECTORY",
    "SEEDED",
    "STAGES",
    "cell_key",
    "cell_seeds",
    "code_hash",
    "collect",
    "git_state",
    "stage_key",
    "stage_module",
    "values_read",
]

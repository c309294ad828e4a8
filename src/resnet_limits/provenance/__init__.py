"""Where a result comes from.

`code` hashes the code that a result depends on, `keys` names everything that it depends on,
`record` gathers what every store says of its making, `pictures` what every picture says, and
`citation` whose software and whose theory it is.
"""

from resnet_limits.provenance.code import PACKAGE_DIRECTORY, code_hash
from resnet_limits.provenance.keys import (
    SEEDED,
    STAGES,
    ancestors,
    cell_key,
    cell_seeds,
    stage_key,
    stage_module,
    values_read,
)
from resnet_limits.provenance.pictures import picture_metadata
from resnet_limits.provenance.record import (
    collect,
    config_hash,
    experiment_text,
    git_state,
    library_versions,
)

__all__ = [
    "PACKAGE_DIRECTORY",
    "SEEDED",
    "STAGES",
    "ancestors",
    "cell_key",
    "cell_seeds",
    "code_hash",
    "collect",
    "config_hash",
    "experiment_text",
    "git_state",
    "library_versions",
    "picture_metadata",
    "stage_key",
    "stage_module",
    "values_read",
]

"""Datasets on disk: what each kind holds, how it is written, and whether it is sound.

A store is a Zarr v3 directory, or a single zip file when its name ends in ``.zarr.zip``. It is
written beside its final name and renamed, so that a name that exists is a finished store. Every
chunk carries a checksum, also inside shards; every variable says what it is. Beside a store, a
*manifest* records its stage key and digest; the manifest is written last.
"""

from resnet_limits.integrity import StoreError
from resnet_limits.store.reading import (
    describe,
    groups,
    load,
    load_variables,
    open_groups,
    open_store,
)
from resnet_limits.store.schema import (
    PROVENANCE,
    SCHEMA_VERSION,
    SCHEMAS,
    Schema,
    Variable,
    status_counts,
)
from resnet_limits.store.soundness import check, data_digest
from resnet_limits.store.writing import check_target, write

__all__ = [
    "PROVENANCE",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "Schema",
    "StoreError",
    "Variable",
    "check",
    "check_target",
    "data_digest",
    "describe",
    "groups",
    "load",
    "load_variables",
    "open_groups",
    "open_store",
    "status_counts",
    "write",
]

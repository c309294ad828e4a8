"""Residual networks against their infinite-size limit.

Finite-network training, the Mean ODE (depth to infinity), the DMFT limit (embedding dimension to
infinity too), and the distances between them. Nothing heavy is imported here: the sub-modules
bring in torch and xarray when they are used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("resnet-limits")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "open_results"]

_WHERE = {"open_results": "resnet_limits.results"}


def __getattr__(name: str) -> Any:
    """Import what users call by the package's name when it is first used: it loads xarray."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """Name what there is, also before it was used."""
    return sorted({*globals(), *_WHERE})

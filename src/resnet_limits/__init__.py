"""Residual networks against their infinite-size limit.

Finite-network training, the Mean ODE (depth to infinity), the DMFT limit (embedding dimension to
infinity too), and the distances between them. Nothing heavy is imported here: the sub-modules
bring in torch and xarray when they are used.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("resnet-limits")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]

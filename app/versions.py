"""Owns the answer to "which version": of tfoai and of the libraries it runs on. Knows nothing else."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version(distribution: str) -> str:
    """Return the version of an installed distribution; "0.0.0+unknown" when it is not installed (run from a checkout)."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0.0.0+unknown"

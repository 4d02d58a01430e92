"""The rows and caches of the tests of sweeps."""

from tests.head.sweep.conftest import make_cache, rows

__all__ = ["make_cache", "rows"]

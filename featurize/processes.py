"""Starts Python processes that take no module from the current folder, where files of others may lie.

``python -c``, with which multiprocessing starts its processes, and ``python -m`` look for modules in the current folder
first, before the standard library: a ``json.py`` beside the images would be executed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_SAFE_PATH = "PYTHONSAFEPATH"  # a process that has it starts without the current folder on sys.path


@contextlib.contextmanager
def ignoring_current_folder() -> Iterator[None]:
    """Make all Python processes that are started meanwhile ignore modules in the current folder.

    A notebook has that folder on its own ``sys.path``, and multiprocessing would hand it on.
    """
    variable, paths = os.environ.get(_SAFE_PATH), sys.path[:]
    os.environ[_SAFE_PATH] = "1"
    sys.path[:] = _safe_path()
    try:
        yield
    finally:
        sys.path[:] = paths
        if variable is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = variable


@contextlib.contextmanager
def outside_current_folder() -> Iterator[None]:
    """Do the same for a library that hands the current folder on by its name: meanwhile it is another one."""
    here = os.getcwd()
    with ignoring_current_folder():
        os.chdir(os.path.abspath(os.sep))
        try:
            yield
        finally:
            os.chdir(here)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in a process that finds the same modules as this one."""
    run = f"import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {_safe_path()!r}; {run}", *arguments]


def _safe_path() -> list[str]:
    return [entry for entry in sys.path if entry]

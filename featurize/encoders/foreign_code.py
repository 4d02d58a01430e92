"""Exceptions of code that is not this project's, as errors in words."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xfeat.featurize.errors import SpecError, XfeatError


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Report whatever a user's code raises as an error of that code."""
    try:
        yield
    except XfeatError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"the code of {name} raises an error", found=summary(error)) from error


def summary(error: BaseException) -> str:
    """Return type, first line and place of an exception that foreign code raised."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text

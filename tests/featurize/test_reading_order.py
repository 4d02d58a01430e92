"""The way through the room."""

from __future__ import annotations

import re
from pathlib import Path

import xfeat.featurize


def test_the_reading_order_names_every_module_and_no_other() -> None:
    folder = Path(xfeat.featurize.__file__).parent
    there = {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
    there |= {path.parent.name for path in folder.glob("*/__init__.py")}
    order = (xfeat.featurize.__doc__ or "").partition("Reading order")[2].partition("Nothing is imported")[0]
    named = re.findall(r"``(\w+)``", order)
    assert set(named) - {"xfeat"} == there

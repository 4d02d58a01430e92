"""A table of pandas as a manifest, read like a file of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.datasets.tables import read_table
from xfeat.featurize.errors import ArgumentError

if TYPE_CHECKING:
    import pandas

NAME = "DataFrame"


def manifest_of(frame: pandas.DataFrame, choice: ColumnChoice) -> tuple[Path, bytes]:
    """Return a table as a CSV manifest, and a name for it in the folder that its paths are relative to.

    That is the folder of all images if all paths are absolute, else the current one. A named index is a column. Whole
    numbers with gaps, which pandas keeps as floats, are written as whole numbers.

    Raises:
        ArgumentError: if it is no table, or its columns have several levels.
        DataError: if it has no column of paths.
    """
    if not hasattr(frame, "to_csv") or not hasattr(frame, "columns"):
        expected = "a path, or a table of pandas; FeatureExtractor.transform takes images"
        raise ArgumentError("no data set", expected=expected, found=type(frame).__name__)
    if frame.columns.nlevels > 1:
        raise ArgumentError("columns of several levels", expected="one name per column", found=str(list(frame)[:3]))
    if any(frame.index.names):
        frame = frame.reset_index()
    content = frame.convert_dtypes().to_csv(index=False).encode("utf-8", "surrogateescape")
    others = ("label", "split", "group")
    table = read_table(Path(NAME), ("path",), others, choice=choice, further=False, content=content)
    paths = [row.path for row in table.rows]
    together = paths and all(map(os.path.isabs, paths))
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if together else os.getcwd()
    return Path(root) / NAME, content

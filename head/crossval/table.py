"""The CSV file of out-of-fold predictions."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xfeat.featurize.system.atomic import output_error, replacing
from xfeat.head.crossval.runner import CrossValidation
from xfeat.head.runs.reader import PROBABILITY_PREFIX
from xfeat.head.runs.writer import write_table

_ELSEWHERE = "choose another place with --predictions"


def check_writable(path: Path) -> None:
    """Check that a file can be written, without creating it.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise output_error(path, error, elsewhere=_ELSEWHERE) from error


def out_of_fold_table(result: CrossValidation) -> tuple[list[str], Iterator[list[Any]]]:
    """Return the columns, and one line per image and seed."""
    probabilities = [PROBABILITY_PREFIX + name for name in result.cache.class_names]
    return ["path", "group", "seed", "fold", "label", "prediction", *probabilities], _lines(result)


def _lines(result: CrossValidation) -> Iterator[list[Any]]:
    names, columns, main = result.cache.class_names, result.cache.columns, result.main
    for seed, (fold, probabilities) in enumerate(zip(main.fold, main.probabilities, strict=True)):
        for place, row in enumerate(result.rows.tolist()):
            p = probabilities[place]
            facts = [columns.path[row], columns.group[row], seed, fold[place], names[main.labels[place]]]
            yield [*facts, names[p.argmax()], *(str(value) for value in p)]


def save_out_of_fold(result: CrossValidation, path: Path) -> None:
    """Write the out-of-fold predictions as CSV.

    Raises:
        OutputError: if it cannot be written.
    """
    with replacing(path, elsewhere=_ELSEWHERE) as partial:
        write_table(partial, *out_of_fold_table(result))

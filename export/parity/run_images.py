"""The images of a run that its model is checked on."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from xfeat.export.model.progress import ProgressCounter
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.check_images import CheckImages, load_images
from xfeat.export.parity.subsample import subsample
from xfeat.featurize.errors import DataError, RunError
from xfeat.head.runs.reader import PROBABILITY_PREFIX, Run

logger = logging.getLogger(__name__)


def images_to_check(
    run: Run, data: Path | None, limit: int | None = None, steps: ProgressCounter | None = None
) -> tuple[CheckImages, Probabilities]:
    """Read the run's test images (all of them if it has no test) and the probabilities noted for them.

    Args:
        run: the run.
        data: the folder of the images; by default the one that was featurized.
        limit: at most so many images, spread evenly.
        steps: counts the images that are read, and is told how many there are.

    Raises:
        DataError: if none of them can be read.
    """
    noted = _noted_probabilities(run, limit)
    images = _read(run, list(noted), data, steps, "images")
    return images, np.array([noted[path] for path in images.paths], np.float32)


def labelled_images(
    run: Run, split: str, data: Path | None, limit: int | None = None, steps: ProgressCounter | None = None
) -> tuple[CheckImages, list[str]]:
    """Read images of one part of the run, spread evenly if there are more than ``limit``, and their classes' names.

    Arguments as for :func:`images_to_check`.

    Raises:
        DataError: if none of them can be read.
    """
    rows = [row for row in run.predictions() if row["split"] == split]
    labels = {row["path"]: row["label"] for row in subsample(rows, limit)}
    images = _read(run, list(labels), data, steps, f"{split} images")
    return images, [labels[path] for path in images.paths]


def _read(run: Run, paths: list[str], data: Path | None, steps: ProgressCounter | None, what: str) -> CheckImages:
    """Read images of the run, with a warning if some of them are gone."""
    root = data or Path(run.cache["data_root"])
    steps = steps or ProgressCounter(None)
    steps.expect(len(paths))
    images = load_images(root, paths, run.feature_spec.preprocess, steps)
    if not len(images):
        raise DataError(
            f"none of the {what} of the run can be read, so the model cannot be checked",
            path=root,
            expected=f"files such as {next(iter(paths), 'those in predictions.csv')}",
            fix="name the folder of the images with --data DIR",
        )
    if gone := len(paths) - len(images):
        logger.warning("%d of %d %s can no longer be read", gone, len(paths), what)
    return images


def _noted_probabilities(run: Run, limit: int | None) -> dict[str, list[float]]:
    """Return path to noted probabilities of the test images (of all without a test), subsample to ``limit``."""
    rows = run.predictions()
    rows = [row for row in rows if row["split"] == "test"] or rows
    columns = [PROBABILITY_PREFIX + name for name in run.class_names]
    try:
        return {row["path"]: [float(row[column]) for column in columns] for row in subsample(rows, limit)}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "predictions.csv does not fit the run", path=run.folder, found=repr(error), fix="train the run again"
        ) from error

"""The images of a run on which its model is checked."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from xfeat.export.model.progress import ProgressCounter
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.check_images import CheckImages, load_images
from xfeat.export.parity.subsample import subsample
from xfeat.featurize.errors import DataError
from xfeat.head.runs.reader import PROBABILITY_PREFIX, Run

logger = logging.getLogger(__name__)


def images_to_check(
    run: Run, data: Path | None, limit: int | None = None, counter: ProgressCounter | None = None
) -> tuple[CheckImages, Probabilities]:
    """Read the run's test images (all images if it has no test split) and their probabilities in predictions.csv.

    Args:
        run: the run.
        data: folder of the images; by default the one that was featurized.
        limit: largest number of images; they are evenly spaced.
        counter: counts the images read.

    Raises:
        DataError: if none of them can be read.
    """
    recorded = _recorded_probabilities(run, limit)
    images = _read(run, list(recorded), data, counter, "images")
    return images, np.array([recorded[path] for path in images.paths], np.float32)


def labelled_images(
    run: Run, split: str, data: Path | None, limit: int | None = None, counter: ProgressCounter | None = None
) -> tuple[CheckImages, list[str]]:
    """Read images of one split of the run, evenly spaced if there are more than ``limit``, and their class names.

    Arguments as in :func:`images_to_check`.

    Raises:
        DataError: if none of them can be read.
    """
    rows = [row for row in run.predictions() if row["split"] == split]
    labels = {row["path"]: row["label"] for row in subsample(rows, limit)}
    images = _read(run, list(labels), data, counter, f"{split} images")
    return images, [labels[path] for path in images.paths]


def _read(run: Run, paths: list[str], data: Path | None, counter: ProgressCounter | None, what: str) -> CheckImages:
    """Read images of the run, with a warning if some cannot be read."""
    root = data or Path(run.cache["data_root"])
    counter = counter or ProgressCounter(None)
    counter.expect(len(paths))
    images = load_images(root, paths, run.feature_spec.preprocess, counter)
    if not len(images):
        raise DataError(
            f"none of the run's {len(paths)} {what} can be read, so the model cannot be checked",
            path=root,
            expected=f"files such as {next(iter(paths), 'those in predictions.csv')}",
            fix="name the folder of the images with --data DIR",
        )
    if missing := len(paths) - len(images):
        logger.warning(
            "%s: %d of the run's %d %s are missing or unreadable; the model is checked on the other %d",
            *(root, missing, len(paths), what, len(images)),
        )
    return images


def _recorded_probabilities(run: Run, limit: int | None) -> dict[str, list[float]]:
    """Return path to probabilities in predictions.csv, of the test images or, without a test split, of all."""
    rows = run.predictions()
    rows = [row for row in rows if row["split"] == "test"] or rows
    columns = [PROBABILITY_PREFIX + name for name in run.class_names]
    return {row["path"]: [float(row[column]) for column in columns] for row in subsample(rows, limit)}

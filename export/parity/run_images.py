"""The images of a run on which its model is checked."""

from __future__ import annotations

import numpy as np

from xfeat.export.model.progress import ProgressCounter
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.check_images import CheckImages, load_images, subsample
from xfeat.featurize.urls import Root
from xfeat.head.runs.inputs import find_images, image_digests
from xfeat.head.runs.reader import PROBABILITY_PREFIX, Run

Rows = list[dict[str, str]]


def images_to_check(
    run: Run, data: Root | None, limit: int | None = None, counter: ProgressCounter | None = None
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
    rows = run.predictions()
    rows = [row for row in rows if row["split"] == "test"] or rows
    images, rows = _read(run, rows, "images", data, limit, counter)
    columns = [PROBABILITY_PREFIX + name for name in run.class_names]
    return images, np.array([[row[column] for column in columns] for row in rows], np.float32)


def labelled_images(
    run: Run, split: str, data: Root | None, limit: int | None = None, counter: ProgressCounter | None = None
) -> tuple[CheckImages, list[str]]:
    """Read images of one split of the run, evenly spaced if there are more than ``limit``, and their class names.

    Arguments as in :func:`images_to_check`.

    Raises:
        DataError: if none of them can be read.
    """
    rows = [row for row in run.predictions() if row["split"] == split]
    images, rows = _read(run, rows, f"{split} images", data, limit, counter)
    return images, [row["label"] for row in rows]


def _read(
    run: Run, rows: Rows, what: str, data: Root | None, limit: int | None, counter: ProgressCounter | None
) -> tuple[CheckImages, Rows]:
    """Return images of these rows of predictions.csv that have not changed, and their rows."""
    by_path = {row["path"]: row for row in subsample(rows, limit)}
    root = find_images(run, data)
    what = f"the run's {len(by_path)} {what}"
    digests = image_digests(run)
    wanted = {path: digests.get(path) for path in by_path}
    images = load_images(root, wanted, what, run.feature_spec.preprocess, counter)
    return images, [by_path[path] for path in images.sha256]

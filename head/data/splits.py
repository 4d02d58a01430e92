"""The rows for training, for validation and for testing. Rows of one group are always in the same split."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed

logger = logging.getLogger(__name__)

TRAIN, VALID, TEST = range(3)
# Of five folds one tests and one validates: 60, 20 and 20 percent.
_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Row numbers of each split.

    Attributes:
        rows: for ``train``, ``valid`` and ``test`` int64 row numbers, ascending; may be empty.
        source: where the split comes from, for reports.
    """

    rows: dict[str, NDArray[np.int64]]
    source: str

    @property
    def used(self) -> tuple[NDArray[np.int64], list[str]]:
        """The row numbers of all splits, ascending, and the split of each."""
        rows = np.concatenate([self.rows[name] for name in SPLITS])
        names = np.repeat(np.array(SPLITS, object), [len(self.rows[name]) for name in SPLITS])
        order = rows.argsort()
        return rows[order], names[order].tolist()


def split_rows(cache: FeatureCache, *, seed: int) -> Split:
    """Use the split of the cache; missing parts are drawn, grouped, stratified and seeded.

    Raises:
        DataError: if there are fewer than two classes, a class has no training rows, or too few groups to divide.
    """
    check_classes(cache)
    labels, codes = np.asarray(cache.columns.label), np.asarray(cache.columns.split).copy()
    labelled = labels != NO_LABEL
    made = ""
    if (codes[labelled] == NO_SPLIT).all():
        folds = _folds(cache, np.flatnonzero(labelled), seed)
        codes[labelled] = np.select([folds == 0, folds == 1], [TEST, VALID], TRAIN)
        made = "all parts"
    elif not (codes[labelled] == VALID).any():
        train = np.flatnonzero(labelled & (codes == TRAIN))
        codes[train[_folds(cache, train, seed) == 0]] = VALID
        made = "valid from train"
    rows = {name: np.flatnonzero(labelled & (codes == code)) for code, name in enumerate(SPLITS)}
    _check(cache, rows["train"])
    _warn_missing_classes(cache, rows)
    left_out = len(cache) - int(cache.excluded.sum()) - sum(map(len, rows.values()))
    if left_out:
        logger.warning("%d images without label or split are left out", left_out)
    if not len(rows["test"]):
        logger.warning("there is no test split: the metrics below are those of the validation split")
    source = "the folders of the data set"
    if made:
        source = f"made by xfeat ({made}; grouped, stratified, seed {seed})"
        logger.info("split %s", source)
    return Split(rows, source)


def check_classes(cache: FeatureCache) -> None:
    """Raise a DataError unless there are images of two classes or more."""
    labels = np.asarray(cache.columns.label)
    if len(present := np.unique(labels[labels != NO_LABEL])) < 2:
        raise DataError(
            "a classifier needs at least two classes",
            path=cache.path,
            found=listed(cache.class_names[code] for code in present) or "no labels",
            fix="featurize a folder with one subfolder per class, such as data/covid/ and data/normal/",
        )


def fewest_groups(labels: NDArray[np.integer], groups: NDArray[np.int64]) -> int:
    """Return the number of groups of the class with the fewest; 0 without rows."""
    return min((len(np.unique(groups[labels == label])) for label in np.unique(labels)), default=0)


def _folds(cache: FeatureCache, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the fold number, 0 to 4, of each of ``rows``."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = np.asarray(cache.columns.label)[rows], cache.group_keys[rows]
    fewest = fewest_groups(labels, groups)
    if fewest < _FOLDS:
        raise DataError(
            "too few images to divide into train, valid and test",
            path=cache.path,
            expected=f"at least {_FOLDS} patients or images of each class",
            found=f"{fewest} of the smallest class",
            fix="add images, or split them yourself into train/, valid/ and test/",
        )
    folds = np.empty(len(rows), np.int64)
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(rows, labels, groups)):
        folds[held_out] = number
    return folds


def _counted(classes: dict[str, int]) -> str:
    return listed(f"{name} {count}" for name, count in classes.items())


def _absent(cache: FeatureCache, rows: NDArray[np.int64]) -> str:
    """Name the classes of which none of the rows is."""
    present = set(np.asarray(cache.columns.label)[rows].tolist())
    return listed(name for code, name in enumerate(cache.class_names) if code not in present)


def _warn_missing_classes(cache: FeatureCache, rows: dict[str, NDArray[np.int64]]) -> None:
    for part in ("valid", "test"):
        if rows[part].size and (absent := _absent(cache, rows[part])):
            logger.warning(
                "%s: no %s image of class %s: its metrics cannot be computed%s",
                cache.path,
                {"valid": "validation"}.get(part, part),
                absent,
                ", and it does not influence which epoch is chosen" if part == "valid" else "",
            )


def _check(cache: FeatureCache, train: NDArray[np.int64]) -> None:
    if absent := _absent(cache, train):
        raise DataError(
            f"no training image of class {absent}",
            path=cache.path,
            expected="each class in the train split",
            found="; ".join(f"{part}: {_counted(classes)}" for part, classes in cache.counts.items()),
            fix="move images into the train folder, or exclude the class with xfeat featurize --classes",
        )
    if len(train) < 2:
        raise DataError(
            "too few training images: BatchNorm needs two", path=cache.path, found=str(len(train)), fix="add images"
        )

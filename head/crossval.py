"""Cross-validation: every image is tested once by a head that has seen neither it nor its patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurize.atomic import replacing
from featurize.cache import FeatureCache
from featurize.dataset import NO_LABEL
from featurize.errors import DataError
from head.fit import fit_head
from head.intervals import grouped_interval
from head.metrics import classification_metrics
from head.predictions import softmax
from head.rows import Rows, labelled_rows
from head.run import PROBABILITY_PREFIX
from head.specs import CrossvalSpec, HeadSpec, TrainSpec
from head.splits import group_keys

Progress = Callable[[int, int], None]
"""Called with heads trained and heads to train."""

# A fifth of the training rows of each fold choose the epoch.
_INNER_FOLDS = 5


class Fold(NamedTuple):
    """Row numbers (into the rows that take part) of one training."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class OutOfFold:
    """What heads say of images they have not seen.

    Attributes:
        labels: int64 (n,).
        probabilities: float32 (S, n, C), one slice a seed.
        fold: int64 (S, n), the fold that tested the row.
        groups: int64 (n,), what was kept together.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    fold: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return bool (S, n): whether the most probable class is the true one."""
        return np.asarray(self.probabilities.argmax(axis=2) == self.labels)

    def accuracy(self, *, seed: int) -> dict[str, Any]:
        """Return ``folds`` (accuracy of each fold of each seed), their ``mean`` and ``std``, and the 95 % ``interval``.

        The interval is a bootstrap over groups of the accuracy over all images.
        """
        scores = [
            float(correct[fold == number].mean())
            for correct, fold in zip(self.correct, self.fold, strict=True)
            for number in np.unique(fold)
        ]
        return {
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores, ddof=1)),
            "interval": grouped_interval(self.correct.mean(axis=0), self.groups, seed=seed),
            "folds": scores,
        }

    def metrics(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Return the metrics over all rows of all seeds together."""
        seeds, count, classes = self.probabilities.shape
        flat = self.probabilities.reshape(seeds * count, classes)
        return classification_metrics(np.tile(self.labels, seeds), flat, class_names)


@dataclass(frozen=True)
class CrossValidation:
    """A finished cross-validation.

    Attributes:
        cache: what it was made on.
        plan: how often.
        rows: int64 (n,), row numbers in the cache of the images that took part.
        grouped: whether the images carry patients or series.
        main: with whole groups in one fold.
        by_image: with every image on its own, or ``None`` if that is the same thing or was not asked for.
    """

    cache: FeatureCache
    plan: CrossvalSpec
    rows: NDArray[np.int64]
    grouped: bool
    main: OutOfFold
    by_image: OutOfFold | None

    def to_dict(self, *, seed: int) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        names = self.cache.class_names
        metrics = self.main.metrics(names)
        return {
            "accuracy": self.main.accuracy(seed=seed),
            "confusion_matrix": metrics["confusion_matrix"],
            "grouped": self.grouped,
            "folds": self.plan.folds,
            "seeds": self.plan.seeds,
            "classes": list(names),
            "images": len(self.rows),
            "groups": len(np.unique(self.main.groups)),
            "metrics": metrics,
            "by_image": None
            if self.by_image is None
            else {
                "accuracy": self.by_image.accuracy(seed=seed),
                "confusion_matrix": self.by_image.metrics(names)["confusion_matrix"],
            },
            "feature_fingerprint": self.cache.spec.fingerprint,
        }


def cross_validate(
    cache: FeatureCache,
    head: HeadSpec,
    train: TrainSpec,
    plan: CrossvalSpec,
    *,
    progress: Progress | None = None,
) -> CrossValidation:
    """Train a head per fold and seed; test each on its fold.

    All images with a label take part, whatever split the cache has. Folds are stratified and keep groups and exact
    copies together. A fifth of each fold's training rows, again whole groups, choose the epoch.

    Args:
        cache: the features.
        head: the layers.
        train: the optimisation; its seed is the first, the following are counted up.
        plan: folds and seeds.
        progress: called after each head.

    Raises:
        DataError: if there are fewer than two classes, or fewer groups of one than folds.
        CacheError: if features are not finite.
        SpecError: if training diverges.
    """
    rows = np.flatnonzero(np.asarray(cache.columns.label) != NO_LABEL)
    labels = np.asarray(cache.columns.label)[rows].astype(np.int64)
    if len(np.unique(labels)) < 2:
        raise DataError(
            "a classifier needs at least two classes", path=cache.path, mend="xfeat featurize a folder a class"
        )
    groups, alone = group_keys(cache)[rows], np.arange(len(rows))
    by_image = plan.by_image and len(np.unique(groups)) < len(groups)
    ways = [groups, alone] if by_image else [groups]
    # All folds are made before the first head is trained, so that a problem shows at once.
    plans = [[_folds(cache, labels, way, plan, train.seed + seed) for seed in range(plan.seeds)] for way in ways]
    data = labelled_rows(cache, rows)
    done, total = 0, len(ways) * plan.seeds * plan.folds

    def count_one() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    results = [
        _train_folds(data, head, train, folds, way, len(cache.class_names), count_one)
        for way, folds in zip(ways, plans, strict=True)
    ]
    grouped = any(cache.columns.group[row] for row in rows.tolist())
    return CrossValidation(cache, plan, rows, grouped, results[0], results[1] if by_image else None)


def save_out_of_fold(result: CrossValidation, path: Path) -> None:
    """Write a CSV line per image and seed: path, group, seed, fold, label, prediction, probabilities.

    Raises:
        OutputError: if it cannot be written.
    """
    import csv

    names, columns = result.cache.class_names, result.cache.columns
    header = ["path", "group", "seed", "fold", "label", "prediction", *(PROBABILITY_PREFIX + name for name in names)]
    main = result.main
    output = replacing(path, elsewhere="choose another place with --predictions")
    with output as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for seed, (fold, probabilities) in enumerate(zip(main.fold, main.probabilities, strict=True)):
            for place, row in enumerate(result.rows.tolist()):
                p = probabilities[place]
                facts = [columns.path[row], columns.group[row], seed, fold[place], names[main.labels[place]]]
                writer.writerow([*facts, names[p.argmax()], *(str(value) for value in p)])


def _train_folds(
    data: Rows,
    head: HeadSpec,
    train: TrainSpec,
    seeds: list[list[Fold]],
    groups: NDArray[np.int64],
    classes: int,
    count_one: Callable[[], None],
) -> OutOfFold:
    count = len(data.labels)
    probabilities = np.empty((len(seeds), count, classes), np.float32)
    numbers = np.empty((len(seeds), count), np.int64)
    for seed, folds in enumerate(seeds):
        spec = replace(train, seed=train.seed + seed)
        for number, fold in enumerate(folds):
            parts = [Rows(data.features[part], data.labels[part]) for part in (fold.train, fold.valid)]
            fitted = fit_head(head, spec, *parts, classes=classes)
            probabilities[seed, fold.test] = softmax(fitted.logits(data.clean[fold.test]).numpy())
            numbers[seed, fold.test] = number
            count_one()
    return OutOfFold(data.labels.numpy(), probabilities, numbers, groups)


def _folds(
    cache: FeatureCache, labels: NDArray[np.int64], groups: NDArray[np.int64], plan: CrossvalSpec, seed: int
) -> list[Fold]:
    fewest = _fewest_groups(labels, groups)
    if fewest < plan.folds:
        raise DataError(
            f"{plan.folds} folds are more than there are patients or images of a class",
            path=cache.path,
            expected=f"at least {plan.folds} groups of each class",
            found=f"{fewest} of the smallest class",
            mend=f"--folds {fewest}" if fewest >= 3 else "add images of that class",
        )
    folds = []
    for rest, test in _divide(labels, groups, plan.folds, seed):
        inner = min(_INNER_FOLDS, _fewest_groups(labels[rest], groups[rest]))
        if inner < 2 or len(np.unique(labels[rest])) < len(np.unique(labels)):
            raise DataError(
                "too few patients or images of a class to validate within a fold",
                path=cache.path,
                found=f"{fewest} of the smallest class",
                mend="add images of that class, or leave it out with xfeat featurize --classes",
            )
        kept, valid = next(_divide(labels[rest], groups[rest], inner, seed))
        folds.append(Fold(rest[kept], rest[valid], test))
    return folds


def _divide(
    labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    yield from splitter.split(labels, labels, groups)


def _fewest_groups(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> int:
    return min(len(np.unique(groups[labels == label])) for label in np.unique(labels))

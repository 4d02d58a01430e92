"""Cross-validation: every image is tested once by a head that has seen neither it nor its patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import unchanged
from xfeat.featurize.datasets.layouts import NO_LABEL
from xfeat.featurize.errors import DataError
from xfeat.featurize.specs import require
from xfeat.featurize.system.versions import library_versions
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.crossval.training import Fold, KeptAnswers, Training, answers_to_folds
from xfeat.head.data.rows import plan_reading
from xfeat.head.data.splits import check_classes, fewest_groups, group_keys
from xfeat.head.runs.names import default_name
from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TrainSpec
from xfeat.head.training.ensemble import check_groups

Progress = Callable[[int, int], None]
"""Called with heads trained and heads to train."""

# A fifth of the training rows of each fold choose the epoch.
_INNER_FOLDS = 5


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
            "ensemble": self.plan.members,
            "classes": list(names),
            "images": len(self.rows),
            "groups": len(np.unique(self.main.groups)),
            "metrics": metrics,
            "each_fold": self.main.each_fold(names),
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
    memory: MemorySpec | None = None,
    kept: KeptAnswers | None = None,
    progress: Progress | None = None,
) -> CrossValidation:
    """Train a head, or an average of heads, per fold and seed; test each on its fold.

    All images with a label take part, whatever split the cache has. Folds are stratified and keep groups and exact
    copies together. A fifth of each fold's training rows, again whole groups, choose the epoch.

    Args:
        cache: the features.
        head: the layers.
        train: the optimisation; its seed is the first, the following are counted up.
        plan: folds and seeds.
        memory: what features may take; rows that take more are read from the disk, in another order.
        kept: takes the answers to finished folds, and gives those of an earlier call; see
            :func:`xfeat.head.crossval.training.kept_answers`.
        progress: called before the first head is trained, and after each.

    Raises:
        SpecError: if there are not so many seeds.
        DataError: if there are fewer than two classes, or fewer groups of one than folds or heads to average.
        OutputError: if answers cannot be kept.
        CacheError: if features are not finite, or the file is written to in the meantime.
        DivergedError: if training diverges.
    """
    last = train.seed + plan.seeds - 1
    require(last < 2**32, "the last seed is out of range", expected="0 to 4294967295", found=last)
    rows = np.flatnonzero(np.asarray(cache.columns.label) != NO_LABEL)
    labels = np.asarray(cache.columns.label)[rows].astype(np.int64)
    check_classes(cache)
    keys = group_keys(cache)[rows]
    ways = {"grouped": keys}
    if plan.by_image and len(np.unique(keys)) < len(keys):
        ways["by-image"] = np.arange(len(rows))
    # All folds are made before the first head is trained, so that a problem shows at once.
    trainings = [
        Training(way, seed, number, fold, groups)
        for way, groups in ways.items()
        for seed in range(plan.seeds)
        for number, fold in enumerate(_folds(cache, labels, groups, plan, train.seed + seed))
    ]
    classes, total = len(cache.class_names), len(trainings)
    results = {way: _untested(labels, plan.seeds, classes, groups) for way, groups in ways.items()}
    tell = progress or (lambda done, total: None)
    with unchanged(cache):
        data = plan_reading(cache, len(rows), memory or MemorySpec()).load(cache, rows)
        fit = partial(answers_to_folds, data=data, head=head, train=train, members=plan.members, classes=classes)
        tell(0, total)
        for done, (training, answers) in enumerate((kept or KeptAnswers()).completed(trainings, fit), 1):
            result = results[training.way]
            result.probabilities[training.seed, training.fold.test] = answers
            result.fold[training.seed, training.fold.test] = training.number
            tell(done, total)
    grouped = any(cache.columns.group[row] for row in rows.tolist())
    return CrossValidation(cache, plan, rows, grouped, results["grouped"], results.get("by-image"))


def parts_folder(
    runs: Path, cache: FeatureCache, head: HeadSpec, train: TrainSpec, plan: CrossvalSpec, memory: MemorySpec
) -> Path:
    """Return where finished folds are kept: the same for all that decides about them."""
    specs = [spec.to_dict() for spec in (head, train, plan, memory)]
    versions = {name: version for name, version in library_versions().items() if name in ("torch", "scikit-learn")}
    identity = {
        "specs": specs,
        "cache_sha256": cache.content_sha256,
        "features": cache.spec.fingerprint,
        "versions": versions,
    }
    return runs / f"{default_name(identity, 'crossval')}.parts"


def _untested(labels: NDArray[np.int64], seeds: int, classes: int, groups: NDArray[np.int64]) -> OutOfFold:
    shape = (seeds, len(labels))
    return OutOfFold(labels, np.empty((*shape, classes), np.float32), np.empty(shape, np.int64), groups)


def _folds(
    cache: FeatureCache, labels: NDArray[np.int64], groups: NDArray[np.int64], plan: CrossvalSpec, seed: int
) -> list[Fold]:
    fewest = fewest_groups(labels, groups)
    if fewest < plan.folds:
        raise DataError(
            f"{plan.folds} folds are more than there are patients or images of a class",
            path=cache.path,
            expected=f"at least {plan.folds} groups of each class",
            found=f"{fewest} of the smallest class",
            fix=f"--folds {fewest}" if fewest >= 3 else "add images of that class",
        )
    folds = []
    for rest, test in _divide(labels, groups, plan.folds, seed):
        inner = min(_INNER_FOLDS, fewest_groups(labels[rest], groups[rest]))
        if inner < 2 or len(np.unique(labels[rest])) < len(np.unique(labels)):
            raise DataError(
                "too few patients or images of a class to validate within a fold",
                path=cache.path,
                found=f"{fewest} of the smallest class",
                fix="add images of that class, or leave it out with xfeat featurize --classes",
            )
        check_groups(labels[rest], groups[rest], plan.members, path=cache.path)
        kept, valid = next(_divide(labels[rest], groups[rest], inner, seed))
        folds.append(Fold(rest[kept], rest[valid], test))
    return folds


def _divide(
    labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    yield from splitter.split(labels, labels, groups)

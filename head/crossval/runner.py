"""Cross-validation: every image is tested once, by a head trained on neither this image nor its patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import unchanged
from xfeat.featurize.datasets.layouts import NO_LABEL
from xfeat.featurize.errors import DataError
from xfeat.featurize.specs import require
from xfeat.featurize.system.versions import library_versions
from xfeat.head.crossval.leave_out import Sources, left_out_folds, sources_of
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.crossval.training import Fold, FoldTraining, completed, train_folds
from xfeat.head.data.rows import plan_reading
from xfeat.head.data.splits import check_classes, fewest_groups
from xfeat.head.runs.resumable import deterministic_name
from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TrainSpec
from xfeat.head.training.ensemble import check_groups, shares_of

FoldProgress = Callable[[int, int], None]
"""Called with the number of trained heads and the total."""

_LEFT_OUT = "left-out"
# A fifth of the training rows of each fold is held out to choose the epoch.
_INNER_FOLDS = 5


@dataclass(frozen=True)
class CrossValidation:
    """A finished cross-validation.

    Attributes:
        cache: the features.
        head: the layers.
        train: the optimisation; its seed is that of the first repetition.
        plan: folds and seeds.
        rows: int64 (n,), the rows of the cache that were used.
        grouped: whether the images have groups (patients or series).
        main: predictions with whole groups in one fold.
        by_image: predictions with image-level folds; ``None`` without groups, or if not asked for.
        sources: where images come from, if each source was left out.
        left_out: predictions by heads that were trained without the source of each image.
    """

    cache: FeatureCache
    head: HeadSpec
    train: TrainSpec
    plan: CrossvalSpec
    rows: NDArray[np.int64]
    grouped: bool
    main: OutOfFold
    by_image: OutOfFold | None
    sources: Sources | None = None
    left_out: OutOfFold | None = None


def cross_validate(
    cache: FeatureCache,
    head: HeadSpec,
    train: TrainSpec,
    plan: CrossvalSpec,
    *,
    memory: MemorySpec | None = None,
    checkpoints: Path | None = None,
    progress: FoldProgress | None = None,
) -> CrossValidation:
    """Train a head, or an ensemble, per fold and seed; test each on its fold.

    All labelled images are used; the split of the cache is ignored. Folds are stratified and keep groups and exact
    copies together. A fifth of each fold's training rows, again whole groups, is held out to choose the epoch.

    Args:
        cache: the features.
        head: the layers.
        train: the optimisation; its seed is the first, the others follow it.
        plan: folds and seeds.
        memory: limit for features; more are read from the disk, in another order.
        checkpoints: where finished folds are stored, from :func:`xfeat.head.crossval.training.fold_checkpoints`.
        progress: called before the first head is trained, and after each.

    Raises:
        SpecError: if a seed is out of range.
        DataError: if there are fewer than two classes, or a class has fewer groups than there are folds or ensemble
            members.
        OutputError: if a checkpoint cannot be written.
        CacheError: if the file changes during training.
        DivergedError: if training diverges.
    """
    last = train.seed + plan.seeds - 1
    require(last < 2**32, "the last seed is out of range", expected="0 to 4294967295", found=last)
    rows = np.flatnonzero(np.asarray(cache.columns.label) != NO_LABEL)
    labels = np.asarray(cache.columns.label)[rows].astype(np.int64)
    check_classes(cache)
    keys = cache.group_keys[rows]
    divisions = {"grouped": keys}
    if plan.by_image and len(np.unique(keys)) < len(keys):
        divisions["by-image"] = np.arange(len(rows))
    # All folds are made before the first head is trained, so that problems are reported at once.
    trainings = [
        FoldTraining(division, seed, number, fold, groups)
        for division, groups in divisions.items()
        for seed in range(plan.seeds)
        for number, fold in enumerate(_folds(cache, labels, groups, plan, train.seed + seed))
    ]
    sources = None
    if plan.leave_out is not None:
        sources = sources_of(cache, rows, labels, keys, plan.leave_out, members=plan.members)
        divisions[_LEFT_OUT] = keys
        trainings += [
            FoldTraining(_LEFT_OUT, seed, number, fold, keys)
            for seed in range(plan.seeds)
            for number, fold in left_out_folds(sources, labels, keys, inner_folds=_INNER_FOLDS, seed=train.seed + seed)
        ]
    classes, total, shape = len(cache.class_names), len(trainings), (plan.seeds, len(rows))
    results = {
        name: OutOfFold(labels, np.full((*shape, classes), np.nan, np.float32), np.full(shape, -1), groups)
        for name, groups in divisions.items()
    }
    advance = progress or (lambda done, total: None)
    with unchanged(cache):
        data = plan_reading(cache, len(rows), memory or MemorySpec()).load(cache, rows)
        fit = partial(train_folds, data=data, head=head, train=train, members=plan.members, classes=classes)
        advance(0, total)
        finished = fit(trainings) if checkpoints is None else completed(checkpoints, trainings, fit, classes=classes)
        for done, (training, probabilities) in enumerate(finished, 1):
            result = results[training.division]
            result.probabilities[training.seed, training.fold.test] = probabilities
            result.fold[training.seed, training.fold.test] = training.number
            advance(done, total)
    grouped = any(cache.columns.group[row] for row in rows.tolist())
    main, by_image, left_out = (results.get(name) for name in ("grouped", "by-image", _LEFT_OUT))
    assert main is not None
    return CrossValidation(cache, head, train, plan, rows, grouped, main, by_image, sources, left_out)


def checkpoint_folder(
    runs: Path, cache: FeatureCache, head: HeadSpec, train: TrainSpec, plan: CrossvalSpec, memory: MemorySpec
) -> Path:
    """Return where finished folds are stored; the name follows from everything that determines their results."""
    identity = {
        "specs": [spec.to_dict() for spec in (head, train, plan, memory)],
        "cache_sha256": cache.corrected_sha256,
        "features": cache.spec.fingerprint,
        "versions": {name: library_versions()[name] for name in ("torch", "scikit-learn")},
    }
    return runs / f"{deterministic_name(identity, 'crossval')}.parts"


def _folds(
    cache: FeatureCache, labels: NDArray[np.int64], groups: NDArray[np.int64], plan: CrossvalSpec, seed: int
) -> list[Fold]:
    fewest = fewest_groups(labels, groups)
    if fewest < plan.folds:
        raise DataError(
            f"too few patients or images for {plan.folds} folds",
            path=cache.path,
            expected=f"at least {plan.folds} groups of each class",
            found=f"{fewest} of the smallest class",
            fix=f"--folds {fewest}" if fewest >= 3 else "add images of that class",
        )
    folds = []
    for rest, test in shares_of(labels, groups, plan.folds, seed=seed):
        inner = min(_INNER_FOLDS, fewest_groups(labels[rest], groups[rest]))
        if inner < 2 or len(np.unique(labels[rest])) < len(np.unique(labels)):
            raise DataError(
                "too few patients or images of a class to hold out validation images within a fold",
                path=cache.path,
                found=f"{fewest} of the smallest class",
                fix="add images of that class, or leave it out with xfeat featurize --classes",
            )
        check_groups(labels[rest], groups[rest], plan.members, path=cache.path)
        train, valid = shares_of(labels[rest], groups[rest], inner, seed=seed)[0]
        folds.append(Fold(rest[train], rest[valid], test))
    return folds

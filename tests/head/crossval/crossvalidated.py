"""What the tests of cross-validation share."""

from __future__ import annotations

import numpy as np

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.crossval.runner import CrossValidation, cross_validate
from xfeat.head.specs import CrossvalSpec, HeadSpec, TrainSpec

HEAD, TRAIN = HeadSpec(hidden=()), TrainSpec(epochs=2, lr=0.02)
SHORT = ["crossval", "--folds", "2", "--epochs", "1", "--hidden", "linear"]


def validate(cache: FeatureCache, **plan: int) -> CrossValidation:
    return cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3, **plan))


def patients(count: int, images: int) -> tuple[list[str], list[int]]:
    """Return groups and labels of ``count`` patients with some images each."""
    rows = np.repeat(np.arange(count), images)
    return [f"p{row}" for row in rows], (rows % 2).tolist()


def untrainable(*arguments: object, **options: object) -> None:
    raise AssertionError("nothing is to be trained")

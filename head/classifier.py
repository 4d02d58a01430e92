"""The head as a scikit-learn classifier, for pipelines, grid searches and so on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from xfeat.featurize.errors import ArgumentError, DataError
from xfeat.featurize.keyword_settings import spec_from
from xfeat.featurize.specs import require
from xfeat.head.data.rows import as_rows
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.ensemble import fit_ensemble, shares_of
from xfeat.head.training.fit import FittedHead, fit_head

_HEAD, _TRAIN = HeadSpec(), TrainSpec()


@dataclass(eq=False, repr=False)  # both as scikit-learn defines them
class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """BatchNorm, Linear and ReLU layers, trained with Adam; the defaults are the tutorial's.

    Args:
        hidden, dropout, feature_dropout: the layers, as in :class:`xfeat.head.specs.HeadSpec`.
        epochs, lr, batch_size, weight_decay, label_smoothing, focal_gamma, schedule, patience, average: the
            optimisation, as in :class:`xfeat.head.specs.TrainSpec`.
        class_weight: ``None``, ``balanced``, or a dict of class to weight.
        validation_fraction: fraction of the rows given to ``fit`` that is held out, stratified, to choose the epoch;
            with 0, or too few rows to hold out, the last epoch is used.
        ensemble: number of heads, each holding out a different part of the rows to choose its epoch, averaged into one
            head; with more than one, ``validation_fraction`` is ignored.
        seed: of everything random; the same seed gives the same bits. ``None`` is 0; a generator draws one.

    Attributes:
        classes_: sorted labels.
        n_features_in_: number of features.
        n_iter_: epochs trained.
        best_epoch_: epoch whose weights are used, from 1; of an ensemble the median.
        history_: one record per epoch; of an ensemble the means.
        head_: the trained torch module, from float32 (n, D) to logits (n, C).
    """

    # The fields are scikit-learn's contract: one attribute per argument, unchanged and unchecked until fit.
    hidden: tuple[int, ...] = _HEAD.hidden
    _: KW_ONLY
    dropout: float = _HEAD.dropout
    feature_dropout: float = _HEAD.feature_dropout
    epochs: int = _TRAIN.epochs
    lr: float = _TRAIN.lr
    batch_size: int = _TRAIN.batch_size
    weight_decay: float = _TRAIN.weight_decay
    label_smoothing: float = _TRAIN.label_smoothing
    focal_gamma: float = _TRAIN.focal_gamma
    schedule: str = _TRAIN.schedule
    patience: int = _TRAIN.patience
    average: float = _TRAIN.average
    class_weight: str | dict[Any, float] | None = None
    validation_fraction: float = 0.2
    ensemble: int = 1
    seed: int | np.random.RandomState | None = 0

    def fit(self, X: Any, y: Any) -> Self:
        """Train on features ``X`` (n, D) and labels ``y`` (n,) of any type.

        Args:
            X: float32 (n, D).
            y: n labels of any type.

        Raises:
            DataError, ArgumentError: if they are unusable; also a ValueError or TypeError, as scikit-learn raises.
            SpecError: if a setting is out of range.
            DivergedError: if training diverges.
        """
        with _readable_errors():
            X, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
            check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"a classifier needs at least two classes; there is only one class: {self.classes_[0]}")
        head, train = self._specs()
        members = isinstance(self.ensemble, Integral) and self.ensemble >= 1
        require(members, "too few ensemble members", expected="1 or more", found=self.ensemble)
        require(
            isinstance(self.validation_fraction, Real) and 0 <= self.validation_fraction < 1,
            "validation_fraction out of range",
            expected="0 ≤ validation_fraction < 1",
            found=self.validation_fraction,
        )
        rows = as_rows(X, codes)
        classes, weights = len(self.classes_), None
        if self.class_weight is not None:
            with _readable_errors():
                per_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            weights = torch.from_numpy(np.asarray(per_class, np.float32))
        fitted: FittedHead
        if self.ensemble > 1:
            shares = shares_of(codes, np.arange(len(codes)), self.ensemble, seed=train.seed)
            fitted = fit_ensemble(head, train, shares, rows, classes=classes, class_weights=weights)
        else:
            trained, held_out = self._divide(codes, train.seed)
            valid = rows.take(held_out) if len(held_out) else None
            fitted = fit_head(head, train, rows.take(trained), valid, classes=classes, class_weights=weights)
        self.head_ = fitted.model
        self.history_ = fitted.history
        self.best_epoch_ = fitted.best_epoch
        self.n_iter_ = len(fitted.history)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return logits (n, C); for two classes their difference (n,), positive for the second class."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return probabilities (n, C), columns as in ``classes_``."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row."""
        logits = self._logits(X)
        labels: NDArray[Any] = self.classes_[logits.argmax(axis=1)]
        return labels

    def _logits(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        with _readable_errors():
            X = validate_data(self, X, dtype=np.float32, reset=False)
        writable = np.require(X, requirements=["C", "W"])  # torch warns about read-only arrays, such as mapped files
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.head_(torch.from_numpy(writable)).numpy()
        return logits

    def _specs(self) -> tuple[HeadSpec, TrainSpec]:
        settings = {**vars(self), "seed": _seed(self.seed)}
        head = {field.name: settings[field.name] for field in fields(HeadSpec)}
        # class weights may be a dict here, which TrainSpec has no form for
        train = {field.name: settings[field.name] for field in fields(TrainSpec) if field.name != "class_weight"}
        return spec_from(HeadSpec, head), spec_from(TrainSpec, train)

    def _divide(self, codes: NDArray[np.integer], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return training and validation rows; no validation rows if a class is too rare to be in both."""
        every = np.arange(len(codes))
        held_out = round(len(codes) * self.validation_fraction)
        classes = len(self.classes_)
        if held_out < classes or len(codes) - held_out < classes or np.bincount(codes).min() < 2:
            return every, every[:0]
        splitter = StratifiedShuffleSplit(1, test_size=held_out, random_state=seed)
        trained, valid = next(splitter.split(every, codes))
        return trained, valid


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Give scikit-learn's errors of unusable arrays the root of this project's."""
    try:
        yield
    except ValueError as error:
        raise DataError(str(error)) from error
    except TypeError as error:
        raise ArgumentError(str(error)) from error


def _seed(seed: int | np.random.RandomState | None) -> int:
    """Return a seed; by scikit-learn's convention a generator gives a new one each time."""
    if isinstance(seed, np.random.RandomState):
        return int(seed.randint(2**31))
    return 0 if seed is None else seed

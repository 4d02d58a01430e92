"""A fitted classifier of scikit-learn as a head: scalers are folded into the first layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xfeat.featurize.errors import ArgumentError, DataError
from xfeat.featurize.text import quote

_ACCEPTED = (
    "HeadClassifier, LogisticRegression, or another linear classifier with predict_proba, or a pipeline of it with "
    "StandardScaler, RobustScaler, MinMaxScaler or MaxAbsScaler"
)
_SCALERS = ("StandardScaler", "RobustScaler", "MinMaxScaler", "MaxAbsScaler")
Array = NDArray[np.float64]


class ClassifierHead(NamedTuple):
    """What an exported model needs of a classifier.

    Attributes:
        head: from features (N, D) to logits (N, C), in evaluation mode.
        class_names: ``classes_`` as text.
        dim: number of features D.
        name: of the classifier's class.
        extractor: the FeatureExtractor that the classifier begins with, which takes images instead of features.
    """

    head: nn.Sequential
    class_names: tuple[str, ...]
    dim: int
    name: str
    extractor: Any


def classifier_head(classifier: Any) -> ClassifierHead:
    """Convert a fitted classifier.

    Of a search, the best estimator is taken; of a pipeline that begins with a FeatureExtractor, the rest.

    Raises:
        ArgumentError: if it is of another kind.
        DataError: if it is not fitted, or to the features in another order, or a class has no name of one line.
    """
    steps = list(_steps(classifier))
    extractor = steps.pop(0) if steps and type(steps[0]).__name__ == "FeatureExtractor" else None
    *scalers, last = steps or [classifier]
    for step in steps:
        _require_order(step)
    mean, scale = _scaling(scalers)
    if not hasattr(last, "classes_"):
        if hasattr(last, "fit"):
            fix = "refit=True, then fit(X, y)" if hasattr(last, "cv_results_") else "classifier.fit(X, y)"
            raise DataError("the classifier is not fitted", found=type(last).__name__, fix=fix)
        raise _refused(last)
    if hasattr(last, "head_"):
        head = _scaled_head(last.head_, mean, scale)
    elif all(hasattr(last, name) for name in ("coef_", "intercept_", "predict_proba")):
        _require_softmax(last)
        head = nn.Sequential(_linear(last, mean, scale))
    else:
        raise _refused(last)
    names = tuple(str(name) for name in last.classes_)
    for name in names:
        if not name.strip() or name.splitlines() != [name]:
            what = "the name of a class is empty" if not name.strip() else "the name of a class goes over several lines"
            fix = "fit the classifier to labels with names of one line"
            raise DataError(what, expected="text in one line", found=quote(repr(name)), fix=fix)
    return ClassifierHead(head.eval(), names, int(last.n_features_in_), type(last).__name__, extractor)


def _steps(estimator: Any) -> Any:
    """Yield the steps of pipelines within pipelines, without those that do nothing."""
    if hasattr(estimator, "best_estimator_"):
        yield from _steps(estimator.best_estimator_)
    elif hasattr(estimator, "named_steps"):
        for _, step in estimator.steps:
            yield from _steps(step)
    elif estimator not in (None, "passthrough"):
        yield estimator


def _require_order(step: Any) -> None:
    """Refuse a table's columns f0, f1, … in another order: an exported model has them as the extractor does."""
    names = [str(name) for name in getattr(step, "feature_names_in_", ())]
    ordered = [f"f{number}" for number in range(len(names))]
    if names != ordered and set(names) == set(ordered):
        other = next(found for wanted, found in zip(ordered, names, strict=True) if wanted != found)
        raise DataError(
            "the classifier was fitted to the features in another order",
            expected=f"columns {', '.join(ordered[:3])}, … as cache.to_pandas() has them",
            found=f"{other} in the place of f{names.index(other)}",
            fix=f"fit it to table[[f'f{{i}}' for i in range({len(names)})]], or to the array of cache.arrays()",
        )


def _refused(step: Any) -> ArgumentError:
    return ArgumentError("this classifier cannot be exported", expected=_ACCEPTED, found=type(step).__name__)


def _scaling(scalers: list[Any]) -> tuple[Array, Array]:
    """Return mean and scale of all scalers in a row: float64 (D,), or (1,) without one."""
    mean, scale = np.zeros(1), np.ones(1)
    for scaler in scalers:
        kind = type(scaler).__name__
        if kind not in _SCALERS or getattr(scaler, "clip", False):
            raise _refused(scaler)
        if not hasattr(scaler, "n_features_in_"):
            raise DataError("the scaler is not fitted", found=kind, fix="pipeline.fit(X, y)")
        # What it maps to 0 and to 1.
        ends = np.repeat([[0.0], [1.0]], scaler.n_features_in_, axis=1)
        zero, one = np.asarray(scaler.inverse_transform(ends), np.float64)
        mean, scale = mean + scale * zero, scale * (one - zero)
    return mean, scale


def _require_softmax(classifier: Any) -> None:
    """Refuse one-vs-rest and the like, on points where no class is certain: elsewhere they hardly differ."""
    wanted = np.random.default_rng(0).normal(size=(16, len(classifier.coef_)))
    points = (wanted - classifier.intercept_) @ np.linalg.pinv(np.asarray(classifier.coef_, np.float64)).T
    logits = np.asarray(classifier.decision_function(points), np.float64)
    if logits.ndim == 1:
        logits = np.stack([-logits, logits], axis=1) / 2
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    if not np.allclose(classifier.predict_proba(points), powers / powers.sum(axis=1, keepdims=True), atol=1e-5):
        raise ArgumentError(
            "the probabilities of this classifier are not the softmax of a linear function",
            expected="a classifier of several classes that is fitted to all of them at once",
            found=type(classifier).__name__,
            fix="LogisticRegression with its default solver, or HeadClassifier",
        )


def _linear(classifier: Any, mean: Array, scale: Array) -> nn.Linear:
    """Return a layer whose softmax has the probabilities of a linear classifier.

    Of two classes, the classifier has the logit of the second; half of it stands for each, so that both have a heatmap.
    """
    weight = np.asarray(classifier.coef_, np.float64)
    bias = np.broadcast_to(np.asarray(classifier.intercept_, np.float64), len(weight))
    if len(classifier.classes_) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    if len(weight) != len(classifier.classes_):
        raise _refused(classifier)
    bias = bias - weight @ np.broadcast_to(mean / scale, weight.shape[1])
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.weight.data, layer.bias.data = (
        torch.from_numpy(np.ascontiguousarray(values, np.float32)) for values in (weight / scale, bias)
    )
    return layer


def _scaled_head(head: nn.Sequential, mean: Array, scale: Array) -> nn.Sequential:
    """Fold scalers into the BatchNorm that a head begins with."""
    layers = [layer for layer in head if not isinstance(layer, nn.Dropout)]
    first = layers[0]
    assert isinstance(first, nn.BatchNorm1d)
    assert first.running_mean is not None
    assert first.running_var is not None
    folded = nn.BatchNorm1d(first.num_features, eps=0.0)
    folded.load_state_dict(first.state_dict())
    wider = torch.from_numpy(np.broadcast_to(scale, first.num_features).copy())
    folded.running_mean = (torch.from_numpy(mean) + wider * first.running_mean).float()
    folded.running_var = (wider**2 * (first.running_var + first.eps)).float()
    return nn.Sequential(folded, *layers[1:])

"""A run tested on an external data set, and the drop from its own test images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_LABEL, Dataset
from xfeat.featurize.errors import DataError, MismatchError, RunError, XfeatError
from xfeat.featurize.text import listed
from xfeat.head.data.pooling import pooled
from xfeat.head.data.rows import collected, labelled_blocks
from xfeat.head.evaluation.clustered import Figure, interval_of_difference
from xfeat.head.evaluation.intervals import wilson
from xfeat.head.evaluation.metrics import Metrics, classification_metrics
from xfeat.head.evaluation.operating_point import OperatingPoint, threshold_metrics
from xfeat.head.evaluation.predictions import Predictions
from xfeat.head.evaluation.study import Study, cases_of, study
from xfeat.head.evaluation.subgroups import Bins, check_bins, subgroup_figures
from xfeat.head.runs.inputs import open_cache_of
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

EXTERNAL = "external"


@dataclass(frozen=True)
class Evaluation:
    """The result of a run on an external data set.

    Attributes:
        cache: features of the data set.
        predictions: of the images of classes that the run was trained on.
        operating_point: the run's threshold on this data set, or ``None`` if it has none.
        left_out: number of images without a label, or of a class the run was not trained on.
        seen: paths of images with the same content as a training image; ``None`` if the run's cache or predictions
            are missing.
        tested: paths of images with the same content as a test image of the run, likewise.
        statistics: see :func:`xfeat.head.evaluation.study.study`.
        subgroups: see :func:`xfeat.head.evaluation.subgroups.subgroup_figures`.
        folder: where it was saved, if it was.
    """

    run: Run
    cache: FeatureCache
    predictions: Predictions
    metrics: Metrics
    operating_point: dict[str, Any] | None
    left_out: int
    seen: list[str] | None
    tested: list[str] | None
    statistics: Study
    subgroups: dict[str, Any]
    folder: Path | None = None

    @property
    def internal(self) -> Metrics | None:
        """The run's metrics on its own test split; ``None`` if it had none."""
        return self.run.metrics.get("test")

    def _drop(self, internal: Metrics) -> dict[str, Any]:
        home, curve = self.run.statistics.get("test"), self.statistics["decision_curve"]
        drop = drop_between(internal, self.metrics)
        name = None if curve is None else curve["class"]
        return {**drop, "figures": None if home is None else figures_drop(home, self.statistics, name)}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        internal = self.internal
        return {
            "run": str(self.run.folder),
            "data": str(self.cache.path),
            "classes": list(self.run.class_names),
            "images": len(self.predictions),
            "left_out": self.left_out,
            "seen_in_training": self.seen,
            "seen_in_test": self.tested,
            "metrics": self.metrics,
            "operating_point": self.operating_point,
            "statistics": self.statistics,
            "subgroups": self.subgroups,
            "internal": internal,
            "drop": None if internal is None else self._drop(internal),
        }


def figures_drop(home: Study, away: Study, name: str | None) -> dict[str, Any]:
    """Return home minus away of ``accuracy``, ``auc``, and the ``sensitivity`` and ``specificity`` of a class.

    Args:
        home: of :func:`xfeat.head.evaluation.study.study`, on the run's own test images.
        away: the same on other images.
        name: of the class.

    Returns:
        Of each figure a ``value`` and its 95 % ``interval``, both ``None`` where it is undefined.
    """
    pairs = {"accuracy": (home["accuracy"], away["accuracy"]), "auc": (home["auc"], away["auc"])}
    if name is not None:
        one, other = home["classes"][name], away["classes"][name]
        pairs["sensitivity"] = one["sensitivity"], other["sensitivity"]
        pairs["specificity"] = one["specificity"], other["specificity"]
    return {key: _difference(*pair) for key, pair in pairs.items()}


def _difference(first: Figure, second: Figure) -> Figure:
    one, other, ends, others = first["value"], second["value"], first["interval"], second["interval"]
    if one is None or other is None:
        return Figure(value=None, interval=None)
    if ends is None or others is None:
        return Figure(value=one - other, interval=None)
    return Figure(value=one - other, interval=interval_of_difference(one, ends, other, others))


def evaluate_run(run: Run, cache: FeatureCache, *, bins: Bins | None = None) -> Evaluation:
    """Test a run on all labelled images of a cache; the split is ignored.

    Classes are matched by name. Temperature and threshold are the run's.

    Args:
        run: the run.
        cache: features made with its settings.
        bins: of numbers in the further columns of the cache, for the figures of subgroups.

    Raises:
        SpecError: if ``bins`` are not of columns of numbers.
        MismatchError: if the features were made with other settings than the run's.
        DataError: if none of the images has a class this run was trained on.
        RunError: if the head's weights are missing or damaged, or its predictions are not finite.
    """
    check_bins(bins, cache.extra)
    cache = pooled(cache, run.feature_spec.pooling)
    _check_spec(run, cache)
    codes = {name: code for code, name in enumerate(run.class_names)}
    translation = np.array([codes.get(name, NO_LABEL) for name in cache.class_names] + [NO_LABEL], np.int64)
    labels = translation[np.asarray(cache.columns.label)]  # -1, no label, picks the last entry
    rows = np.flatnonzero(labels != NO_LABEL)
    if not len(rows):
        raise _no_common_class(run, cache.class_names, cache.path)
    predictions = _predict(run, cache, rows, labels[rows])
    seen, tested = _seen_by_run(run, cache, rows)
    if seen:
        logger.warning(
            "%d of %d images are training images of the run: these metrics are optimistically biased",
            len(seen),
            len(rows),
        )
    if tested:
        logger.warning("%d of %d images are test images of the run, and not from elsewhere", len(tested), len(rows))
    if left_out := len(cache) - len(rows):
        logger.warning("%d images are left out: no label, or a class this run was not trained on", left_out)
    cases = cases_of(predictions, run.class_names)
    return Evaluation(
        run=run,
        cache=cache,
        predictions=predictions,
        metrics=classification_metrics(predictions.labels, predictions.probabilities, run.class_names),
        operating_point=_at_threshold(predictions, run.operating_point),
        left_out=left_out,
        seen=seen,
        tested=tested,
        statistics=study(cases),
        subgroups=subgroup_figures(cases, cache.extra, rows, bins),
    )


def check_classes_match(run: Run, dataset: Dataset, data: Path) -> None:
    """Check that a run can be tested on a data set, before it is featurized.

    Raises:
        DataError: if none of the images has a class this run was trained on.
    """
    shared = {code for code, name in enumerate(dataset.class_names) if name in run.class_names}
    if not any(entry.label in shared for entry in dataset.entries):
        raise _no_common_class(run, dataset.class_names, data)


def _no_common_class(run: Run, class_names: Sequence[str], path: Path) -> DataError:
    return DataError(
        "none of the images has a class this run was trained on",
        path=path,
        expected=listed(run.class_names),
        found=listed(class_names) or "no labels",
        fix="name the class folders as in the training data",
    )


def drop_between(internal: Metrics, external: Metrics) -> dict[str, Any]:
    """Return internal minus external ``accuracy`` (with a confidence interval), ``balanced_accuracy`` and ``auc``."""
    ends = [(part["accuracy"], wilson(part["accuracy"], part["images"])) for part in (internal, external)]
    auc, other_auc = internal["auc"], external["auc"]
    return {
        "accuracy": internal["accuracy"] - external["accuracy"],
        "accuracy_interval": interval_of_difference(*ends[0], *ends[1]),
        "balanced_accuracy": internal["balanced_accuracy"] - external["balanced_accuracy"],
        "auc": None if auc is None or other_auc is None else auc - other_auc,
    }


def _check_spec(run: Run, cache: FeatureCache) -> None:
    # Only the clean view is used, and features rounded to half precision are accepted.
    wanted, found = (replace(spec, views=1, dtype="float32") for spec in (run.feature_spec, cache.spec))
    if wanted.fingerprint != found.fingerprint:
        raise MismatchError(
            "the features were made with other settings than those of the run",
            path=cache.path,
            expected=run.feature_spec.describe(),
            found=cache.spec.describe(),
            fix="give the images, which are then featurized with the settings of the run: "
            f"xhead eval {run.folder} DATA",
        )


def _predict(run: Run, cache: FeatureCache, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Predictions:
    import torch

    head = run.load_head()
    with torch.inference_mode():
        blocks = (head(block) for part in labelled_blocks(cache, rows) for block in part.clean_blocks())
        logits = collected(blocks, len(rows))
    if not logits.isfinite().all():
        raise RunError("the head's predictions are not finite", path=run.folder, fix="train the run again")
    point = run.operating_point
    return Predictions(
        paths=[cache.columns.path[row] for row in rows.tolist()],
        split=[EXTERNAL] * len(rows),
        labels=labels,
        logits=logits.numpy(),
        groups=cache.group_keys[rows],
        temperature=run.temperature,
        positive=None if point is None else run.class_names.index(point.positive),
        threshold=0.5 if point is None else point.threshold,
    )


def _at_threshold(predictions: Predictions, point: OperatingPoint | None) -> dict[str, Any] | None:
    if point is None:
        return None
    positive = predictions.labels == predictions.positive
    return {
        "positive": point.positive,
        "threshold": point.threshold,
        EXTERNAL: threshold_metrics(
            positive, predictions.probabilities[:, predictions.positive], point.threshold, predictions.patients
        ),
        "internal": point.test,
    }


def _seen_by_run(
    run: Run, cache: FeatureCache, rows: NDArray[np.int64]
) -> tuple[list[str], list[str]] | tuple[None, None]:
    """Return paths of images with the content of a training or validation image of the run, and of a test image."""
    digest = run.cache["content_sha256"]
    try:
        trained = cache if cache.content_sha256 == digest else open_cache_of(run)
        split_of = {row["path"]: row["split"] for row in run.predictions()}
    except XfeatError as error:
        logger.warning("cannot check whether the run was trained on these images: %s: %s", error.file, error.what)
        return None, None
    if trained.content_sha256 != digest:
        logger.warning(
            "%s has changed since the run was trained on it: training images removed from it are not recognised",
            trained.path,
        )
    columns = [*zip(trained.columns.path, trained.columns.sha256, strict=True)]
    learned = {sha256 for path, sha256 in columns if split_of.get(path) in ("train", "valid")}
    tested = {sha256 for path, sha256 in columns if split_of.get(path) == "test"} - learned
    images = [(cache.columns.path[row], cache.columns.sha256[row]) for row in rows.tolist()]
    return [path for path, sha256 in images if sha256 in learned], [path for path, sha256 in images if sha256 in tested]

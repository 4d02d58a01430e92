"""From a fitted classifier and the extractor of its features to ``model.onnx``, with the same checks as a run."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from xfeat.export.build.classifier_head import ClassifierHead, classifier_head
from xfeat.export.build.ood_score import OodScore, fit_ood_score, fit_ood_threshold
from xfeat.export.build.reference_model import reference_model
from xfeat.export.export import Export, Parts, count_steps, write_checked
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Progress, ProgressCounter
from xfeat.export.model.score_bins import validation_bins
from xfeat.export.parity.given_images import GivenCheckImages, check_images_of
from xfeat.export.publish import output_paths
from xfeat.export.specs import ExportSpec
from xfeat.featurize.errors import ArgumentError, DataError, MismatchError, ParityError, SpecError
from xfeat.featurize.images.given import as_images

if TYPE_CHECKING:
    from xfeat.featurize.extractor import FeatureExtractor

# Each so manieth row of the training features chooses the threshold of the out-of-distribution score.
_HELD_OUT = 5


@contextmanager
def _unnamed_features() -> Iterator[None]:
    """Keep quiet that arrays have no names of columns: they are in the order of the table that was fitted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        yield


@_unnamed_features()
def export_classifier(
    classifier: Any,
    extractor: FeatureExtractor,
    output: Path,
    *,
    check: Any,
    ood: Any = None,
    positive: str | None = None,
    threshold: float | None = None,
    spec: ExportSpec,
    progress: Progress | None = None,
) -> Export:
    """Export a fitted classifier with the network of its features; arguments as for :func:`xfeat.export_onnx`.

    Raises:
        ArgumentError: if the classifier is of a kind that cannot be exported, or an argument of another type.
        DataError: if it is not fitted, a class has no name of one line, or there are too few features for the
            out-of-distribution score.
        MismatchError: if it was fitted to other features than the extractor's.
        SpecError: if two classes have one name, the threshold has no class, or the range of 16-bit images is unknown.
        ImageError: if an image cannot be read.
        ParityError: if a prediction differs; no file is left or replaced.
        OutputError: if the files cannot be written.
    """
    output_paths(output)
    if not hasattr(extractor, "weights_found"):
        raise ArgumentError("no extractor", expected="a FeatureExtractor", found=type(extractor).__name__)
    converted = classifier_head(classifier)
    images = as_images(check)
    _require_known_range(extractor, images)
    feature_spec = extractor.spec
    score, scores, digest = (None, None, "") if ood is None else _fit_ood(ood, converted.dim)
    metadata = ModelMetadata(
        variant="full",
        class_names=converted.class_names,
        feature_spec=feature_spec,
        positive=positive,
        threshold=threshold,
        cache_sha256=digest,
        head_sha256=hashlib.sha256(save(converted.head.state_dict())).hexdigest(),
        run=converted.name,
        ood_threshold=None if scores is None else fit_ood_threshold(scores),
        validation_bins=validation_bins(None, converted.class_names, positive, scores),
    )
    counter = ProgressCounter(progress, partial(count_steps, metadata))
    checked = check_images_of(images, feature_spec.preprocess, spec.max_check_images, counter)
    recorded = _predicted(classifier, extractor, converted, checked)
    reference = reference_model(feature_spec, extractor.weights_found, converted.head, 1.0)
    parts = Parts(reference, score, metadata, checked, recorded)
    return write_checked(output, parts, spec, counter, disagreement=_other_probabilities)


def _require_known_range(extractor: FeatureExtractor, images: list[Any]) -> None:
    """Refuse 16-bit images of fewer bits, if neither ``fit`` nor the user has said which."""
    bits = extractor.unknown_range(images)
    if bits is not None and bits < 16:
        raise SpecError(
            "the range of 16-bit images is unknown, which a model has to fix",
            expected=f"FeatureExtractor(..., grey_bits={bits}), or extractor.fit on the training images",
            found=f"images with {bits}-bit levels",
        )


def _fit_ood(features: Any, dim: int) -> tuple[OodScore, NDArray[np.float32], str]:
    try:
        X: NDArray[np.float32] = np.asarray(features, np.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentError("ood: no training features", expected=f"an array (n, {dim})", found=str(error)) from error
    if X.ndim != 2 or X.shape[1] != dim:
        raise ArgumentError("ood: no training features", expected=f"an array (n, {dim})", found=str(X.shape))
    held_out = np.arange(len(X)) % _HELD_OUT == 0
    if held_out.sum() < 2 or not np.isfinite(X).all():
        what = "10 rows or more, of finite numbers"
        raise DataError("ood: the training features cannot be used", expected=what, found=f"{len(X)} rows")
    score = fit_ood_score(X[~held_out])
    digest = hashlib.sha256(X.tobytes()).hexdigest()
    return score, score(torch.from_numpy(X[held_out])).numpy(), digest


def _predicted(
    classifier: Any, extractor: FeatureExtractor, converted: ClassifierHead, images: GivenCheckImages
) -> NDArray[np.float32]:
    """Return the classifier's own probabilities of the images, which the model is compared with."""
    if converted.extractor is not None:
        if converted.extractor.spec != extractor.spec:
            raise MismatchError(
                "the classifier's own extractor computes other features than the extractor",
                expected=converted.extractor.spec.describe(),
                found=extractor.spec.describe(),
                fix="export_onnx(pipeline, pipeline[0], …); of a search, search.best_estimator_[0]",
            )
        return np.asarray(classifier.predict_proba(images.given), np.float32)
    features = extractor.transform(images.given)
    if features.shape[1] != converted.dim:
        raise MismatchError(
            "the classifier was fitted to other features than the extractor's",
            expected=f"{converted.dim} features",
            found=f"{features.shape[1]} of {extractor.spec.describe()}",
            fix="classifier.fit(extractor.transform(images), labels)",
        )
    return np.asarray(classifier.predict_proba(features), np.float32)


def _other_probabilities(result: Export) -> ParityError:
    return ParityError(
        "the exported model does not give the classifier's probabilities; nothing was written",
        path=result.files["full"],
        expected=f"predict_proba of the extractor's features, within {result.training.tolerance}",
        found=result.training.found,
        fix="an extractor of another precision than float32 needs a tolerance: export_onnx(..., tolerance=0.01)",
    )

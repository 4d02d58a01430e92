"""A classifier on labelled images: probabilities, figures with intervals by patient, and a table per image."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.file import open_model
from xfeat.export.model.interface import float32_threshold
from xfeat.export.model.progress import Progress
from xfeat.featurize.datasets.layouts import Dataset, ImageEntry
from xfeat.featurize.errors import DataError, SpecError
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.specs import check_decision
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.text import first_ten, listed
from xfeat.featurize.urls import Root
from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.study import Cases, study
from xfeat.serve.evaluation.foreign import ForeignClassifier
from xfeat.serve.evaluation.specs import ClassifierSpec
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.reading import content_of
from xfeat.serve.inference.results import SkippedImage

if TYPE_CHECKING:
    from minisign import PublicKey

logger = logging.getLogger(__name__)

UNLABELLED = "no label"


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """The result of a model on labelled images.

    Attributes:
        model: the file.
        data: where the images are.
        paths: of the n images that were classified.
        cases: their labels, probabilities and patients, and the rule that decides.
        left_out: number of images without a label, and of each class that the model does not have.
        skipped: images that could not be read, or that the model failed on.
        grouped: whether the patients of the images are known.
    """

    model: Path
    data: Root
    paths: Sequence[str]
    cases: Cases
    left_out: dict[str, int]
    skipped: Sequence[SkippedImage]
    grouped: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types: the metrics of ``xhead eval``, and a study at the threshold."""
        cases = self.cases
        return {
            "model": str(self.model),
            "data": str(self.data),
            "classes": list(cases.class_names),
            "positive": None if cases.positive is None else cases.class_names[cases.positive],
            "threshold": cases.threshold,
            "images": len(self.paths),
            "grouped": self.grouped,
            "left_out": self.left_out,
            "skipped": [image.to_dict() for image in self.skipped],
            "metrics": classification_metrics(cases.labels, cases.probabilities, cases.class_names),
            "study": study(cases),
        }

    def write_csv(self, path: Path) -> None:
        """Write path, label, predicted class and probabilities of each image.

        Raises:
            OutputError: if the file cannot be written.
        """
        names = self.cases.class_names
        with replacing(path) as partial_file, partial_file.open("w", newline="", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "prediction", *(f"p_{name}" for name in names)])
            columns = self.cases.labels, self.cases.decisions, self.cases.probabilities
            for image, label, decision, row in zip(self.paths, *columns, strict=True):
                table.writerow([image, names[label], names[decision], *map(str, row)])


def open_classifier(
    path: Path,
    spec: ClassifierSpec | None,
    *,
    batch_size: int | None = None,
    allow_unverified: bool = False,
    require_signature: PublicKey | None = None,
    **placing: Any,
) -> Predictor:
    """Open a model of this project, or the one that ``spec`` describes.

    Args:
        path: the model.
        spec: what describes it, or ``None``.
        batch_size: as for :class:`Predictor`, like the next two.
        allow_unverified: for models of this project.
        require_signature: for models of this project.
        placing: device and threads, as for :func:`xfeat.export.model.file.open_model`.

    Raises:
        SpecError: if the model does not fit its description, or a signature is required of a model that has none.
        XfeatError: as :class:`Predictor` says.
    """
    if spec is None:
        trust: dict[str, Any] = {"allow_unverified": allow_unverified, "require_signature": require_signature}
        return Predictor(path, batch_size=batch_size, **trust, **placing)
    if require_signature is not None:
        raise SpecError("only models of xexport onnx are signed", path=path, fix="leave out --require-signature")
    opened = open_model(path, kind=partial(ForeignClassifier, spec=spec), **placing)
    return Predictor(opened, batch_size=batch_size)


def evaluate_model(
    predictor: Predictor,
    dataset: Dataset,
    *,
    positive: str | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> ModelEvaluation:
    """Classify all labelled images of a data set and measure the predictions. Splits are ignored.

    Args:
        predictor: the model.
        dataset: the images; classes are matched by name.
        positive: the class that has the threshold; by default the model's own.
        threshold: probability from which it is predicted; by default the model's own.
        progress: called with the number of images done and the total number.

    Raises:
        DataError: if no image has a label that the model knows, or none can be classified.
        SpecError: if ``positive`` and ``threshold`` do not fit the model, or its outputs do not fit its description.
    """
    names = predictor.metadata.class_names
    code, limit = _rule(predictor, positive, threshold)
    codes = {name: number for number, name in enumerate(names)}
    entries: list[tuple[ImageEntry, int]] = []
    left_out = Counter[str]()
    for entry in dataset.entries:
        name = dataset.class_names[entry.label] if entry.label >= 0 else UNLABELLED
        if entry.label >= 0 and name in codes:
            entries.append((entry, codes[name]))
        else:
            left_out[name] += 1
    if not entries:
        raise DataError(
            "none of the images has a class of the model",
            path=dataset.table or dataset.root,
            expected=listed(names),
            found=listed(dataset.class_names) or "no labels",
            fix="name the class folders as the model's classes",
        )
    source = open_source(dataset.root)
    readers = [(entry.path, partial(content_of, source, entry.path)) for entry, _ in entries]
    rows: list[NDArray[np.float32]] = []
    used, skipped = [], []
    results = predictor.predict_sources(readers, progress, total=len(readers))
    for (entry, label), result in zip(entries, results, strict=True):
        if isinstance(result, SkippedImage):
            skipped.append(result)
        else:
            rows.append(np.array(list(result.probabilities.values()), np.float32))
            used.append((entry, label))
    if not used:
        reasons = [f"{image.path}: {image.reason}" for image in skipped]
        raise DataError(
            "none of the images could be classified", path=dataset.root, found="\n".join(first_ten(reasons))
        )
    if isinstance(predictor.model, ForeignClassifier) and predictor.model.maybe_softmax_twice:
        logger.warning(
            "%s: all outputs lie between 0 and 1: are they probabilities already? leave out --softmax", predictor.path
        )
    return ModelEvaluation(
        model=predictor.path,
        data=dataset.table or dataset.root,
        paths=[entry.path for entry, _ in used],
        cases=Cases(
            labels=np.array([label for _, label in used], np.int64),
            probabilities=np.stack(rows),
            patients=_patients([entry for entry, _ in used]),
            class_names=names,
            positive=code,
            threshold=limit,
        ),
        left_out=dict(left_out),
        skipped=skipped,
        grouped=any(entry.group for entry, _ in used),
    )


def _rule(predictor: Predictor, positive: str | None, threshold: float | None) -> tuple[int | None, float | None]:
    """Return the class with a threshold, and the threshold as the model's graph has it; both ``None`` without one."""
    metadata = predictor.metadata
    if positive not in (None, metadata.positive) and threshold is None:
        raise SpecError(f"--positive {positive} needs a threshold", path=predictor.path, fix="add --threshold P")
    positive = metadata.positive if positive is None else positive
    threshold = metadata.threshold if threshold is None else threshold
    if positive is None and threshold is not None:
        found = listed(metadata.class_names)
        raise SpecError(
            "the model has no class with a threshold", path=predictor.path, found=found, fix="add --positive CLASS"
        )
    check_decision(metadata.class_names, 1.0, positive, threshold)
    if positive is None or threshold is None:
        return None, None
    return metadata.class_names.index(positive), float(float32_threshold(threshold))


def _patients(entries: Sequence[ImageEntry]) -> NDArray[np.int64]:
    """Number the groups; an image without one is on its own."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [(entry.group, "" if entry.group else entry.path) for entry in entries]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

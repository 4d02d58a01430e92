"""The metrics of a card: of the run's test images, out of fold, and of images from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xfeat.export.card.rows import Row, row_of
from xfeat.export.card.sources import Document, Sources
from xfeat.head.reports.formatting import frequent_confusions, hardest_classes, percent, with_interval
from xfeat.head.reports.study_text import coefficient, decided_classes

_NAMES = {"accuracy": "accuracy", "auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}
_NAMES |= {"ppv": "PPV", "npv": "NPV", "slope": "calibration slope", "intercept": "calibration intercept"}
_COEFFICIENTS = ("slope", "intercept")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one set of images.

    Attributes:
        images: which: ``test``, ``out of fold``, or the name of an evaluation.
        external: whether they are of another data set than the training images.
        name: ``accuracy``, ``auc``, ``sensitivity``, …
        of_class: against all others, or empty.
        value: a proportion; slope and intercept have any value.
        interval: its 95 % interval, or ``None``.
        where: file and key.
    """

    images: str
    external: bool = False
    name: str
    of_class: str = ""
    value: float
    interval: list[float] | None
    where: str

    @property
    def label(self) -> str:
        """The metric in words, such as ``test: sensitivity of covid``."""
        return f"{self.images}: {_NAMES[self.name]}{self.of_class and f' of {self.of_class}'}"

    @property
    def row(self) -> Row:
        """The row of the card."""
        figure = {"value": self.value, "interval": self.interval}
        text = coefficient(figure) if self.name in _COEFFICIENTS else with_interval(self.value, self.interval)
        id = f"external.{self.name}" if self.external else f"metrics.{self.name}"
        return Row(id=id, label=self.label, text=text, where=self.where)


def studies(sources: Sources) -> Iterator[tuple[str, Document, str, bool]]:
    """Yield the images that metrics are of: a name, the document, the key of their figures, whether they are external.

    The first are the run's own.
    """
    if sources.run:
        for split in ("test", "valid"):
            if sources.run.get(f"statistics.{split}"):
                yield split, sources.run, f"statistics.{split}", False
                break
    for crossval in sources.crossvals:
        if crossval.get("statistics"):
            yield f"out of fold ({crossval.get('name')})", crossval, "statistics", False
    for evaluation in sources.evaluations:
        yield str(evaluation.get("name")), evaluation, "statistics", True


def metrics(sources: Sources) -> list[Metric]:
    """Return all metrics; without the run's, those that the model repeats, with intervals that know no patients."""
    found = [metric for study in studies(sources) for metric in _of_study(*study)]
    return found if sources.run and sources.run.get("statistics") else [*_of_metadata(sources.described), *found]


def _of_study(images: str, document: Document, key: str, external: bool) -> Iterator[Metric]:
    study = document.get(key)
    figures = [("", name, study[name], f"{key}.{name}") for name in ("accuracy", "auc")]
    shown = [study["positive"]] if study["positive"] else hardest_classes(decided_classes(study))
    figures += [
        (of_class, name, study["classes"][of_class].get(name), f"{key}.classes")
        for of_class in shown
        for name in ("sensitivity", "specificity", "ppv", "npv", *_COEFFICIENTS)
    ]
    for of_class, name, figure, place in figures:
        if figure is not None and figure["value"] is not None:
            found = {"value": figure["value"], "interval": figure["interval"] and list(figure["interval"])}
            where = document.at(place)
            yield Metric(images=images, external=external, name=name, of_class=of_class, where=where, **found)


def _of_metadata(described: Document) -> Iterator[Metric]:
    split = next((each for each in ("test", "valid") if described.get(f"metrics.{each}")), None)
    if split is None:
        return
    images = f"{split}, most probable class"
    for name, key in {"accuracy": "accuracy_interval", "auc": "auc_interval"}.items():
        value, interval = described.get(f"metrics.{split}.{name}"), described.get(f"metrics.{split}.{key}")
        if isinstance(value, int | float):
            where = described.at(f"metrics.{split}.{name}")
            yield Metric(images=images, name=name, value=value, interval=interval, where=where)


def interval_rows(sources: Sources) -> Iterator[Row]:
    """Yield the row that says what the run's intervals take into account."""
    for _, document, key, _ in [*studies(sources)][:1]:
        study, counted = document.get(key), sources.counted
        known: bool | None = study["patients"] < study["images"] or None
        if counted:
            known = counted.get("all_images_have_patients")
        texts: dict[bool | None, str] = {
            True: "by patient: images of one patient are not independent",
            False: "each image on its own",
        }
        text = f"95 % confidence intervals, {texts.get(known, 'by patient where patients are known')}"
        yield row_of(document, key, "metrics.intervals", "uncertainty", text)


def error_rows(sources: Sources) -> Iterator[Row]:
    """Yield how many images are misclassified, and the most frequent confusions."""
    for name, document, key, external in studies(sources):
        matrix, classes = document.get(f"{key}.confusion_matrix"), list(document.get(f"{key}.classes"))
        confusions = [f"{true} as {said} {count}" for true, said, count in frequent_confusions(classes, matrix)]
        wrong = sum(map(sum, matrix)) - sum(row[place] for place, row in enumerate(matrix))
        text = f"{wrong} of {sum(map(sum, matrix))} images{(confusions and ': ' + ', '.join(confusions)) or ''}"
        id = "external.errors" if external else "metrics.errors"
        yield row_of(document, f"{key}.confusion_matrix", id, f"{name}: misclassified", text)


def threshold_words(point: Mapping[str, Any]) -> str:
    """Say which threshold the model has."""
    return f"{point['positive']} if its probability is {point['threshold']:.4f} or more"


def prevalence_words(rows: list[Mapping[str, Any]]) -> str:
    """Say the predictive values at several prevalences."""
    return "; ".join(
        f"at a prevalence of {percent(row['prevalence'])}: PPV {with_interval(row['ppv'], row['ppv_interval'])}, "
        f"NPV {with_interval(row['npv'], row['npv_interval'])}"
        for row in rows
    )

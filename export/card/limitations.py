"""The limitations of a model that follow from what was measured, and from what was not."""

from __future__ import annotations

from collections.abc import Iterator

from xfeat.export.card.figures import metrics, studies
from xfeat.export.card.rows import Row
from xfeat.export.card.sources import Sources
from xfeat.featurize.text import listed
from xfeat.head.reports.formatting import percent

_ENOUGH_IMAGES = 100  # of a class: below, one image is more than a point
_MOSTLY = 0.5


def limitations(sources: Sources) -> list[Row]:
    """Return the limitations, each with the place that says so; none of them is a guess."""
    checks = (_run, _evaluation, _size, _patients, _audit, _threshold, _subgroups, _calibration, _ood, _file)
    return [
        Row(id="limitation", label="", text=text, where=where) for check in checks for text, where in check(sources)
    ]


Found = Iterator[tuple[str, str]]


def _run(sources: Sources) -> Found:
    if sources.run is None:
        yield "No run of this model was found: its training is known only as far as the file says.", ""
    elif not sources.run.get("statistics.test"):
        yield (
            "There are no test images: the metrics of the validation images are optimistically biased, since the epoch "
            "was chosen on them.",
            sources.run.at("split.images"),
        )


def _evaluation(sources: Sources) -> Found:
    for evaluation in sources.evaluations:
        seen = evaluation.get("seen_in_training")
        if seen is None:
            yield (
                f"It could not be checked whether images of {evaluation.get('name')} are training images.",
                evaluation.at("seen_in_training"),
            )
        elif seen:
            yield (
                f"{len(seen)} of {evaluation.get('images')} images of {evaluation.get('name')} are training images: "
                "its metrics are optimistically biased.",
                evaluation.at("seen_in_training"),
            )
        if tested := evaluation.get("seen_in_test"):
            yield (
                f"{len(tested)} of {evaluation.get('images')} images of {evaluation.get('name')} are test images of "
                "the run, and not from elsewhere.",
                evaluation.at("seen_in_test"),
            )
    if not sources.evaluations:
        yield "No evaluation on images of another source was given: how well the model does elsewhere is unknown.", ""


def _size(sources: Sources) -> Found:
    for name, document, key, _ in studies(sources):
        study = document.get(key)
        counts = {of_class: sum(row) for of_class, row in zip(study["classes"], study["confusion_matrix"], strict=True)}
        if few := [f"{count} of {of_class}" for of_class, count in counts.items() if count < _ENOUGH_IMAGES]:
            yield f"Few images ({name}): {listed(few)}.", document.at(f"{key}.confusion_matrix")


def _patients(sources: Sources) -> Found:
    counted = sources.counted
    if counted is None:
        yield "It is not known which images are of one patient.", ""
    elif not counted.get("all_images_have_patients"):
        yield (
            "Not all images have patients (groups): if one patient has images in two splits, metrics are "
            "optimistically biased, and intervals may be too narrow.",
            counted.at("all_images_have_patients"),
        )
    elif shared := counted.get("patients_in_two_splits"):
        yield (
            f"{shared} patients have images in two splits: metrics are optimistically biased.",
            counted.at("patients_in_two_splits"),
        )


def _audit(sources: Sources) -> Found:
    described = sources.described
    where = described.at("audit.verdicts")
    if described.get("audit.verdicts") is None:
        yield "The training data were not audited for leakage and shortcuts.", ""
    for what, found in (described.get("audit.verdicts") or {}).items():
        if found == "found":
            yield f"The audit found {what} in the training data.", where
        elif found == "not checked":
            yield f"The training data were not checked for {what}.", where


def _threshold(sources: Sources) -> Found:
    run = sources.run
    if run and run.get("operating_point.note"):
        yield f"Threshold: {run.get('operating_point.note')}.", run.at("operating_point.note")
    if run and run.get("operating_point.out_of_fold"):
        yield (
            "The threshold was chosen on the out-of-fold predictions: their sensitivity and specificity at "
            "the threshold are slightly optimistic.",
            run.at("operating_point.chosen_on"),
        )


def _subgroups(sources: Sources) -> Found:
    if not any(document.get("subgroups.columns") for _, document, _, _ in studies(sources)):
        yield "No subgroups were compared: whether the model works alike for all patients is unknown.", ""
    for name, document, _, _ in studies(sources):
        for column, found in (document.get("subgroups.columns") or {}).items():
            for figure, gap in found["gaps"].items():
                if gap["more_than_chance"]:
                    yield (
                        f"{name}: the {figure} of “{gap['low']}” is {100 * gap['gap']:.1f} points below that of "
                        f"“{gap['high']}” ({column}), which is more than chance.",
                        document.at("subgroups.columns"),
                    )


def _calibration(sources: Sources) -> Found:
    """Say where a slope differs from 1, or an intercept from 0, by more than chance."""
    for metric in metrics(sources):
        ideal = {"slope": 1.0, "intercept": 0.0}.get(metric.name)
        if ideal is not None and metric.interval and not metric.interval[0] <= ideal <= metric.interval[1]:
            yield (
                f"{metric.label} is {metric.row.text}, and not {ideal:g}: the probabilities are not calibrated.",
                metric.where,
            )


def _ood(sources: Sources) -> Found:
    if sources.metadata.ood_threshold is None:
        yield "The model has no out-of-distribution score: it answers for any image.", sources.model.at("ood_threshold")
    if sources.certificate:
        for kind, found in (sources.certificate.get("out_of_distribution") or {}).items():
            if kind != "unchanged images" and found["above"] < _MOSTLY:
                yield (
                    f"The out-of-distribution score finds {percent(found['above'])} of these images: {kind}.",
                    sources.certificate.at("out_of_distribution"),
                )


def _file(sources: Sources) -> Found:
    if sources.certificate is None:
        yield (
            "There is no certificate: it is not known whether the file gives the predictions of the trained model.",
            "",
        )
    if sources.metadata.precision != "float32":
        yield (
            f"The metrics are those of the float32 model; this file is {sources.metadata.precision}. Section "
            "“Agreement with the trained model” has what was compared.",
            sources.model.at("precision"),
        )

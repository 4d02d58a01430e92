"""The figures of a paper, each with its caption; what cannot be drawn is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from xfeat.featurize.text import listed, printable
from xfeat.head.evaluation.curves import FEWEST_IMAGES, MOST_BINS
from xfeat.head.evaluation.study import Study
from xfeat.head.evaluation.subgroups import FEW_PATIENTS
from xfeat.head.paper.material import CROSSVAL, Material
from xfeat.head.reports.formatting import with_interval
from xfeat.head.reports.plots import ForestRow, drawn_classes, evaluation_figures, forest_plot
from xfeat.head.reports.study_text import FIGURE_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 50  # of a forest plot on one page
_STEMS = {
    "roc": "roc",
    "precision_recall": "precision-recall",
    "reliability": "calibration",
    "benefit": "decision-curve",
    "confusion": "confusion-matrix",
}
STEMS = (*_STEMS.values(), *(f"{kind}-{name}" for kind in ("subgroups", "left-out") for name in FIGURE_NAMES))


class PaperFigure(NamedTuple):
    """A figure, the name of its files without their suffix, and its caption."""

    stem: str
    caption: str
    drawing: Figure


def paper_figures(material: Material) -> tuple[list[PaperFigure], list[str]]:
    """Draw all figures; also return a line for each that cannot be drawn, and why."""
    captions, drawings = _captions(material), evaluation_figures(material.cases, material.study)
    if len(_without_curve(material.study)) == len(material.cases.class_names):
        del drawings["roc"], drawings["precision_recall"]
    figures = [PaperFigure(_STEMS[name], captions[name], drawing) for name, drawing in drawings.items()]
    return [*figures, *_subgroups(material), *_left_out(material)], [*_not_drawn(material)]


def _captions(material: Material) -> dict[str, str]:
    cases, study, images = material.cases, material.study, images_text(material)
    two, studied, point = len(cases.class_names) == 2, cases.studied, material.facts["operating_point"]
    name = "" if studied is None else quoted(cases.class_names[studied])
    marked = ""
    if point is not None:
        found = study["classes"][point["positive"]]
        marked = (
            f" Diamond: the threshold of {quoted(point['positive'])} ({point['threshold']:.4g}), with a sensitivity of "
            f"{with_interval(**found['sensitivity'])} and a specificity of {with_interval(**found['specificity'])}."
        )
    drawn = drawn_classes(cases)
    some = "" if len(drawn) == len(cases.class_names) else f" The {len(drawn)} classes of lowest sensitivity are shown."
    each = f"one curve per class against all others.{some}"
    band = (
        f" Shaded: pointwise 95 % interval of the sensitivity at each specificity, {unit(material)}. "
        f"AUC {with_interval(**study['classes'][cases.class_names[drawn[0]]]['auc'])}."
    )
    at = f"at the threshold of {quoted(point['positive'])}" if point else "by the most probable class"
    subject = f"of {name}" if name else "of the predicted class"
    roc = f"of {name}.{band}" if two else f"curves, {each}"
    recall = f"of {name}." if two else f"curves, {each}"
    fewest = min(FEWEST_IMAGES, study["images"])
    return {
        "roc": f"Receiver operating characteristic {roc}{marked} {images}",
        "precision_recall": f"Precision and recall {recall} AP: average precision. {images}",
        "reliability": f"Calibration: observed frequency against predicted probability {subject}, in at most "
        f"{MOST_BINS} bins of similar count, of {fewest} images or more; bars: 95 % intervals, {unit(material)}. "
        f"{images}",
        "benefit": f"Decision curve {subject}: net benefit per 100 images of acting on the prediction, on everybody "
        f"and on nobody. {images}",
        "confusion": f"Confusion matrix {at}; rows are true classes, shading is the share of the true class. {images}",
    }


def unit(material: Material) -> str:
    """Say of what the intervals are."""
    return "by patient" if material.study["patients"] < material.study["images"] else "by image"


def images_text(material: Material) -> str:
    """Say how many images of how many patients were tested."""
    study = material.study
    whose = f" of {study['patients']} patients" if study["patients"] < study["images"] else ""
    return f"{study['images']} {material.part} images{whose}."


def quoted(name: str) -> str:
    """Return a class name for a sentence."""
    return f"“{printable(name)}”"


def _subgroups(material: Material) -> Iterator[PaperFigure]:
    shown = [name for name, column in _divided(material) if name not in _too_many(material)]
    columns = material.subgroups.get("columns", {})
    for measure in material.cases.measures if shown else ():
        whole = _whole(material, measure)
        rows = [ForestRow("all images", material.study["images"], whole["value"], whole["interval"])]
        for name in shown:
            rows.append(ForestRow(name))
            rows += [
                ForestRow(
                    row["value"] + ("*" if measure in row["few"] else ""),
                    row["images"],
                    row[measure]["value"],
                    row[measure]["interval"],
                    measure in row["few"],
                )
                for row in columns[name]["values"]
            ]
        caption = (
            f"{_title(material, measure)} in subgroups, with 95 % intervals, {unit(material)}; dashed: all images. "
            f"*, hollow: from fewer than {FEW_PATIENTS} patients of a class. {images_text(material)}"
        )
        drawing = forest_plot(rows, whole["value"], FIGURE_NAMES[measure])
        yield PaperFigure(f"subgroups-{measure}", caption, drawing)


def _left_out(material: Material) -> Iterator[PaperFigure]:
    found = material.elsewhere
    rows = [row for row in found["sources"] if row["figures"]] if found else []
    for measure in dict.fromkeys((*material.cases.measures, "accuracy")) if rows else ():
        assert found is not None
        overall = found["overall"][measure]
        lines = [
            ForestRow(
                text,
                images,
                row["elsewhere"]["value"],
                row["elsewhere"]["interval"],
                beside=row["ordinary"]["value"],
            )
            for text, images, row in (
                *((row["source"], row["images"], row["figures"][measure]) for row in rows),
                ("all of these", sum(row["images"] for row in rows), overall),
            )
        ]
        caption = (
            f"{_title(material, measure)} on each {printable(found['column'])}, predicted by heads trained without it, "
            f"with 95 % intervals, {unit(material)}; crosses: heads of ordinary folds on the same images; dashed: all "
            "of these."
        )
        drawing = forest_plot(lines, overall["elsewhere"]["value"], FIGURE_NAMES[measure], "ordinary folds")
        yield PaperFigure(f"left-out-{measure}", caption, drawing)


def _title(material: Material, measure: str) -> str:
    title = FIGURE_NAMES[measure][0].upper() + FIGURE_NAMES[measure][1:]
    studied = material.cases.studied
    return (
        title
        if studied is None or measure == "accuracy"
        else f"{title} of {quoted(material.cases.class_names[studied])}"
    )


def _whole(material: Material, measure: str) -> Mapping[str, Any]:
    study, code = material.study, material.cases.studied
    if code is None:
        return study["accuracy"] if measure == "accuracy" else study["auc"]
    classes: Mapping[str, Any] = study["classes"]
    found: Mapping[str, Any] = classes[material.cases.class_names[code]][measure]
    return found


def _without_curve(study: Study) -> list[str]:
    return [name for name, row in study["classes"].items() if row["auc"]["value"] is None]


def _divided(material: Material) -> list[tuple[str, dict[str, Any]]]:
    return [(name, column) for name, column in material.subgroups.get("columns", {}).items() if column["values"]]


def _too_many(material: Material) -> list[str]:
    lines, late = 1, []
    for name, column in _divided(material):
        lines += 1 + len(column["values"])
        if lines > MOST_ROWS:
            late.append(name)
    return late


def _not_drawn(material: Material) -> Iterator[str]:
    cases, study, kind = material.cases, material.study, material.kind
    chosen = f"xhead {'crossval' if kind == CROSSVAL else 'train'} --positive CLASS chooses one"
    if material.facts["operating_point"] is None:
        yield f"no operating point in roc: there is no threshold; {chosen}"
    absent = _without_curve(study)
    if absent and len(absent) == len(cases.class_names):
        yield f"no roc and no precision-recall: all {material.part} images are of one class"
    elif absent:
        yield f"no curve of {listed(absent)}: no {material.part} image is of this class"
    if study["decision_curve"] is None:
        yield f"no decision-curve: of more than two classes, it needs a positive one; {chosen}"
    if study["patients"] == study["images"]:
        yield "intervals are by image: no patients are known, or each has one image"
    elif len(set(cases.patients.tolist())) != study["patients"]:
        yield "intervals of roc and calibration take copies of an image as different patients"
    if not _divided(material):
        yield "no subgroups: the features have no further columns that divide the images (xfeat featurize --metadata)"
    if late := _too_many(material):
        yield f"not in the figures of subgroups, which have {MOST_ROWS} lines: {listed(late)}"
    if kind == CROSSVAL and material.elsewhere is None:
        yield "no left-out: no source was left out (xhead crossval --leave-out COLUMN)"
    elif kind == CROSSVAL and material.elsewhere and not any(row["figures"] for row in material.elsewhere["sources"]):
        yield f"no left-out: {material.elsewhere['unanswerable']}"

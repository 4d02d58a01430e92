"""The files of a cross-validation: JSON, predictions and the page. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.pages.titles import Described, described
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.versions import library_versions
from xfeat.featurize.text import count_of
from xfeat.featurize.typed_json import with_digest
from xfeat.head.crossval.leave_out import elsewhere
from xfeat.head.evaluation.operating_point import point_at_target, positive_class
from xfeat.head.evaluation.predictions import decide
from xfeat.head.evaluation.study import Cases, study
from xfeat.head.evaluation.subgroups import Bins, subgroup_figures
from xfeat.head.reports.formatting import points
from xfeat.head.reports.run_report import few_images_caution, file_cautions, page_template, page_values
from xfeat.head.reports.study_text import expected_elsewhere
from xfeat.head.reports.worker import call_here
from xfeat.head.runs.origin import origin_of, stored_origin
from xfeat.head.runs.reader import PREDICTIONS_FILE, PROBABILITY_PREFIX, REPORT_FILE
from xfeat.head.runs.writer import RunWriter, write_table
from xfeat.head.specs import TargetSpec

if TYPE_CHECKING:
    from xfeat.head.crossval.runner import CrossValidation

FORMAT = "xfeat.crossval"
SCHEMA_VERSION = 1
CROSSVAL_FILE = "crossval.json"


def save_crossval(
    writer: RunWriter,
    result: CrossValidation,
    audit: dict[str, Any],
    baselines: list[dict[str, Any]] | None = None,
    *,
    target: TargetSpec | None = None,
    bins: Bins | None = None,
    call: Callable[..., Any] = call_here,
) -> dict[str, Any]:
    """Write crossval.json, predictions.csv and report.html; return the content of crossval.json.

    Args:
        writer: of the folder.
        result: the cross-validation.
        audit: of its cache.
        baselines: from :func:`xfeat.head.crossval.baselines.cross_validate_baselines`.
        target: the wanted operating point, chosen on the combined predictions of all images.
        bins: of numbers in the further columns of the cache.
        call: runs the rendering; a :class:`xfeat.head.reports.worker.Worker` does it in another process.
    """
    cache, main, by_image = result.cache, result.main, result.by_image
    names, seed = cache.class_names, result.train.seed
    metrics, point = main.metrics(names), None
    if target is not None:
        code = positive_class(target, names, main.labels)
        point = point_at_target(main.labels == code, main.combined[:, code], main.patients, target)
    cases = Cases(
        labels=main.labels,
        probabilities=main.combined,
        patients=main.patients,
        class_names=names,
        positive=None if point is None else names.index(point.positive),
        threshold=None if point is None else point.threshold,
    )
    subgroups = subgroup_figures(cases, cache.extra, result.rows, bins)
    facts = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "name": writer.target.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "accuracy": main.accuracy(seed=seed),
        "confusion_matrix": metrics["confusion_matrix"],
        "grouped": result.grouped,
        "folds": result.plan.folds,
        "seeds": result.plan.seeds,
        "ensemble": result.plan.members,
        "classes": list(names),
        "images": len(result.rows),
        "groups": len(np.unique(main.groups)),
        "metrics": metrics,
        "temperature": main.temperature,
        "operating_point": point and point.to_dict(),
        "statistics": study(cases),
        "subgroups": subgroups,
        "elsewhere": _elsewhere(result, cases, subgroups),
        "each_fold": main.each_fold(names),
        "by_image": by_image
        and {
            "accuracy": by_image.accuracy(seed=seed),
            "confusion_matrix": by_image.metrics(names)["confusion_matrix"],
        },
        "feature_fingerprint": cache.spec.fingerprint,
        "head_spec": result.head.to_dict(),
        "train_spec": result.train.to_dict(),
        "audit": audit,
        **({} if baselines is None else {"baselines": baselines}),
        "feature_spec": cache.spec.to_dict(),
        "dim": int(cache.features.shape[-1]),
        "cache": stored_origin(origin_of(cache), writer.target),
        "versions": library_versions(),
    }
    write_table(writer.folder / PREDICTIONS_FILE, *_out_of_fold_table(result, cases))
    paths = [cache.columns.path[row] for row in result.rows.tolist()]
    about = described(
        names,
        f", {count_of(len(paths), 'image')}",
        [cache.columns.group[row] for row in result.rows.tolist()],
        positive=None if point is None else point.positive,
        more=f", {result.plan.folds} folds",
    )
    page = call(render_crossval, facts, about, cases, paths, cache.images.path, cache.skipped, file_cautions(cache))
    writer.save_text(REPORT_FILE, page)
    facts["file_sha256"] = {name: sha256_of(writer.folder / name) for name in (PREDICTIONS_FILE, REPORT_FILE)}
    facts = with_digest(facts)
    writer.save_json(CROSSVAL_FILE, facts)
    return facts


def _elsewhere(result: CrossValidation, cases: Cases, subgroups: dict[str, Any]) -> dict[str, Any] | None:
    if result.sources is None or result.left_out is None:
        return None
    folds = result.plan.folds
    same = [name for name, column in subgroups["columns"].items() if column["same_as_class"]]
    return elsewhere(result.sources, cases, result.left_out, result.main.temperature, same, folds=folds)


def _out_of_fold_table(result: CrossValidation, cases: Cases) -> tuple[list[str], Iterator[list[Any]]]:
    """Return the columns, and one line per image and seed, decided as in ``cases``."""
    names, columns, main = result.cache.class_names, result.cache.columns, result.main

    def lines() -> Iterator[list[Any]]:
        for seed, (fold, probabilities) in enumerate(zip(main.fold, main.calibrated, strict=True)):
            decisions = decide(probabilities, cases.positive, 0.5 if cases.threshold is None else cases.threshold)
            images = zip(result.rows.tolist(), main.labels, fold, decisions, probabilities, strict=True)
            for row, label, number, decision, p in images:
                facts = [columns.path[row], columns.group[row], seed, number, names[label], names[decision]]
                yield [*facts, *(str(value) for value in p)]

    header = ["path", "group", "seed", "fold", "label", "prediction"]
    return [*header, *(PROBABILITY_PREFIX + name for name in names)], lines()


def render_crossval(
    facts: dict[str, Any],
    about: Described,
    cases: Cases,
    paths: list[str],
    images: Path | None,
    skipped: Sequence[Skipped],
    cautions: list[str],
) -> str:
    """Return the page of crossval.json and its predictions; ``paths`` in ``images`` are those of ``cases``."""
    from xfeat.head.reports import canvas, plots

    spec = FeatureSpec.from_dict(facts["feature_spec"])
    values = page_values(cases, facts["statistics"], paths, images, spec)
    divisions = {"by patient" if facts["grouped"] else "by image": facts["accuracy"]["folds"]}
    if facts["by_image"] is not None:
        divisions["by image"] = facts["by_image"]["accuracy"]["folds"]
    values["figures"]["folds"] = canvas.as_svg(plots.fold_accuracies(divisions))
    return page_template("template.html", "xfeat.head.crossval").render(
        **about,
        **values,
        facts=facts,
        cautions=[*_cautions(facts), *cautions],
        skipped=skipped,
        subgroups=facts["subgroups"],
        elsewhere=facts["elsewhere"],
        expected=expected_elsewhere(facts["elsewhere"]),
    )


def _cautions(facts: dict[str, Any]) -> list[str]:
    cautions = []
    if not facts["grouped"]:
        cautions.append(
            "The images have no groups. If patients have several images, these metrics are optimistically biased: "
            "name the patients with xfeat featurize --groups."
        )
    if facts["by_image"] is not None:
        difference = points(facts["by_image"]["accuracy"]["mean"] - facts["accuracy"]["mean"])
        cautions.append(
            f"With image-level folds, which split patients, the accuracy differs by {difference} percentage points. "
            "Quote the patient-level metrics."
        )
    return [*cautions, *few_images_caution(facts["images"])]

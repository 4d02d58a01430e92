"""The folder of a cross-validation, and its page. Rendering the page imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.versions import library_versions
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.reports.formatting import points
from xfeat.head.reports.mistakes import worst_mistakes
from xfeat.head.reports.run_report import few_images_caution, page_template, skipped_caution
from xfeat.head.reports.worker import call_here
from xfeat.head.runs.reader import PREDICTIONS_FILE, REPORT_FILE

if TYPE_CHECKING:
    from xfeat.head.crossval.runner import CrossValidation
    from xfeat.head.runs.writer import RunWriter

FORMAT = "xfeat.crossval"
SCHEMA_VERSION = 1
CROSSVAL_FILE = "crossval.json"


def save_crossval(
    writer: RunWriter, result: CrossValidation, figures: dict[str, Any], *, call: Callable[..., Any] = call_here
) -> dict[str, Any]:
    """Write crossval.json, predictions.csv and report.html.

    Args:
        writer: of the folder.
        result: the cross-validation.
        figures: its :meth:`~xfeat.head.crossval.runner.CrossValidation.to_dict`, with the specs, the audit and the
            baselines added.
        call: runs the rendering; a :class:`xfeat.head.reports.worker.Worker` does it in another process.

    Returns:
        The content of crossval.json.
    """
    from xfeat.head.crossval.table import out_of_fold_table

    cache = result.cache
    facts = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "name": writer.target.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **figures,
        "feature_spec": cache.spec.to_dict(),
        "dim": int(cache.features.shape[-1]),
        "cache": {
            "path": str(cache.path.resolve()),
            "content_sha256": cache.content_sha256,
            "data_root": cache.data_root,
        },
        "versions": library_versions(),
    }
    writer.save_json(CROSSVAL_FILE, facts)
    writer.save_table(PREDICTIONS_FILE, *out_of_fold_table(result))
    paths = [cache.columns.path[row] for row in result.rows.tolist()]
    writer.save_text(REPORT_FILE, call(render_crossval, facts, result.main, paths, cache.skipped))
    return facts


def render_crossval(facts: dict[str, Any], main: OutOfFold, paths: list[str], skipped: Sequence[Skipped]) -> str:
    """Return the page, one self-contained HTML file.

    Args:
        facts: the content of crossval.json.
        main: predictions with whole groups in one fold.
        paths: of the images, relative to the data root.
        skipped: images that could not be read.
    """
    from xfeat.head.reports import plots

    names = tuple(facts["classes"])
    labels, probabilities = main.tiled
    mean = main.probabilities.mean(axis=0)
    decisions = mean.argmax(axis=1)
    divisions = {"by patient" if facts["grouped"] else "by image": facts["accuracy"]["folds"]}
    if facts["by_image"] is not None:
        divisions["by image"] = facts["by_image"]["accuracy"]["folds"]
    return page_template("template.html", "xfeat.head.crossval").render(
        facts=facts,
        class_names=names,
        spec_line=FeatureSpec.from_dict(facts["feature_spec"]).describe(),
        cautions=[*_cautions(facts), *skipped_caution(skipped)],
        skipped=skipped,
        figures={
            "folds": plots.fold_accuracies(divisions),
            "confusion": plots.confusion_matrix_plot(facts["confusion_matrix"], names),
            "reliability": plots.reliability_diagram(labels, probabilities, names),
            "roc": plots.roc_curves(labels, probabilities, names),
            "precision_recall": plots.precision_recall_curves(labels, probabilities, names),
        },
        mistakes=worst_mistakes(paths, main.labels, mean, decisions, names, facts["cache"]["data_root"]),
        wrong=int((decisions != main.labels).sum()),
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

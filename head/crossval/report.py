"""The folder of a cross-validation, and its page. The page is made free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.system.versions import library_versions
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.reports.formatting import points
from xfeat.head.reports.mistakes import Answered, worst_mistakes
from xfeat.head.reports.run_report import few_images, page_template, unread
from xfeat.head.reports.worker import call_here
from xfeat.head.runs.reader import PREDICTIONS_FILE, REPORT_FILE

if TYPE_CHECKING:
    from xfeat.head.crossval.runner import CrossValidation
    from xfeat.head.runs.writer import RunWriter

FORMAT = "xfeat.crossval"
SCHEMA_VERSION = 1
CROSSVAL_FILE = "crossval.json"


@dataclass(frozen=True)
class CrossvalPage:
    """All that the page is made of.

    Attributes:
        facts: the content of crossval.json.
        main: the answers, with whole groups in one fold.
        paths: of the images, relative to the data root.
        data_root: the folder of the images.
        spec_line: what the features are.
        skipped: images that could not be read.
    """

    facts: dict[str, Any]
    main: OutOfFold
    paths: list[str]
    data_root: str
    spec_line: str
    skipped: list[Skipped]


def save_crossval(
    writer: RunWriter, result: CrossValidation, figures: dict[str, Any], *, call: Callable[..., Any] = call_here
) -> dict[str, Any]:
    """Write crossval.json, predictions.csv and report.html.

    Args:
        writer: of the folder.
        result: the cross-validation.
        figures: its :meth:`~xfeat.head.crossval.runner.CrossValidation.to_dict`, and what else is known: specs, audit,
            baselines.
        call: what draws; a :class:`xfeat.head.reports.worker.Worker` does it in another process.

    Returns:
        The content of crossval.json.
    """
    from xfeat.head.crossval.table import out_of_fold_columns, out_of_fold_lines

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
    writer.save_table(PREDICTIONS_FILE, out_of_fold_columns(result), out_of_fold_lines(result))
    paths = [cache.columns.path[row] for row in result.rows.tolist()]
    page = CrossvalPage(facts, result.main, paths, cache.data_root, cache.spec.describe(), cache.skipped)
    writer.save_text(REPORT_FILE, call(render_crossval, page))
    return facts


def render_crossval(page: CrossvalPage) -> str:
    """Return the page, self-contained."""
    from xfeat.head.reports import plots

    facts, main = page.facts, page.main
    names = tuple(facts["classes"])
    labels, probabilities = main.tiled
    mean = main.probabilities.mean(axis=0)
    answered = Answered(page.paths, main.labels, mean, mean.argmax(axis=1))
    ways = {"by patient" if facts["grouped"] else "by image": facts["accuracy"]["folds"]}
    if facts["by_image"] is not None:
        ways["by image"] = facts["by_image"]["accuracy"]["folds"]
    return page_template("template.html", "xfeat.head.crossval").render(
        page=page,
        facts=facts,
        cautions=_cautions(page),
        figures={
            "folds": plots.fold_accuracies(ways),
            "confusion": plots.confusion_matrix_plot(facts["confusion_matrix"], names),
            "reliability": plots.reliability_diagram(labels, probabilities, names),
            "roc": plots.roc_curves(labels, probabilities, names),
            "precision_recall": plots.precision_recall_curves(labels, probabilities, names),
        },
        mistakes=worst_mistakes(answered, names, page.data_root),
        wrong=int((answered.decisions != main.labels).sum()),
    )


def _cautions(page: CrossvalPage) -> list[str]:
    facts, cautions = page.facts, []
    if not facts["grouped"]:
        cautions.append(
            "The images have no groups. If patients have several images, these figures are too good: name patients "
            "with xfeat featurize --groups."
        )
    if facts["by_image"] is not None:
        difference = points(facts["by_image"]["accuracy"]["mean"] - facts["accuracy"]["mean"])
        cautions.append(
            f"Divided image by image, with patients in several folds, the accuracy is another: {difference} percentage "
            "points. Quote the figures by patient."
        )
    return [*cautions, *few_images(facts["images"]), *unread(page.skipped)]

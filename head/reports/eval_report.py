"""The folder of ``xhead eval``: eval.json, predictions.csv and the page. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from xfeat.featurize.audit.stored import audit_of
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.pages.titles import described
from xfeat.featurize.system.versions import library_versions
from xfeat.featurize.text import count_of, listed, shortened
from xfeat.featurize.typed_json import with_digest
from xfeat.head.evaluation.study import Study, cases_of
from xfeat.head.reports.run_report import few_images_caution, file_cautions, page_template, page_values
from xfeat.head.reports.study_text import drop_rows
from xfeat.head.runs.digests import damage_of
from xfeat.head.runs.origin import opened_origin, origin_of, stored_origin
from xfeat.head.runs.reader import PREDICTIONS_FILE, PROBABILITY_PREFIX, REPORT_FILE
from xfeat.head.runs.results import read_result
from xfeat.head.runs.writer import RunWriter, write_table

if TYPE_CHECKING:
    from xfeat.head.evaluate import Evaluation

FORMAT = "xfeat.eval"
SCHEMA_VERSION = 1
EVAL_FILE = "eval.json"
_FIX = "test the run again with xhead eval"


class StoredEvaluation(TypedDict):
    """What is read back of a test on external data."""

    name: str
    run: str
    classes: list[str]
    images: int
    metrics: dict[str, Any]
    statistics: Study
    cache: Any  # CacheOrigin


def save_evaluation(done: Evaluation, runs: Path, name: str) -> Evaluation:
    """Write eval.json, predictions.csv and report.html to a folder in ``runs``; return the result with this folder.

    Raises:
        RunError: if the name is invalid or taken.
        OutputError: if the folder cannot be written.
    """
    run, cache, predictions, names = done.run, done.cache, done.predictions, done.run.class_names
    group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
    with RunWriter(runs, name, latest=False) as writer:
        facts: dict[str, Any] = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "name": writer.target.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **done.to_dict(),
            "run": run.name,
            "head_sha256": run.head_sha256,
            "temperature": run.temperature,
            "feature_spec": run.feature_spec.to_dict(),
            "head_spec": run.head_spec.to_dict(),
            "train_spec": run.train_spec.to_dict(),
            "dim": run.dim,
            "audit": audit_of(cache),
            "cache": stored_origin(origin_of(cache), writer.target),
            "versions": library_versions(),
        }
        del facts["data"]
        rows = zip(predictions.paths, predictions.labels, predictions.decisions, predictions.probabilities, strict=True)
        write_table(
            writer.folder / PREDICTIONS_FILE,
            ["path", "group", "label", "prediction", *(PROBABILITY_PREFIX + each for each in names)],
            ([path, group_of[path], names[label], names[called], *map(str, p)] for path, label, called, p in rows),
        )
        writer.save_text(REPORT_FILE, render_evaluation(facts, done))
        facts["file_sha256"] = {each: sha256_of(writer.folder / each) for each in (PREDICTIONS_FILE, REPORT_FILE)}
        writer.save_json(EVAL_FILE, with_digest(facts))
    return replace(done, folder=writer.target)


def render_evaluation(facts: Mapping[str, Any], done: Evaluation) -> str:
    """Return the page of eval.json."""
    run, predictions, cache, study = done.run, done.predictions, done.cache, done.statistics
    group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
    cases = cases_of(predictions, run.class_names)
    return page_template("eval.html").render(
        **described(
            run.class_names,
            f" on {count_of(study['images'], 'image')} of {shortened(Path(cache.data_root).name)}",
            [group_of[path] for path in predictions.paths],
            positive=study["positive"],
        ),
        **page_values(cases, study, predictions.paths, cache.images.path, run.feature_spec),
        facts=facts,
        data_root=cache.data_root,
        cautions=[*_cautions(done), *few_images_caution(len(predictions)), *file_cautions(cache)],
        expected=f"These images are not those of the training: {cache.data_root}.",
        skipped=cache.skipped,
        subgroups=done.subgroups,
        drop_rows=drop_rows(facts["drop"]),
    )


def _cautions(done: Evaluation) -> list[str]:
    cautions = []
    if done.seen is None:
        cautions.append("It could not be checked whether the run was trained on these images.")
    elif done.seen:
        cautions.append(
            f"{len(done.seen)} of {len(done.predictions)} images are training images of the run: these metrics are "
            "optimistically biased."
        )
    if done.tested:
        cautions.append(
            f"{len(done.tested)} of {len(done.predictions)} images are test images of the run, and not from elsewhere."
        )
    if done.left_out:
        known = listed(done.run.class_names)
        cautions.append(f"{done.left_out} images are left out: they have no label, or a class other than {known}.")
    if not any(done.cache.columns.group):
        cautions.append(
            "The images have no groups. If patients have several images, the confidence intervals are too narrow: name "
            "the patients with xhead eval --groups."
        )
    return cautions


def open_evaluation(folder: Path) -> StoredEvaluation:
    """Read eval.json, and compare it and the files beside it with their digests.

    Raises:
        RunError: if it is missing, damaged or of another version, or a file has changed.
    """
    file = folder / EVAL_FILE
    facts = read_result(file, FORMAT, SCHEMA_VERSION, StoredEvaluation, fix=_FIX)
    with damage_of(file, fix=_FIX):
        cache = opened_origin(facts["cache"], folder)
    return cast(StoredEvaluation, {**facts, "name": folder.name, "cache": cache})

"""What a paper is written from: a run, a cross-validation or an external test, read into one form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import RunError
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.typed_json import parse_json
from xfeat.head.crossval.report import CROSSVAL_FILE
from xfeat.head.crossval.stored import open_crossval
from xfeat.head.evaluation.study import Cases, Study, study
from xfeat.head.reports.eval_report import EVAL_FILE, open_evaluation
from xfeat.head.runs.digests import damage_of
from xfeat.head.runs.inputs import open_same_cache, with_cache
from xfeat.head.runs.reader import RUN_FILE, Run, open_run
from xfeat.head.runs.results import pooled_predictions, require_typed
from xfeat.head.specs import HeadSpec, TrainSpec

RUN, CROSSVAL, EVAL = "run", "crossval", "eval"
_SPECS: dict[str, Any] = {"feature_spec": FeatureSpec, "head_spec": HeadSpec, "train_spec": TrainSpec}


class _Facts(TypedDict):
    """What all of them have; those of version 0.1 have no statistics."""

    statistics: Study
    subgroups: dict[str, Any]
    operating_point: dict[str, Any] | None
    temperature: float
    dim: int
    cache: dict[str, Any]
    audit: dict[str, Any] | None
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Material:
    """A finished result.

    Attributes:
        kind: ``run``, ``crossval`` or ``eval``.
        name: of its folder.
        part: the images that it was tested on: ``test``, ``validation``, ``out-of-fold`` or ``external``.
        facts: the content of run.json, crossval.json or eval.json.
        feature_spec: settings of the features.
        head_spec: the layers of the head.
        train_spec: the optimisation.
        cases: the images of ``part``.
        study: their figures.
        subgroups: see :func:`xfeat.head.evaluation.subgroups.subgroup_figures`.
        training_patients: their number, if the cache of a run was opened for its patients.
    """

    kind: str
    name: str
    part: str
    facts: dict[str, Any]
    feature_spec: FeatureSpec
    head_spec: HeadSpec
    train_spec: TrainSpec
    cases: Cases
    study: Study
    subgroups: dict[str, Any]
    training_patients: int | None = None

    @property
    def dim(self) -> int:
        """Number of features."""
        return int(self.facts["dim"])

    @property
    def elsewhere(self) -> dict[str, Any] | None:
        """What leaving out each source in turn has shown, see :func:`xfeat.head.crossval.leave_out.elsewhere`."""
        return self.facts.get("elsewhere") if self.kind == CROSSVAL else None


def open_material(folder: Path, features: Path | None = None) -> Material:
    """Read a run, a cross-validation or an external test, whichever the folder has.

    Args:
        folder: of it.
        features: the cache of a run, if it has moved; it has the patients.

    Raises:
        RunError: if there is none, or it is damaged, or of version 0.1.
        CacheError, MismatchError: if the patients of a run's images are needed, and its cache is missing or another.
    """
    if (file := folder / CROSSVAL_FILE).is_file():
        return _of_result(file, CROSSVAL, {**open_crossval(folder)}, "cross-validate again with xhead crossval")
    if (file := folder / EVAL_FILE).is_file():
        return _of_result(file, EVAL, {**open_evaluation(folder)}, "test the run again with xhead eval")
    run = open_run(folder)
    return _of_run(run if features is None else with_cache([run], features)[0])


def _of_result(file: Path, kind: str, facts: dict[str, Any], fix: str) -> Material:
    with damage_of(file, fix=fix):
        require_typed(facts, _Facts, ", as in results of version 0.1")
        classes, studied = tuple(facts["classes"]), facts["statistics"]
        specs = {name: spec.from_dict(facts[name]) for name, spec in _SPECS.items()}
        found = pooled_predictions(file.parent, classes)
        if len(found.paths) != studied["images"]:
            raise ValueError(f"{len(found.paths)} predicted images, and not {studied['images']}")
    return Material(
        kind=kind,
        name=file.parent.resolve().name,
        part="out-of-fold" if kind == CROSSVAL else "external",
        facts=facts,
        cases=_cases(found.labels, found.probabilities, found.patients, classes, studied),
        study=studied,
        subgroups=facts["subgroups"],
        **specs,
    )


def _of_run(run: Run) -> Material:
    part, file = run.shown_part, run.folder / RUN_FILE
    predicted = run.predictions()
    rows, labels, probabilities = run.predicted(part)
    if len(rows) != run.metrics[part]["images"]:
        raise RunError(
            "the predictions are not those of this run",
            path=file,
            expected=f"{run.metrics[part]['images']} {part} images",
            found=str(len(rows)),
            fix="train the run again",
        )
    studied = run.statistics.get(part)
    if studied is not None and studied["patients"] == studied["images"]:
        patients, trained = np.arange(len(rows)), None
    else:
        key_of = _patients(run)
        patients = np.unique([key_of[path] for path in rows], return_inverse=True)[1].astype(np.int64)
        trained = len({key_of[row["path"]] for row in predicted if row["split"] == "train"})
    decided: dict[str, Any] = {"positive": None, "threshold": None}
    if point := run.operating_point:
        decided = {"positive": point.positive, "threshold": point.threshold}
    cases = _cases(labels, probabilities, patients, run.class_names, studied or decided)
    return Material(
        kind=RUN,
        name=run.folder.resolve().name,
        part="test" if part == "test" else "validation",
        facts={**run.to_dict(), **parse_json((run.folder / RUN_FILE).read_bytes())},
        **{name: getattr(run, name) for name in _SPECS},
        cases=cases,
        study=studied or study(cases),
        subgroups=run.subgroups,
        training_patients=trained,
    )


def _patients(run: Run) -> dict[str, int]:
    """Return the patient of each image of a run's cache, by its path."""
    problem = "the patients are unknown: these are other features than those that the run was trained on"
    cache = open_same_cache(run, problem)
    return dict(zip(cache.columns.path, cache.group_keys.tolist(), strict=True))


def _cases(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    patients: NDArray[np.int64],
    classes: tuple[str, ...],
    decided: Any,
) -> Cases:
    return Cases(
        labels=labels,
        probabilities=probabilities,
        patients=patients,
        class_names=classes,
        positive=None if decided["positive"] is None else classes.index(decided["positive"]),
        threshold=decided["threshold"],
    )

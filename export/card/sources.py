"""Where the facts of a card come from: model, certificate, run, cache, cross-validations and evaluations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from xfeat.export.model.file import INTACT_COPY, open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.agreement import Agreement
from xfeat.export.parity.certificate import Certificate, matching_certificate
from xfeat.featurize.errors import MismatchError, ModelError, RunError, XfeatError
from xfeat.featurize.typed_json import check_types, parse_json
from xfeat.head.crossval.report import CROSSVAL_FILE
from xfeat.head.crossval.stored import open_crossval
from xfeat.head.evaluation.study import Study
from xfeat.head.reports.eval_report import EVAL_FILE, open_evaluation
from xfeat.head.runs.inputs import find_run, open_cache_of, search_cache
from xfeat.head.runs.reader import RUN_FILE, Run, open_run
from xfeat.head.specs import DEFAULT_RUNS

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A file that facts come from.

    Attributes:
        name: how the card calls it: ``head/run.json``.
        content: plain JSON types.
    """

    name: str
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return the value of a key such as ``statistics.test.accuracy``, or ``None`` if there is none."""
        value: Any = self.content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def at(self, key: str) -> str:
        """Return the place of a key, for readers."""
        return f"{self.name}: {key}"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The documents of a card; all but the model may be missing.

    Attributes:
        model: the metadata in the file.
        sha256: of the model file.
        metadata: the same as ``model``, validated.
        certificate: the file beside the model.
        run: run.json.
        counted: images, patients and classes per split, counted from the run's predictions and its cache.
        crossvals: crossval.json of each.
        evaluations: eval.json of each.
    """

    model: Document
    sha256: str
    metadata: ModelMetadata
    certificate: Document | None = None
    run: Document | None = None
    counted: Document | None = None
    crossvals: Sequence[Document] = ()
    evaluations: Sequence[Document] = ()

    @property
    def documents(self) -> list[Document]:
        """All of them."""
        single = [self.model, self.certificate, self.run, self.counted]
        return [each for each in single if each] + [*self.crossvals, *self.evaluations]

    @property
    def described(self) -> Document:
        """The run, or without one the model, which repeats metrics and audit of its run."""
        return self.run or self.model


class _Evidence(TypedDict, total=False):
    """What a card takes from a certificate besides what every check reads."""

    models: dict[str, dict[str, str]]
    versions: dict[str, str]
    milliseconds_an_image: dict[str, float]
    gate: dict[str, Any]


class _Gate(TypedDict):
    images: int
    before: dict[str, float | None]
    after: dict[str, float | None]
    decided_differently: int


def read_sources(model: Path, run: Path | None, evaluations: Sequence[Path]) -> Sources:
    """Read everything that a card of a model is made of.

    Args:
        model: a file of ``xexport onnx``.
        run: its run; ``None`` looks for it as ``xexport quantize`` does, and does without if there is none.
        evaluations: folders of ``xhead eval`` and ``xhead crossval``.

    Raises:
        ModelError: if the model or its certificate cannot be read.
        MismatchError: if the certificate does not belong to the file, or a run or an evaluation to another model.
        RunError: if a run or an evaluation is missing or damaged.
    """
    opened = open_model(model)
    metadata = opened.metadata
    certificate = matching_certificate(opened)
    if certificate is None:
        logger.warning("no certificate beside %s: its parts of the card are left for you to fill in", model)
    found = _open_run(model, metadata, run)
    crossvals, tested = _results(evaluations, metadata, found)
    return Sources(
        model=Document(
            model.name, {**metadata.to_dict(), "outputs": [each.name for each in opened.session.get_outputs()]}
        ),
        sha256=opened.sha256,
        metadata=metadata,
        certificate=None if certificate is None else _certificate(certificate),
        run=None if found is None else Document(f"{found.name}/{RUN_FILE}", found.to_dict()),
        counted=None if found is None else _counted(found),
        crossvals=crossvals,
        evaluations=tested,
    )


def _certificate(certificate: Certificate) -> Document:
    """Check the evidence of a certificate, of which ``read_certificate`` has checked what predictions need."""
    try:
        content = parse_json(certificate.content)
        datetime.fromisoformat(content["created"])
        check_types(content, _Evidence)
        agreements = [each for forms in content.get("against_torch", {}).values() for each in forms.values()]
        for agreement in (*agreements, content.get("against_training")):
            if agreement is not None:
                check_types(vars(Agreement(**agreement)), Agreement)
        if gate := content.get("gate"):
            check_types({name: gate[name] for name in _Gate.__annotations__}, _Gate)
        if any("file" not in entry for entry in content["models"].values()):
            raise ValueError("a model without the name of its file")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix, path = INTACT_COPY, certificate.path
        raise ModelError("certificate cannot be read", path=path, found=str(error), fix=fix) from error
    return Document(certificate.path.name, content)


def _open_run(model: Path, metadata: ModelMetadata, named: Path | None) -> Run | None:
    folder = named
    if folder is None:
        try:
            folder = find_run(metadata.run, metadata.head_sha256, runs=Path(DEFAULT_RUNS), near=model.absolute())
        except RunError as error:
            what = f"{error.what} ({error.found})" if error.found else error.what
            logger.warning("%s: what only it knows is left for you to fill in; %s", what, error.fix)
            return None
    run = open_run(folder)
    point = run.operating_point
    found = _identity(run.head_sha256, point and point.positive, point and point.threshold)
    if found == _identity(metadata.head_sha256, metadata.positive, metadata.threshold):
        return run
    if named is None:
        what = "%s has another head or threshold than the model: the run is not used; name it with --run"
        logger.warning(what, folder)
        return None
    raise _of_another_model(folder, metadata, found)


def _identity(head_sha256: object, positive: object, threshold: object) -> str:
    """Say what decides: heads of the same features and settings are equal, and may have different thresholds."""
    decision = "no threshold" if positive is None else f"{positive} from {threshold}"
    return f"a head of SHA-256 {str(head_sha256)[:16]}…, {decision}"


def _of_another_model(path: Path, metadata: ModelMetadata, found: str) -> MismatchError:
    return MismatchError(
        "this is of another model",
        path=path,
        expected=f"{_identity(metadata.head_sha256, metadata.positive, metadata.threshold)} (run {metadata.run})",
        found=found,
        fix=f"name the run or evaluation of the model, or export that run with xexport onnx {path}",
    )


def _results(
    folders: Sequence[Path], metadata: ModelMetadata, run: Run | None
) -> tuple[list[Document], list[Document]]:
    """Return the cross-validations and the evaluations in folders, and the cross-validation that the run knows."""
    known = _crossval_of(run, metadata)
    crossvals, tested = [*filter(None, [known])], []
    for folder in dict.fromkeys(folder.absolute() for folder in folders):
        folder = folder.parent if folder.name in (CROSSVAL_FILE, EVAL_FILE) else folder
        if (folder / CROSSVAL_FILE).is_file():
            crossval = _crossval(folder, metadata)
            if known is None or crossval.content != known.content:
                crossvals.append(crossval)
        elif not (folder / EVAL_FILE).is_file():
            raise RunError(
                "no evaluation found in this folder",
                path=folder,
                expected=f"{EVAL_FILE} of xhead eval, or {CROSSVAL_FILE} of xhead crossval",
                fix="xhead eval RUN IMAGES --name NAME, then --eval runs/NAME",
            )
        else:
            open_evaluation(folder)
            content = parse_json((folder / EVAL_FILE).read_bytes())
            studied = content.get("statistics") or {}
            found = _identity(content.get("head_sha256"), studied.get("positive"), studied.get("threshold"))
            if found != _identity(metadata.head_sha256, metadata.positive, metadata.threshold):
                raise _of_another_model(folder, metadata, found)
            tested.append(Document(f"{folder.name}/{EVAL_FILE}", content))
    return crossvals, tested


def _crossval(folder: Path, metadata: ModelMetadata) -> Document:
    """Read a cross-validation: of heads of its own, on the features that the model's head was trained on."""
    stored = open_crossval(folder)
    if stored["cache"]["content_sha256"] != metadata.cache_sha256:
        raise MismatchError(
            "a cross-validation of other features than those of the model",
            path=folder,
            expected=f"features of SHA-256 {metadata.cache_sha256[:16]}…",
            found=f"{stored['cache']['content_sha256'][:16]}…",
            fix="xhead crossval on the features of the model",
        )
    content = parse_json((folder / CROSSVAL_FILE).read_bytes())
    try:
        check_types(content, _Crossval)
    except ValueError as error:
        fix = "cross-validate again with xhead crossval"
        raise RunError("damaged crossval.json", path=folder, found=str(error), fix=fix) from error
    return Document(f"{folder.absolute().name}/{CROSSVAL_FILE}", content)


class _Crossval(TypedDict, total=False):
    statistics: Study
    subgroups: dict[str, Any]


def _crossval_of(run: Run | None, metadata: ModelMetadata) -> Document | None:
    """Return the cross-validation that chose the run's threshold, if it is still beside the run as it was."""
    if run is None or run.crossval is None:
        return None
    folder = run.folder.absolute().parent / run.crossval["name"]
    try:
        found = _crossval(folder, metadata)
    except XfeatError as error:
        logger.warning("the cross-validation of the run's threshold is not used: %s", error.what)
        return None
    if found.get("content_sha256") == run.crossval["content_sha256"]:
        return found
    logger.warning("%s is not the cross-validation of the run's threshold any more: it is not used", folder)
    return None


def _counted(run: Run) -> Document | None:
    """Count images and patients of each split as it was used, where the cache is still there."""
    search = search_cache(run)
    if search.path is None:
        logger.warning("the features of the run were not found: patients per split are left for you to fill in")
        return None
    cache = open_cache_of(run)
    order = {split: place for place, split in enumerate(run.split["images"])}
    rows = sorted(run.predictions(), key=lambda row: order.get(row["split"], len(order)))
    return Document(f"{cache.path.name} with predictions.csv", _counts(cache, rows))


def _counts(cache: FeatureCache, predictions: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    group_of = dict(zip(cache.columns.path, cache.columns.group, strict=True))
    rows = [(row["split"], row["label"], group_of.get(row["path"], "")) for row in predictions]
    splits = {
        split: {
            "images": sum(each == split for each, _, _ in rows),
            "patients": len({group for each, _, group in rows if each == split and group}),
            "classes": dict(Counter(label for each, label, _ in rows if each == split)),
        }
        for split in dict.fromkeys(each for each, _, _ in rows)
    }
    parts = Counter(group for _, group in {(split, group) for split, _, group in rows if group})
    return {
        "all_images_have_patients": all(group for _, _, group in rows),
        "patients_in_two_splits": sum(count > 1 for count in parts.values()),
        "splits": splits,
        "unreadable_images": len(cache.skipped),
        "files_left_out": {reason: entry["files"] for reason, entry in cache.left_out.items()},
    }

"""The sections of a card: what was measured, each row with its place, and what only the author knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from xfeat.export.card.figures import error_rows, interval_rows, metrics, prevalence_words, studies, threshold_words
from xfeat.export.card.rows import Row, blanks, fact, row_of
from xfeat.export.card.sources import Document, Sources
from xfeat.featurize.text import MAX_LISTED, listed
from xfeat.head.reports.formatting import percent
from xfeat.head.reports.study_text import benefit_text, drop_rows, expected_elsewhere, gap_texts

_INITIAL = "the encoder keeps its own; the head starts at random, seed {}"
# What only the author knows.
_AUTHOR = blanks(contact="authors, contact, citation")
_USE = blanks(
    population="patients and images that the model is meant for",
    users="users, and place in the clinical pathway",
    out_of_scope="uses that it is not meant for",
)
_DATA = blanks(
    source="source of the images: hospitals, dates, how they were selected",
    acquisition="devices and acquisition",
    reference="reference standard: who labelled the images, how, and how well they agree",
    demographics="age, sex and disease of the patients of each split",
    privacy="de-identification, ethics approval, consent",
)
_STUDY = blanks(
    protocol="protocol, registration",
    availability="where code, model and data can be had",
    funding="funding, conflicts of interest",
)


@dataclass(frozen=True)
class Section:
    """A part of a card.

    Attributes:
        title: its heading.
        rows: its facts.
        note: a sentence before them, which is true of every model.
    """

    title: str
    rows: list[Row]
    note: str = ""


def sections(sources: Sources, license: str | None) -> list[Section]:
    """Return the sections after Mitchell et al., Model Cards for Model Reporting, doi:10.1145/3287560.3287596.

    What nobody measured is not there, except for rows without a text: those the author fills in.
    """
    by_patient = "In brackets: 95 % confidence intervals. They respect that images of one patient are alike, where "
    return [
        Section("Model", [*_model(sources), Row(id="author.license", label="licence", text=license or ""), *_AUTHOR]),
        Section("Intended use", _USE, "Research, on images like those of the training. Not a medical device."),
        Section("Training data", [*_data(sources), *_DATA]),
        Section("Evaluation data", [*_evaluation_data(sources)]),
        Section("Metrics", [*_metrics(sources)], f"{by_patient}patients are known."),
        Section("Operating point", [*_operating_point(sources)]),
        Section("Subgroups", [*_subgroups(sources)]),
        Section("Other sources", [*_elsewhere(sources)]),
        Section("Out of distribution", [*_ood(sources)]),
        Section("Leakage and shortcuts", [*_audit(sources)]),
        Section("Agreement with the trained model", [*_parity(sources)]),
        Section("Environment", [*_environment(sources)]),
        Section("About the study", _STUDY),
    ]


def _model(sources: Sources) -> Iterator[Row]:
    model, run, metadata = sources.model, sources.run, sources.metadata
    spec = metadata.feature_spec
    yield from fact("model.encoder", "encoder, frozen", model, "feature_spec", lambda _: spec.describe())
    digest = "SHA-256 {}".format
    yield from fact("model.weights", "weights of the encoder", model, "feature_spec.weights_sha256", digest)
    yield from fact("model.head", "trained head", run, "head_spec", lambda head: _head(run, head))
    yield from fact("model.classes", "classes", model, "class_names", listed)
    resized = f"pixels of any size; resized inside to {spec.preprocess.size} × {spec.preprocess.size}"
    variants = {"full": f"uint8 [N, H, W, 3], RGB, {resized}", "core": "float32 [N, 3, S, S], RGB, 0 to 255"}
    yield from fact("model.input", "input", model, "variant", variants.__getitem__)
    yield from fact("model.output", "output", model, "outputs", ", ".join)
    if "heatmap" in (model.get("outputs") or []):
        yield from fact("model.heatmap", "explanation", model, "outputs", lambda _: "heatmap: Grad-CAM of every class")
    yield from fact("model.preprocess", "preprocessing", model, "feature_spec.preprocess", _pairs)
    yield from fact("model.training", "optimisation", run, "train_spec", _pairs)
    yield from fact("model.imbalance", "class weights", run, "train_spec.class_weight")
    yield from fact("model.initial", "initial weights", run, "train_spec.seed", _INITIAL.format)
    yield from fact("model.selection", "epoch", run, "best_epoch", lambda best: _epoch(run, best))
    if run is not None:
        yield _ensemble(run)
    yield from fact("model.calibration", "temperature", run, "calibration", _calibration)
    yield from fact("model.precision", "precision of the weights", model, "precision")
    yield from fact("model.files", "files", sources.certificate, "models", _files)
    yield from fact("model.created", "exported", sources.certificate, "created")


def _head(run: Document | None, head: Mapping[str, Any]) -> str:
    assert run is not None
    widths = [run.content["dim"], *head["hidden"], len(run.content["class_names"])]
    return f"{' → '.join(map(str, widths))}, dropout {head['dropout']}, feature dropout {head['feature_dropout']}"


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def _epoch(run: Document | None, best: int) -> str:
    assert run is not None
    return f"{best} of {run.content['epochs']}: that of the lowest validation loss"


def _ensemble(run: Document) -> Row:
    members = run.get("ensemble.members")
    text = f"{members} heads, averaged into one" if members else "none: one head"
    return row_of(run, "ensemble", "model.ensemble", "ensemble", text)


def _calibration(found: Mapping[str, Any]) -> str:
    note = found.get("note") or f"fitted on {found.get('fitted_on', 'the validation images')}"
    return f"{found['temperature']:.4g}: {note}"


def _files(models: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(f"{each['file']} ({variant}): SHA-256 {each['sha256']}" for variant, each in models.items())


def _data(sources: Sources) -> Iterator[Row]:
    run, counted, described = sources.run, sources.counted, sources.described
    yield from fact("data.images", "images", run, "split.images", _counts)
    if run is None:
        yield from fact("data.images", "images", described, "metrics", partial(_per_split, "images"))
    yield from fact("data.classes", "images per class", described, "metrics", _classes_of)
    if counted and counted.get("all_images_have_patients"):
        yield from fact("data.patients", "patients", counted, "splits", partial(_per_split, "patients"))
        yield from fact("data.disjoint", "level of the splits", counted, "patients_in_two_splits", _disjoint)
    yield from fact("data.split", "origin of the splits", run, "split.source")
    yield from fact("data.unreadable", "images that could not be read", counted, "unreadable_images")
    yield from fact("data.left_out", "files left out, by reason", counted, "files_left_out", _counts)
    yield from fact("data.corrections", "corrected labels and groups", run, "cache.corrections", lambda c: str(len(c)))
    yield from fact("data.digest", "features", sources.model, "cache_sha256", "content of SHA-256 {}".format)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _per_split(what: str, found: Mapping[str, Mapping[str, int]]) -> str:
    return _counts({split: each[what] for split, each in found.items()})


def _classes_of(found: Any) -> str:
    """Write the images per class of each split; of many classes, the smallest and the largest."""
    texts = {}
    for split, metrics_of_split in found.items():
        rows = metrics_of_split.get("classes", {})
        counts = {name: row["images"] for name, row in sorted(rows.items()) if "images" in row}
        if len(counts) > MAX_LISTED:
            ends = (min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__))
            counts = {f"{len(counts)} classes, from {ends[0]}": counts[ends[0]], f"to {ends[1]}": counts[ends[1]]}
        texts[split] = _counts(counts)
    return "; ".join(f"{split}: {text}" for split, text in texts.items() if text)


def _disjoint(shared: int) -> str:
    return f"NOT disjoint: {shared} patients are in two splits" if shared else "patient: none is in two splits"


def _evaluation_data(sources: Sources) -> Iterator[Row]:
    for name, document, key, external in studies(sources):
        unseen = document.get("seen_in_training") == [] and not document.get("seen_in_test")
        id = "data.internal" if not external else "data.external" if unseen else "data.seen"
        yield from fact(id, name, document, key, partial(_study_words, document))
    if not sources.evaluations:
        yield from blanks(external="evaluation on images of another source")


def _study_words(document: Document, study: Mapping[str, Any]) -> str:
    patients = "" if study["patients"] == study["images"] else f" of {study['patients']} patients"
    left_out, seen = document.get("left_out"), document.get("seen_in_training")
    texts = [f"{study['images']} images{patients}"]
    if document.get("folds"):
        seeds = f", each with {document.get('seeds')} seeds" if (document.get("seeds") or 1) > 1 else ""
        texts.append(f"{document.get('folds')} folds{seeds}")
    if left_out:
        texts.append(f"{left_out} left out: without a label, or of other classes")
    if "seen_in_training" in document.content:
        known = f"{len(seen)} of them training images" if seen else "none of them seen in training"
        texts.append("it could not be checked whether they are training images" if seen is None else known)
    if tested := document.get("seen_in_test"):
        texts.append(f"{len(tested)} of them test images of the run, and not from elsewhere")
    return "; ".join(texts)


def _metrics(sources: Sources) -> Iterator[Row]:
    yield from interval_rows(sources)
    yield from (metric.row for metric in metrics(sources))
    yield from error_rows(sources)
    for name, document, key, external in studies(sources):
        id = "external.benefit" if external else "metrics.benefit"
        yield from fact(id, f"{name}: net benefit", document, f"{key}.decision_curve", _benefit)


def _benefit(curve: Mapping[str, Any]) -> str:
    return benefit_text(curve).removeprefix("net benefit: ")


def _operating_point(sources: Sources) -> Iterator[Row]:
    model, run = sources.model, sources.run
    if sources.metadata.positive is None:
        yield row_of(model, "positive", "point.threshold", "decision", "the most probable class; no threshold")
        return
    yield from fact("point.threshold", "decision", model, "threshold", lambda _: threshold_words(model.content))
    yield from fact("point.chosen_on", "chosen on", run, "operating_point.chosen_on")
    yield from fact("point.target", "target sensitivity", run, "operating_point.target_sensitivity", percent)
    yield from fact("point.note", "is the target supported", run, "operating_point.note")
    yield from fact("point.prevalence", "predictive values", run, "operating_point.prevalences", prevalence_words)


def _subgroups(sources: Sources) -> Iterator[Row]:
    for name, document, _, _ in studies(sources):
        of_class = document.get("subgroups.class")
        for column, found in (document.get("subgroups.columns") or {}).items():
            gaps = "; ".join(gap_texts(found["gaps"], document.content["subgroups"]["comparisons"]))
            values = ", ".join(f"{row['value']} {row['images']}" for row in found["values"])
            text = "; ".join(filter(None, [values and f"images: {values}", found["note"], gaps]))
            label = f"{name}: {column}" + (f" (sensitivity and specificity of {of_class})" if of_class else "")
            if text:
                id = f"subgroups.{'gaps' if gaps else 'values'}"
                yield row_of(document, "subgroups.columns", id, label, text)


def _elsewhere(sources: Sources) -> Iterator[Row]:
    measured = [(each, "elsewhere") for each in sources.crossvals]
    if sources.run and not any(each.get("elsewhere") for each in sources.crossvals):
        measured.append((sources.run, "crossval.elsewhere"))
    for document, key in measured:
        id = "elsewhere.unknown" if document.get(f"{key}.unanswerable") else "elsewhere.left_out"
        yield from fact(id, f"{document.get('name')}: sources left out", document, key, expected_elsewhere)
    if sources.run is None:
        yield from fact("elsewhere.left_out", "sources left out", sources.model, "elsewhere")
    for evaluation in sources.evaluations:
        for figure, text, verdict in drop_rows(evaluation.get("drop")):
            label = f"{evaluation.get('name')}: drop of {figure}, in points"
            yield row_of(evaluation, "drop.figures", "elsewhere.drop", label, f"{text}: {verdict}")


def _ood(sources: Sources) -> Iterator[Row]:
    threshold = "{:.4g}: a score of 95 % of the validation images is lower".format
    yield from fact("ood.threshold", "above", sources.model, "ood_threshold", threshold)
    if sources.certificate:
        for kind, found in (sources.certificate.get("out_of_distribution") or {}).items():
            text = f"{round(found['above'] * found['images'])} of {found['images']} above the threshold"
            yield row_of(sources.certificate, "out_of_distribution", "ood.kinds", kind, text)


def _audit(sources: Sources) -> Iterator[Row]:
    described = sources.described
    yield from fact("audit.leakage", "leakage", described, "audit.verdicts.leakage")
    yield from fact("audit.shortcuts", "shortcuts", described, "audit.verdicts.shortcuts")
    for key in ("failures", "warnings"):
        for text in described.get(f"audit.{key}") or []:
            yield row_of(described, f"audit.{key}", f"audit.{key}", key[:-1], str(text))


def _parity(sources: Sources) -> Iterator[Row]:
    certificate = sources.certificate
    if certificate is None:
        return
    for provider, checks in (certificate.get("against_torch") or {}).items():
        for form, found in checks.items():
            yield row_of(certificate, "against_torch", "parity.torch", f"{form}, {provider}", _agreement(found))
    yield from fact("parity.training", "predictions of the training", certificate, "against_training", _agreement)
    yield from fact("parity.gate", f"{sources.metadata.precision} beside float32", certificate, "gate", _gate)


def _agreement(found: Mapping[str, float]) -> str:
    changed = found["changed_decisions"] + found["close_calls"]
    largest = f"largest difference of a probability {found['max_difference']:.1e}"
    return f"{found['images']} images, {largest}, {changed} decided differently"


def _gate(gate: Mapping[str, Any]) -> str:
    before, after = gate["before"], gate["after"]
    scores = ", ".join(f"{name} {percent(before[name])} → {percent(after[name])}" for name in after)
    return f"{gate['images']} validation images: {scores}; {gate['decided_differently']} decided differently"


def _environment(sources: Sources) -> Iterator[Row]:
    yield from fact("software.training", "software of the training", sources.run, "versions", _counts)
    yield from fact("software.export", "software of the export", sources.certificate, "versions", _counts)
    yield from fact("software.speed", "milliseconds per image", sources.certificate, "milliseconds_an_image", _speed)


def _speed(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in found.items())

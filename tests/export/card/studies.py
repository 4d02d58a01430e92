"""Documents of a card, made by the functions that write run.json, crossval.json and eval.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from xfeat.export.card.card import Card, make_card
from xfeat.export.card.sources import Document, Sources
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.study import Cases, study
from xfeat.head.evaluation.subgroups import subgroup_figures

SHA = "ab" * 32
AGREEMENT = {"images": 40, "max_difference": 1e-6, "mean_difference": 1e-7, "changed_decisions": 0, "close_calls": 0}
AUDIT = {"audited": True, "passed": True, "failures": [], "warnings": ["the border alone 0.9"]}


def drop_of(value: float) -> dict[str, Any]:
    return {"figures": {"auc": {"value": value, "interval": [value - 0.1, value + 0.1]}}}


@dataclass(frozen=True)
class Study:
    """A study that is complete: a run with patients, its cross-validation, and an evaluation elsewhere.

    Each method returns its documents with something missing or different.
    """

    classes: tuple[str, ...] = ("sick", "well")
    positive: bool = True

    def cases(self, images: int = 120) -> Cases:
        """Return predictions of two images a patient, some of them wrong."""
        rng = np.random.default_rng(0)
        labels = np.arange(images) // 2 % len(self.classes)
        logits = 2.0 * np.eye(len(self.classes))[labels] + rng.normal(size=(images, len(self.classes)))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        chosen = {"positive": 0, "threshold": 0.4} if self.positive else {}
        patients = np.arange(images) // 2
        return Cases(
            labels=labels,
            probabilities=probabilities.astype(np.float32),
            patients=patients,
            class_names=self.classes,
            **chosen,
        )

    @property
    def metadata(self) -> ModelMetadata:
        spec = FeatureSpec(backbone="efficientnet-lite0", weights_sha256=SHA, preprocess=PreprocessSpec(size=64))
        return ModelMetadata(
            variant="full",
            class_names=self.classes,
            feature_spec=spec,
            positive=self.classes[0] if self.positive else None,
            threshold=0.4 if self.positive else None,
            cache_sha256=SHA,
            head_sha256=SHA,
            run="study",
            ood_threshold=1.5,
        )

    def model(self, **changes: Any) -> Document:
        outputs = ["probabilities", "logits", "heatmap", "ood", "decision"]
        return Document("model.onnx", {**self.metadata.to_dict(), "outputs": outputs, **changes})

    def run(self, **changes: Any) -> Document:
        cases = self.cases()
        metrics = classification_metrics(cases.labels, cases.probabilities, self.classes)
        point = {"positive": self.classes[0], "threshold": 0.4, "chosen_on": "the validation images", "note": "few"}
        content = {
            "name": "study",
            "dim": 1280,
            "class_names": [*self.classes],
            "head_spec": {"hidden": [512], "dropout": 0.4, "feature_dropout": 0.0},
            "train_spec": {"epochs": 10, "lr": 0.0005, "class_weight": "none", "seed": 0},
            "epochs": 10,
            "best_epoch": 7,
            "ensemble": None,
            "split": {"source": "the folders of the data set", "images": {"train": 90, "valid": 30, "test": 120}},
            "calibration": {"temperature": 1.1, "note": "", "fitted_on": "the validation images"},
            "metrics": {"valid": metrics, "test": metrics},
            "statistics": {"valid": study(cases), "test": study(cases)},
            "subgroups": self.subgroups(),
            "operating_point": point if self.positive else None,
            "audit": {**AUDIT, "verdicts": {"leakage": "none found", "shortcuts": "none found"}},
            "versions": {"python": "3.11.7", "xfeat": "0.2.0", "torch": "2.14.1"},
        }
        return Document("study/run.json", {**content, **changes})

    def subgroups(self) -> dict[str, Any]:
        """Return the figures of two hospitals."""
        cases = self.cases()
        codes = np.arange(len(cases.labels)) // 4 % 2
        column = ExtraColumn("category", codes, names=("A", "B"), source="table")
        return subgroup_figures(cases, {"hospital": column}, np.arange(len(cases.labels)))

    def counted(self, **changes: Any) -> Document:
        splits = {"train": {"images": 90, "patients": 45}, "test": {"images": 120, "patients": 60}}
        known = {"all_images_have_patients": True, "patients_in_two_splits": 0, "splits": splits}
        return Document("features.h5", {**known, "unreadable_images": 0, "files_left_out": {}, **changes})

    def certificate(self, **changes: Any) -> Document:
        content = {
            "created": "2026-11-29T18:17:18+00:00",
            "models": {
                "full": {"file": "model.onnx", "sha256": SHA},
                "core": {"file": "model.core.onnx", "sha256": "cd" * 32},
            },
            "against_torch": {"CPUExecutionProvider": {"full": AGREEMENT}},
            "against_training": AGREEMENT,
            "milliseconds_an_image": {"torch": 6.0},
            "out_of_distribution": {"noise": {"images": 8, "above": 1.0}, "inverted": {"images": 8, "above": 0.25}},
            "versions": {"python": "3.11.7", "xfeat": "0.2.0", "onnxruntime-gpu": "1.31.1"},
        }
        return Document("model.certificate.json", {**content, **changes})

    def crossval(self, **changes: Any) -> Document:
        figure = {"value": 0.9, "interval": [0.8, 0.95]}
        elsewhere = {
            "column": "hospital",
            "unanswerable": "",
            "same_as_class": [],
            "overall": {"auc": {"elsewhere": figure}},
        }
        facts = {"statistics": study(self.cases()), "subgroups": self.subgroups(), "elsewhere": elsewhere}
        return Document("crossval/crossval.json", {"name": "crossval", "folds": 5, "seeds": 1, **facts, **changes})

    def evaluation(self, **changes: Any) -> Document:
        facts = {"statistics": study(self.cases()), "subgroups": self.subgroups(), "drop": drop_of(0.05)}
        content = {"name": "hospital-d", "images": 120, "left_out": 0, "seen_in_training": [], **facts}
        return Document("hospital-d/eval.json", {**content, **changes})

    def sources(self, **changes: Any) -> Sources:
        complete = Sources(
            model=self.model(),
            sha256=SHA,
            metadata=self.metadata,
            certificate=self.certificate(),
            run=self.run(),
            counted=self.counted(),
            crossvals=[self.crossval()],
            evaluations=[self.evaluation()],
        )
        return replace(complete, **changes)


STUDY, THREE = Study(), Study(classes=("a", "b", "c"), positive=False)
ALONE = {"certificate": None, "run": None, "counted": None, "crossvals": [], "evaluations": []}
UNANSWERABLE = {"column": "hospital", "unanswerable": "hospital is the class", "same_as_class": [], "overall": {}}
_SOURCES = {
    "everything": lambda: STUDY.sources(),
    "three classes": lambda: THREE.sources(),
    "no patients": lambda: STUDY.sources(counted=STUDY.counted(all_images_have_patients=False)),
    "a patient in two splits": lambda: STUDY.sources(counted=STUDY.counted(patients_in_two_splits=3)),
    "no cache": lambda: STUDY.sources(counted=None),
    "no evaluation": lambda: STUDY.sources(evaluations=[]),
    "no other source": lambda: STUDY.sources(evaluations=[], crossvals=[]),
    "trained on the evaluation": lambda: STUDY.sources(
        evaluations=[STUDY.evaluation(seen_in_training=["1.png"])], crossvals=[]
    ),
    "tested on its test images": lambda: STUDY.sources(
        evaluations=[STUDY.evaluation(seen_in_test=["1.png"])], crossvals=[]
    ),
    "perhaps trained on it": lambda: STUDY.sources(evaluations=[STUDY.evaluation(seen_in_training=None)], crossvals=[]),
    "one source only": lambda: STUDY.sources(evaluations=[], crossvals=[STUDY.crossval(elsewhere=UNANSWERABLE)]),
    "an ensemble": lambda: STUDY.sources(run=STUDY.run(ensemble={"members": 5, "best_epochs": [1, 2, 3, 4, 5]})),
    "no columns": lambda: STUDY.sources(
        run=STUDY.run(subgroups={}), crossvals=[STUDY.crossval(subgroups={})], evaluations=[]
    ),
    "a run of 0.1": lambda: STUDY.sources(run=STUDY.run(statistics={}, subgroups={}), crossvals=[], evaluations=[]),
    "no audit": lambda: STUDY.sources(run=STUDY.run(audit=None)),
    "no heatmap": lambda: STUDY.sources(model=STUDY.model(outputs=["probabilities", "logits"])),
    "no certificate": lambda: STUDY.sources(certificate=None),
    "no run": lambda: STUDY.sources(
        **{**ALONE, "certificate": STUDY.certificate()},
        model=STUDY.model(
            metrics={"test": {"images": 40, "accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "auc": 0.97}}
        ),
    ),
    "a classifier of scikit-learn": lambda: STUDY.sources(**ALONE),
}

SOURCES = list(_SOURCES)


@cache
def sources_of(name: str) -> Sources:
    """Return the sources of a name; made once, and not while tests are collected."""
    return _SOURCES[name]()


@cache
def card_of(name: str) -> Card:
    """Return the card of the sources of a name."""
    return make_card(sources_of(name), None)

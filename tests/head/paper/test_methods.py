"""The methods section says every setting as the result stores it, and nothing that the result does not say."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.head.conftest import cache_maker
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.head.paper.material import Material, open_material
from xfeat.head.paper.methods import methods_text
from xfeat.head.specs import HeadSpec, TargetSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A run of patients with two images each, and a threshold."""
    folder = tmp_path_factory.mktemp("methods")
    labels = [row // 2 % 2 for row in range(180)]
    cache = cache_maker(folder)(labels=labels, groups=[f"p{row // 2}" for row in range(180)])
    options = TrainOptions(target=TargetSpec(positive="covid", target_sensitivity=0.9))
    train_run(cache, HeadSpec(hidden=(6,)), TrainSpec(epochs=2), runs=folder / "runs", name="run", options=options)
    return open_material(folder / "runs" / "run")


OTHER: dict[str, dict[str, tuple[Any, str]]] = {
    "train_spec": {
        "epochs": (17, "at most 17 epochs"),
        "lr": (3e-5, "learning rate 3e-05"),
        "batch_size": (48, "batch size 48"),
        "weight_decay": (0.013, "weight decay 0.013"),
        "class_weight": ("balanced", "class weights balanced"),
        "label_smoothing": (0.07, "label smoothing 0.07"),
        "focal_gamma": (1.5, "focal loss 1.5"),
        "schedule": ("cosine", "(cosine)"),
        "patience": (4, "early stopping after 4 epochs"),
        "average": (0.99, "moving average of the weights 0.99"),
        "seed": (41, "seed 41"),
    },
    "head_spec": {
        "hidden": ((31, 7), "hidden layers of 31, 7 units"),
        "dropout": (0.35, "dropout 0.35"),
        "feature_dropout": (0.15, "0.15 on the features"),
    },
    "feature_spec": {
        "backbone": ("onnx:my_net", "onnx:my_net"),
        "weights_sha256": ("a1" * 32, "a1" * 32),
        "pooling": ("multilevel", "pooling: multilevel"),
        "views": (4, "4 views"),
        "dtype": ("float16", "stored as float16"),
        "precision": ("bfloat16", "in bfloat16"),
    },
    "preprocess": {
        "size": (299, "299 × 299 pixels"),
        "resize": ("crop", "from the centred square"),
        "crop": (0.12, "0.12 of the width"),
        "interpolation": ("bicubic", "by bicubic interpolation"),
        "mean": ((0.485, 0.456, 0.406), "mean (0.485, 0.456, 0.406)"),
        "std": ((0.229, 0.224, 0.225), "standard deviation (0.229, 0.224, 0.225)"),
        "grey_bits": (12, "2^12"),
        "frames": ("middle", "the middle one"),
    },
}
SPECS = {"train_spec": TrainSpec, "head_spec": HeadSpec, "feature_spec": FeatureSpec, "preprocess": PreprocessSpec}


def test_the_table_has_every_setting() -> None:
    """A new field of a spec fails here until methods.jinja has it."""
    for name, spec in SPECS.items():
        assert set(OTHER[name]) == {field.name for field in dataclasses.fields(spec)} - {"preprocess"}


@pytest.mark.parametrize(("spec", "field"), [(spec, field) for spec, fields in OTHER.items() for field in fields])
def test_a_changed_setting_changes_the_text(material: Material, spec: str, field: str) -> None:
    value, words = OTHER[spec][field]
    assert words not in methods_text(material, {})
    if spec == "preprocess":
        pixels = dataclasses.replace(material.feature_spec.preprocess, **{field: value})
        changed = dataclasses.replace(
            material, feature_spec=dataclasses.replace(material.feature_spec, preprocess=pixels)
        )
    else:
        changed = dataclasses.replace(
            material, **{spec: dataclasses.replace(getattr(material, spec), **{field: value})}
        )
    assert words in methods_text(changed, {})


RUN_TOGETHER = r"[a-z)]\.[A-Z\[]|\)[a-z]|,[a-z]|None|Undefined|\{\{|%\}|  "
FACTS: dict[str, tuple[dict[str, Any], str]] = {
    "origin of the split": ({"split": {"source": "made by xfeat (all parts; grouped, stratified, seed 3)"}}, "seed 3)"),
    "epoch": ({"best_epoch": 7, "epochs": 9}, "epoch 7 of 9"),
    "ensemble": ({"ensemble": {"members": 3, "best_epochs": [4, 8, 6]}}, "Of 3 such heads"),
    "epochs of an ensemble": ({"ensemble": {"members": 3, "best_epochs": [4, 8, 6]}}, "epoch 4, 8, 6"),
    "temperature": ({"temperature": 1.2345678901}, "temperature of 1.2345678901"),
    "no temperature": (
        {"temperature": 1.0, "calibration": {"note": "calibration is off"}},
        "temperature of 1 (calibration is off)",
    ),
    "no threshold": ({"operating_point": None}, "most probable class; no threshold was chosen"),
    "rows in blocks": ({"reading": {"mode": "blocks", "block_rows": 64, "buffer_rows": 4096}}, "blocks of 64"),
    "versions": ({"versions": {"torch": "9.9.9"}}, "torch 9.9.9"),
    "dim": ({"dim": 77}, "77 features per image"),
    "corrections": (
        {"cache": {"content_sha256": "", "data_root": "", "corrections": [["a.png", "exclude", "", ""]]}},
        "Corrections: 1 image excluded.",
    ),
    "threshold of a cross-validation": ({"crossval": {"name": "cv-7"}}, "(cross-validation cv-7): of all thresholds"),
    "audit": (
        {"audit": {"audited": True, "passed": False, "verdicts": {"leakage": "found", "shortcuts": "none found"}}},
        "leakage found, shortcuts none found",
    ),
    "audit of version 0.1": (
        {"audit": {"audited": True, "passed": True}},
        "An automatic audit of the features: leakage none found.",
    ),
    "calibration of version 0.1": (
        {"calibration": {"note": ""}, "temperature": 2.5},
        "2.5 (fitted on the validation images",
    ),
    "name in Markdown": (
        {"operating_point": {"positive": "a*b*_c_$d$<i>", "threshold": 0.25, "chosen_on": "a given number"}},
        r"“a\*b\*\_c\_\$d\$\<i\>” if its probability was 0.25 or more",
    ),
}


@pytest.mark.parametrize("kind", FACTS)
def test_a_changed_fact_changes_the_text(material: Material, kind: str) -> None:
    changes, words = FACTS[kind]
    facts = {**material.facts, "calibration": {"note": "", "fitted_on": "x"}, **changes}
    if changes.get("operating_point"):
        facts["operating_point"] = {"target_sensitivity": None, **changes["operating_point"]}
    assert words not in methods_text(material, {})
    text = methods_text(dataclasses.replace(material, facts=facts), {})
    assert words in text
    assert not re.search(RUN_TOGETHER, text)


def test_numbers_are_those_of_run_json(material: Material, tmp_path: Path) -> None:
    stored = json.loads(json.dumps(material.facts))
    text = methods_text(material, {"roc": "A curve of “x_y” *here*."})
    assert f"probability was {stored['operating_point']['threshold']} or more" in text
    assert f"sensitivity of at least {stored['operating_point']['target_sensitivity']}" in text
    for digest in (stored["head_sha256"], stored["content_sha256"], stored["cache"]["content_sha256"]):
        assert digest in text
    for part, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        images = stored["split"]["images"][part]
        assert f"The {name} part had {images} images of {images // 2} patients (“covid” {images // 2}" in text
    assert text.count("[for you to fill in:") == 2
    assert r"A curve of “x_y” \*here\*." in text
    assert not re.search(RUN_TOGETHER, text)

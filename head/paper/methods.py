"""The methods section of a paper: every setting of a result, as run.json, crossval.json or eval.json has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from xfeat.featurize.audit.stored import FOUND, NONE_FOUND
from xfeat.featurize.cache.columns import Correction, describe_corrections
from xfeat.featurize.text import printable
from xfeat.head.evaluation.subgroups import FEW_PATIENTS
from xfeat.head.paper.material import RUN, Material

if TYPE_CHECKING:
    from jinja2 import Template

_PARTS = {"train": "training", "valid": "validation", "test": "test"}


def methods_text(material: Material, captions: Mapping[str, str]) -> str:
    """Write methods.md: every setting, lines in brackets for what no file of the result says, and captions.

    Args:
        material: what was done.
        captions: of each figure, by the name of its files.

    Returns:
        Markdown, of the template methods.jinja.
    """
    text = _template().render(**_values(material), captions=captions)
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("xfeat.head.paper", "."),
        autoescape=True,
        finalize=_written,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["written"] = _written
    return environment.get_template("methods.jinja")


def _values(material: Material) -> dict[str, Any]:
    facts, study, names = material.facts, material.study, material.cases.class_names
    ensemble = facts.get("ensemble")  # a number in crossval.json
    members, best = (ensemble["members"], ensemble["best_epochs"]) if isinstance(ensemble, dict) else (ensemble, None)
    counts = np.bincount(material.cases.labels, minlength=len(names)).tolist()
    optional = (
        "baselines",
        "by_image",
        "calibration",
        "content_sha256",
        "created",
        "crossval",
        "head_sha256",
        "reading",
        "seen_in_test",
    )
    return {
        "kind": material.kind,
        "name": material.name,
        "facts": {**dict.fromkeys(optional), **facts},
        "classes": names,
        "class_counts": list(zip(names, counts, strict=True)),
        "tested": _of_patients(study["images"], study["patients"]),
        "by_patient": study["patients"] < study["images"],
        "parts": _parts(material) if material.kind == RUN else [],
        "data_name": PurePath(facts["cache"]["data_root"]).name,
        "corrections": describe_corrections(Correction(*row) for row in facts["cache"].get("corrections", [])),
        "verdicts": _verdicts(facts["audit"]),
        "elsewhere": material.elsewhere,
        "features": material.feature_spec,
        "pixels": material.feature_spec.preprocess,
        "head": material.head_spec,
        "train": material.train_spec,
        "members": members or 1,
        "best_epochs": best or [facts.get("best_epoch")],
        "point": facts["operating_point"],
        "subgroups": {"comparisons": 0, **material.subgroups},
        "few_patients": FEW_PATIENTS,
    }


def _parts(material: Material) -> list[dict[str, Any]]:
    facts = material.facts
    patients = {part: found["patients"] for part, found in facts["statistics"].items()}
    if material.training_patients is not None:
        patients["train"] = material.training_patients
    return [
        {
            "name": _PARTS[part],
            "images": found["images"],
            "of": _of_patients(found["images"], patients.get(part, found["images"])),
            "classes": [(name, row["images"]) for name, row in found["classes"].items()],
        }
        for part, found in facts["metrics"].items()
    ]


def _verdicts(audit: Mapping[str, Any] | None) -> dict[str, str]:
    """Return those of an audit, none without one; an audit of version 0.1 asked for leakage alone."""
    if not audit or not audit["audited"]:
        return {}
    return dict(audit.get("verdicts") or {"leakage": NONE_FOUND if audit["passed"] else FOUND})


def _of_patients(images: int, patients: int) -> str:
    return f"{images} images of {patients} patients" if patients < images else f"{images} images"


def _written(value: Any) -> Any:
    """Write numbers as JSON does, and text without what Markdown would take as markup, mathematics or HTML."""
    from markupsafe import Markup

    if isinstance(value, float):
        value = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if type(value) is str:
        return Markup(re.sub(r"([\\`*<>$|]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", printable(value)))  # nosec B704
    return value

"""``xexport info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import xfeat
from xfeat.export.cli.options import model_argument
from xfeat.featurize.console import Printed, json_option
from xfeat.featurize.text import listed


@click.command()
@model_argument
@json_option
def info(model: Path) -> Printed:
    """Show the content of MODEL: classes, settings, fingerprints, threshold, size, operators."""
    description = xfeat.describe(model)
    return description, _as_text(description)


def _as_text(facts: dict[str, Any]) -> list[str]:
    from xfeat.featurize.specs import FeatureSpec

    decision = f"{facts['positive']} from {facts['threshold']:.4g}" if facts["positive"] else "the most probable class"
    stored = facts["parameters"] / 1e6
    rows = {
        "model": f"{facts['model']}, {facts['bytes'] / 1e6:.1f} MB, {stored:.2f} million parameters",
        "variant": f"{facts['variant']}, {facts['precision']}, opset {facts['opset']}",
        "classes": f"{len(facts['class_names'])}: {listed(facts['class_names'])}",
        "decision": decision,
        "temperature": f"{facts['temperature']:.4g}",
        "out-of-distribution above": "no score" if facts["ood_threshold"] is None else f"{facts['ood_threshold']:.4g}",
        **_found(facts["ood_kinds"]),
        "features": FeatureSpec.from_dict(facts["feature_spec"]).describe(),
        "run": facts["run"],
        "fingerprints": f"features {facts['feature_fingerprint']}, cache {facts['cache_sha256'][:16]}, "
        f"head {facts['head_sha256'][:16]}, file {facts['sha256'][:16]}",
        "certificate": facts["certificate"],
        "inputs": _shapes(facts["inputs"]),
        "outputs": _shapes(facts["outputs"]),
        "operators": ", ".join(f"{count} {name}" for name, count in facts["operators"].items()),
    }
    if facts["optional_inputs"]:
        rows["inputs"] += f", and if another threshold is wanted {_shapes(facts['optional_inputs'])}"
    width = max(map(len, rows)) + 2
    return [f"{name + ':':{width}}{text}" for name, text in rows.items()]


def _found(kinds: dict[str, Any]) -> dict[str, str]:
    found = [f"{kind} {round(each['above'] * each['images'])} of {each['images']}" for kind, each in kinds.items()]
    return {"found above it": f"{', '.join(found)}; images of another hospital are often not found"} if found else {}


def _shapes(tensors: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['name']} {each['type']} {each['shape']}" for each in tensors).replace("'", "")

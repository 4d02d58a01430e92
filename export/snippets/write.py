"""Fills the templates with what one model needs: classes, threshold, ranges of grey levels, and how images are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.certificate import matching_certificate
from xfeat.export.specs import SNIPPET_LANGUAGES
from xfeat.featurize.errors import SpecError
from xfeat.featurize.specs import CROP_PARTS, PreprocessSpec, require

_TEMPLATES = {"python": "predict.py.txt", "js": "predict.mjs.txt", "cpp": "predict.cpp.txt"}
# What tells models apart, for a language whose library has no SHA-256.
_MARKS = (
    *("class_names", "feature_spec", "head_sha256", "ood_threshold", "positive", "precision", "threshold"),
    "variant",
)

_CUT = """\
    cut = [min((length * {crop_parts} + {half}) // {all_parts}, (length - 1) // 2) for length in image.size]
    width, height = (length - 2 * off for length, off in zip(image.size, cut))
"""
_SQUARE = """\
    side = min(width, height)
    cut = [cut[0] + (width - side) // 2, cut[1] + (height - side) // 2]
    width = height = side
"""
_CROP = """\
    image = image.crop((cut[0], cut[1], cut[0] + width, cut[1] + height))
"""


def write_snippet(model: Path, language: str) -> str:
    """Return the text of a program that classifies image files with a model as ``xserve predict`` does, without xfeat.

    Args:
        model: a file of ``xexport onnx``.
        language: ``python``, ``js`` (Node) or ``cpp``.

    Raises:
        ModelError: if the file was not written by this project.
        MismatchError: if it does not match the certificate beside it.
        SpecError: if the language is unknown, or cannot resize the images of a core model as Pillow does.
    """
    require(language in SNIPPET_LANGUAGES, "unknown language", expected=", ".join(SNIPPET_LANGUAGES), found=language)
    opened = open_model(model)
    matching_certificate(opened)
    metadata = opened.metadata
    if metadata.variant == "core" and language != "python":
        raise SpecError(
            "a core model takes images that were resized as Pillow does it, which only the Python program can",
            path=model,
            fix="name the full model, which resizes them itself, or take --lang python",
        )
    writers: dict[str, Callable[[ModelFile, ModelMetadata], dict[str, str]]]
    writers = {"python": _python, "js": partial(_values, literal=json.dumps), "cpp": _cpp}
    text = (resources.files(__package__) / "templates" / _TEMPLATES[language]).read_text(encoding="utf-8")
    for name, value in writers[language](opened, metadata).items():
        text = text.replace(f"§{name}§", value)
    return text


def _python(opened: ModelFile, metadata: ModelMetadata) -> dict[str, str]:
    spec = metadata.feature_spec.preprocess
    layout, prepared = "uint8 [1, height, width, 3]", "pixels[None]"
    if metadata.variant == "core":
        layout = "float32 [1, 3, height, width], 0 to 255"
        prepared = "np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)"
    elif spec.cuts:  # the model would cut an image of another shape again
        layout = "uint8 [1, 1, height · width, 3], which the model does not cut again"
        prepared = "pixels.reshape(1, 1, -1, 3)"
    return {
        **_values(opened, metadata, ascii),
        "size": repr(spec.size),
        "filter": spec.interpolation.upper(),
        "layout": layout,
        "input": prepared,
        "box": _box(spec),
    }


def _box(spec: PreprocessSpec) -> str:
    """Return the lines that cut the box out of an image, as :meth:`PreprocessSpec.box` has it."""
    if not spec.cuts:
        return ""
    cut = _CUT.format(crop_parts=spec.crop_parts, half=CROP_PARTS // 2, all_parts=CROP_PARTS)
    return cut + (_SQUARE if spec.resize == "crop" else "") + _CROP


def _values(opened: ModelFile, metadata: ModelMetadata, literal: Callable[[Any], str]) -> dict[str, str]:
    """Return what programs need to know of a model, as literals of their language."""
    values = {
        "file": opened.path.name,
        "sha256": opened.sha256,
        "classes": list(metadata.class_names),
        "positive": metadata.positive,
        "threshold": metadata.threshold,
        "ood_threshold": metadata.ood_threshold,
        "grey_bits": metadata.feature_spec.preprocess.grey_bits,
    }
    return {name: literal(value) for name, value in values.items()}


def _cpp(opened: ModelFile, metadata: ModelMetadata) -> dict[str, str]:
    stored = json.loads(metadata.to_props()["xfeat.metadata"])
    marks = [json.dumps({name: stored[name]}, sort_keys=True)[1:-1] for name in _MARKS]
    ood, positive = metadata.ood_threshold, metadata.positive
    return {
        "marks": ", ".join(map(_raw, marks)),
        "classes": ", ".join(_raw(json.dumps(name)) for name in metadata.class_names),
        "positive": str(-1 if positive is None else metadata.class_names.index(positive)),
        "threshold": repr(metadata.threshold or 0.0),
        "ood_threshold": "NAN" if ood is None else repr(ood),
        "grey_bits": str(metadata.feature_spec.preprocess.grey_bits),
    }


def _raw(text: str) -> str:
    """Return ASCII text as a string literal of C++. Octal escapes end after three digits; trigraphs are not formed."""
    safe = (each if each.isalnum() or each in " .,:;[]{}()-_/+" else f"\\{ord(each):03o}" for each in text)
    return f'"{"".join(safe)}"'

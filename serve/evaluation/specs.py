"""What has to be known of an ONNX classifier that was written elsewhere, before it can be given images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import SpecError
from xfeat.featurize.specs import PreprocessSpec, Spec, Triple, check_decision, require
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import parse_json

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec(Spec):
    """How images are prepared for a model without metadata of xfeat, and what its output means.

    Attributes:
        classes: names of the outputs, in order.
        size: side of the square input in pixels; ``None``: that of the file.
        mean: subtracted from pixels that were scaled to 0..1. With ``std``, required unless the input is uint8.
        std: divided by afterwards.
        resize: as in :class:`xfeat.featurize.specs.PreprocessSpec`, like the next four.
        crop: share of each side that is cut off.
        interpolation: of the resize.
        grey_bits: of 16-bit images.
        frames: of files with several.
        layout: order of the input's axes, ``NCHW`` or ``NHWC``; ``None``: what its shape says.
        softmax: whether the output is logits, of which probabilities are computed.
        output: name of the output; needed if several could be meant.
        positive: the class that is predicted from its threshold on; ``None``: the most probable class is predicted.
        threshold: probability from which ``positive`` is predicted.
    """

    classes: tuple[str, ...] = ()
    size: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resize: str = PreprocessSpec.resize
    crop: float = PreprocessSpec.crop
    interpolation: str = PreprocessSpec.interpolation
    grey_bits: int = PreprocessSpec.grey_bits
    frames: str = PreprocessSpec.frames
    layout: str | None = None
    softmax: bool = False
    output: str | None = None
    positive: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        known = self.layout in (None, *LAYOUTS)
        require(known, "unknown order of axes", expected=" or ".join(LAYOUTS), found=self.layout)
        if self.classes:
            check_decision(self.classes, 1.0, self.positive, self.threshold)
        if (self.mean is None) != (self.std is None):
            raise SpecError("--mean and --std need each other", found=f"{self.mean} and {self.std}", fix="give both")

    def preprocess(self, size: int) -> PreprocessSpec:
        """Return how images are prepared for an input of ``size`` pixels.

        Raises:
            SpecError: if a setting is out of range.
        """
        shared = {field.name for field in fields(PreprocessSpec)} - {"size"}
        given = {name: getattr(self, name) for name in shared if getattr(self, name) is not None}
        return PreprocessSpec(size=size, **given)


def read_classifier_spec(path: Path | None, given: dict[str, Any]) -> ClassifierSpec | None:
    """Return what is known of a model from a JSON file with the fields of :class:`ClassifierSpec`, and options.

    Args:
        path: of the JSON file, or ``None``.
        given: fields by name, which override the file's.

    Returns:
        ``None`` if nothing is given.

    Raises:
        SpecError: if the file cannot be read, or a field is unknown or out of range.
    """
    stored: Any = {}
    if path is not None:
        try:
            stored = parse_json(read_regular(path))
        except (OSError, ValueError) as error:
            fix = f"write a JSON object with some of: {', '.join(field.name for field in fields(ClassifierSpec))}"
            found = getattr(error, "strerror", None) or str(error)
            raise SpecError("the description of a model cannot be read", path=path, found=found, fix=fix) from error
    elif not given:
        return None
    try:
        return ClassifierSpec.from_dict({**stored, **given} if isinstance(stored, dict) else stored)
    except SpecError as error:
        raise SpecError(error.what, path=path, expected=error.expected, found=error.found, fix=error.fix) from error

"""Pictures of a model's heatmap over each image. Needs onnxruntime and Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xfeat.export.model.file import ModelFile
from xfeat.export.model.heatmap import colour_heatmap
from xfeat.export.model.interface import HEATMAP
from xfeat.export.model.progress import Progress
from xfeat.export.parity.certificate import matching_certificate
from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.featurize.errors import DataError, ImageError, ModelError, OutputError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import resize
from xfeat.featurize.sources.folder import read_file
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.text import listed

MAX_SIDE = 1024
_STRENGTH = 0.6
_CAPTION_PIXELS, _CAPTION_AT = 18, (4, 3)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The prediction for an image, and the picture that explains it.

    Attributes:
        path: the image.
        picture: the image with the heatmap over it.
        label: the predicted class.
        shown: the class whose heatmap is shown.
        probability: of the class shown.
        ood: out-of-distribution score, or ``None``.
        out_of_distribution: whether that score is above the model's threshold.
    """

    path: str
    picture: str
    label: str
    shown: str
    probability: float
    ood: float | None
    out_of_distribution: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        content = asdict(self)
        content["foreign"] = content.pop("out_of_distribution")
        return content


def explain_images(
    model: ModelFile,
    images: Sequence[Path],
    folder: Path,
    *,
    shown: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Explanation], list[tuple[str, str]]]:
    """Write a picture of each image with the model's heatmap over it.

    Args:
        model: a full model.
        images: files, and folders of them.
        folder: for the pictures, which are named after the images.
        shown: the class whose heatmap is shown; by default the predicted one.
        progress: called with the number of finished images and their total.

    Returns:
        The explanations, and path and reason for every image that could not be read.

    Raises:
        ModelError: if the model has no heatmap.
        MismatchError: if it does not match the certificate beside it.
        DataError: if there is no class ``shown``, there are no images, or none can be read.
        OutputError: if a picture cannot be written, or would overwrite one of the images (then nothing is written).
    """
    matching_certificate(model)
    if HEATMAP not in model.known_outputs:
        full = model.metadata.variant == "full"
        raise ModelError(
            "the model has no heatmap output",
            path=model.path,
            found="an encoder whose features are not means over places of the image" if full else "a core model",
            fix="use an encoder that returns a map, or tokens with --pooling mean" if full else "name the full model",
        )
    if shown is not None and shown not in model.metadata.class_names:
        raise DataError(
            "unknown class",
            path=model.path,
            expected=listed(model.metadata.class_names),
            found=shown,
            fix="name one of them with --class",
        )
    files = list_images(images)
    done: list[Explanation] = []
    skipped: list[tuple[str, str]] = []
    targets = _picture_paths(files, folder)
    for number, (file, target) in enumerate(zip(files, targets, strict=True), 1):
        try:
            image = decode(read_file(file)[0], model.metadata.feature_spec.preprocess).convert("RGB")
        except ImageError as error:
            skipped.append((str(file), error.what))
        else:
            done.append(_explain(model, file, image, target, shown))
        if progress is not None:
            progress(number, len(files))
    if not done:
        raise DataError(
            "none of the images can be read", path=files[0], found=skipped[0][1], fix="name readable images"
        )
    return done, skipped


def overlay(image: Image.Image, heatmap: NDArray[np.floating], box: tuple[int, int, int, int]) -> Image.Image:
    """Draw a heatmap (h, w), 0 or more, over the box of an RGB image; outside and where it is 0, nothing changes.

    The box is left, top, right and bottom, in pixels of the image.
    """
    left, top, right, bottom = box
    colours, strength = colour_heatmap(heatmap, right - left, bottom - top)
    mixed = np.array(image, np.float64)
    inside = mixed[top:bottom, left:right]
    inside += _STRENGTH * strength[..., None] * (colours - inside)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _explain(model: ModelFile, file: Path, image: Image.Image, target: Path, shown: str | None) -> Explanation:
    metadata = model.metadata
    # Resized here, as in xserve, and not by the model, so that both give the same digits.
    pixels = resize(image, metadata.feature_spec.preprocess)[None]
    outputs = model.run(pixels, heatmap=True)
    probabilities = outputs.probabilities[0].tolist()
    label = metadata.decide(probabilities)
    class_name = shown or label
    code = metadata.class_names.index(class_name)
    ood = None if outputs.ood is None else float(outputs.ood[0])
    result = Explanation(
        path=str(file),
        picture=str(target),
        label=label,
        shown=class_name,
        probability=probabilities[code],
        ood=ood,
        out_of_distribution=ood is not None and metadata.ood_threshold is not None and ood > metadata.ood_threshold,
    )
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    # Of the smaller picture: at most a pixel beside the box of the image.
    box = metadata.feature_spec.preprocess.box(*image.size)
    picture = _with_caption(overlay(image, cast(NDArray[np.float32], outputs.heatmap)[0, code], box), result)
    with replacing(target) as partial:
        picture.save(partial, format="PNG")
    return result


def _with_caption(picture: Image.Image, result: Explanation) -> Image.Image:
    text = f"{result.shown} {result.probability:.3f}"
    if result.shown != result.label:
        text += f" (predicted: {result.label})"
    if result.out_of_distribution:
        text += "  out of distribution"
    text = " ".join(text.splitlines())
    left, top = _CAPTION_AT
    width = left + math.ceil(ImageDraw.Draw(picture).textlength(text)) + left
    framed = Image.new("RGB", (max(picture.width, width), picture.height + _CAPTION_PIXELS))
    framed.paste(picture, (0, _CAPTION_PIXELS))
    ImageDraw.Draw(framed).text((left, top), text, fill="white")
    return framed


def _picture_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return a distinct path of a picture for each file, none of them one of the files."""
    sources = {file.resolve() for file in files}
    taken: set[str] = set()
    targets = []
    for file in files:
        name, number = f"{file.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        taken.add(name)
        targets.append(folder / name)
        if targets[-1].resolve() in sources:
            raise OutputError(
                "a picture would overwrite an image", path=targets[-1], fix="choose another folder with -o"
            )
    return targets

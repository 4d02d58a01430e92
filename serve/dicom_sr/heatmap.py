"""The heatmap of the predicted class over the image: a secondary capture, in colour. Needs highdicom."""

from __future__ import annotations

import io
from typing import Any

import highdicom as hd
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.sr.coding import Code

from xfeat.featurize.specs import PreprocessSpec
from xfeat.serve.dicom_sr.identity import RESEARCH_USE, ModelIdentity, long_string
from xfeat.serve.dicom_sr.source import Dataset, SourceImage, stable_uid
from xfeat.serve.inference.heatmap_png import draw_heatmap
from xfeat.serve.inference.results import Prediction

_SERIES = 9002
# A picture to look at, not to measure in: at most 3 MB, and wide enough for what it is for.
_LONGEST_SIDE, _LEAST_WIDTH = 1024, 160
_OPACITY = 0.5
_SOURCE_IMAGE = Code("121322", "DCM", "Source Image for Image Processing Operation")
# What stays true of the pixels below the heatmap.
_OF_THE_PIXELS = (
    *("PatientOrientation", "Laterality", "PixelAspectRatio", "BurnedInAnnotation"),
    *("RecognizableVisualFeatures", "LossyImageCompression", "LossyImageCompressionRatio"),
    "LossyImageCompressionMethod",
)


def build_heatmap(
    source: SourceImage, prediction: Prediction, model: ModelIdentity, spec: PreprocessSpec
) -> Dataset | None:
    """Return a secondary capture: the image with the heatmap of the predicted class over it.

    Args:
        source: the image.
        prediction: with its heatmaps.
        model: what computed them.
        spec: which part of the image the network was given.

    Returns:
        The data set, in the study of the image; ``None`` if the prediction has no heatmap.
    """
    if prediction.heatmap is None:
        return None
    heatmap = prediction.heatmap[list(prediction.probabilities).index(prediction.label)]
    reference = source.reference
    capture = hd.sc.SCImage(
        pixel_array=np.asarray(_overlay(source.picture, heatmap, spec)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom asks for one; that of the image is put in its place below
        study_instance_uid=reference.StudyInstanceUID,
        series_instance_uid=stable_uid("heatmap", reference.SeriesInstanceUID, model.sha256),
        sop_instance_uid=source.uid("heatmap", *model.parameters),
        series_number=_SERIES,
        instance_number=source.instance_number,
        series_description=long_string(f"xfeat heatmap. {RESEARCH_USE}"),
        specific_character_set="ISO_IR 192",
        **model.equipment,
    )
    capture.copy_patient_and_study_information(source.header)
    for keyword in ("PatientOrientation", "Laterality"):
        setattr(capture, keyword, "")
    for keyword in _OF_THE_PIXELS:
        if source.header.get(keyword):  # an empty tag is an absent one
            capture[keyword] = source.header[keyword]
    capture.DerivationDescription = f"Heatmap of {long_string(prediction.label)} over the image. {RESEARCH_USE}"
    capture.SourceImageSequence = [_reference(source)]
    return capture


def _reference(source: SourceImage) -> Dataset:
    item = type(source.reference)()
    item.ReferencedSOPClassUID = source.reference.SOPClassUID
    item.ReferencedSOPInstanceUID = source.reference.SOPInstanceUID
    if source.frame is not None:
        item.ReferencedFrameNumber = source.frame
    item.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(_SOURCE_IMAGE)]
    return item


def _overlay(picture: Image.Image, heatmap: Any, spec: PreprocessSpec) -> Image.Image:
    """Draw the heatmap over the part of the picture that the network was given, and what it is for below."""
    scale = min(_LONGEST_SIDE / max(picture.size), max(1.0, _LEAST_WIDTH / picture.width))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top, right, bottom = (round(edge * scale) for edge in spec.box(*picture.size))
    box = (max(1, right - left), max(1, bottom - top))
    colours = Image.open(io.BytesIO(draw_heatmap(heatmap, spec.size))).resize(box)
    strength = colours.getchannel("A").point(lambda level: round(level * _OPACITY))
    shown = picture.convert("RGB").resize((width, height))
    shown.paste(colours.convert("RGB"), (left, top), strength)
    font = ImageFont.load_default(max(8, width // 40))
    ImageDraw.Draw(shown).text(
        (width // 2, height), RESEARCH_USE, "white", font, anchor="md", stroke_width=1, stroke_fill="black"
    )
    return shown

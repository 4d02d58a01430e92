"""DICOM images of a made-up patient, and a tiny model with a heatmap and an out-of-distribution score."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation

from tests.inputs.dicom.files import dataset
from xfeat.serve.dicom_sr.write import ReportBuilder
from xfeat.serve.inference.predictor import Predictor

STUDY, SERIES, IMAGE = ("1.2.826.0.1.3680043.8.498.11", f"{'1.2.826.0.1.3680043.8.498.11'}.2", "1.2.826.7.11.2.3")
_ROWS, _COLUMNS = np.mgrid[:30, :40]
PIXELS = ((_ROWS + _COLUMNS) * 50).astype(np.uint16)


def radiograph(values: np.ndarray = PIXELS, photometric: str = "MONOCHROME2", **tags: Any) -> Dataset:
    """Return an X-ray of a made-up patient; a tag that is ``None`` is left out."""
    known = {
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SOPInstanceUID": IMAGE,
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "Modality": "DX",
        "PatientName": "Doe^Jane",
        "PatientID": "P-1",
        "PatientBirthDate": "19500319",
        "PatientSex": "F",
        "StudyDate": "20260102",
        "StudyTime": "101500",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Roe^Richard",
        "InstanceNumber": 3,
    }
    image = dataset(values, photometric, **{name: value for name, value in (known | tags).items() if value is not None})
    image.file_meta.MediaStorageSOPClassUID = image.get("SOPClassUID", DigitalXRayImageStorageForPresentation)
    image.file_meta.MediaStorageSOPInstanceUID = image.get("SOPInstanceUID", IMAGE)
    return image


def by_kind(files: dict[str, bytes]) -> dict[str, Dataset]:
    """Return what was built, read again, by ``sr`` and ``heatmap``."""
    return {name.split(".")[-2]: pydicom.dcmread(io.BytesIO(content)) for name, content in files.items()}


@pytest.fixture
def heatmap_model(write_model: Callable[..., Path]) -> Path:
    """Return the file of a model with all outputs."""
    return write_model(ood=True, heatmap=True, ood_threshold=0.5, positive="covid", threshold=0.25)


@pytest.fixture
def report_of(heatmap_model: Path) -> Callable[[bytes], dict[str, Dataset]]:
    """Return a function that classifies an image and builds its report."""
    predictor = Predictor(heatmap_model, device="cpu")
    builder = ReportBuilder(predictor)

    def build(content: bytes) -> dict[str, Dataset]:
        [prediction] = predictor.predict([content], heatmap=True)
        return by_kind(builder.build(prediction, content))

    return build

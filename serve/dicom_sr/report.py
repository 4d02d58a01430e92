"""The structured report of one image: TID 1500, with a probability per class, the decision, and what computed them.

Choices, and what a viewer makes of them: docs/decisions/0109-structured-reports.md. Needs highdicom.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.coding import Code

from xfeat.serve.dicom_sr.identity import (
    RESEARCH_USE,
    ModelIdentity,
    class_digest,
    long_string,
    probability_of,
)
from xfeat.serve.dicom_sr.source import ANY_IMAGE, MANUFACTURER, Dataset, SourceImage, stable_uid
from xfeat.serve.inference.results import Prediction

SCHEME = "99XFEAT"
_SERIES = 9001
_SCHEME_ITEM = CodingSchemeIdentificationItem(designator=SCHEME, name="Classes and scores of xfeat")
# Source: DICOM PS3.16 and SNOMED CT, as pydicom lists them; UCUM.
_COMMENT = Code("121106", "DCM", "Comment")
_DEVICE = sr.CodedConcept("121007", "DCM", "Device")
_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_YES, _NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")
_NO_UNITS = Code("1", "UCUM", "no units")
DECISION = Code("DECISION", SCHEME, "Predicted class")
THRESHOLD = Code("THRESHOLD", SCHEME, "Probability from which the positive class is predicted")
OOD_SCORE = Code("OODSCORE", SCHEME, "Out-of-distribution score")
OOD_THRESHOLD = Code("OODTHRESHOLD", SCHEME, "Out-of-distribution score that is unusual if exceeded")
OOD = Code("OOD", SCHEME, "Out of distribution")


def class_code(name: str) -> Code:
    """Return the code of a class: its value depends on the whole name, of which the meaning has the beginning."""
    return Code(f"C{class_digest(name)}", SCHEME, long_string(name))


def probability_code(name: str) -> Code:
    """Return the code of the probability of a class."""
    return Code(f"P{class_digest(name)}", SCHEME, long_string(probability_of(name)))


def build_report(source: SourceImage, prediction: Prediction, model: ModelIdentity) -> Dataset:
    """Return the structured report of one image, unverified and preliminary.

    Args:
        source: the image.
        prediction: of the model for it.
        model: what computed it.

    Returns:
        A Comprehensive 3D SR, in the study of the image.
    """
    reference = source.reference
    evidence = deepcopy(reference)
    evidence.SOPClassUID = ANY_IMAGE
    report = sr.Comprehensive3DSR(
        evidence=[evidence],
        content=_content(source, prediction, model),
        series_instance_uid=stable_uid("report", reference.SeriesInstanceUID, model.sha256),
        sop_instance_uid=source.uid("report", *model.parameters),
        series_number=_SERIES,
        instance_number=source.instance_number,
        series_description=long_string(f"xfeat report. {RESEARCH_USE}"),
        is_complete=True,
        specific_character_set="ISO_IR 192",
        coding_schemes=[_SCHEME_ITEM],
        **model.equipment,
    )
    [study] = report.CurrentRequestedProcedureEvidenceSequence
    study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = reference.SOPClassUID
    report.copy_patient_and_study_information(source.header)
    return report


def _content(source: SourceImage, prediction: Prediction, model: ModelIdentity) -> Any:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=model.uid, name="xfeat", manufacturer_name=MANUFACTURER, model_name=model.name, serial_number=model.sha256
    )
    observer = sr.ObserverContext(_DEVICE, device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURE,
        imaging_measurements=[_measurements(source, prediction, model)],
    )
    items = content[0].ContentSequence
    # Before the measurements, which come last: what a viewer shows first.
    items.insert(len(items) - 1, sr.TextContentItem(_COMMENT, RESEARCH_USE, sr.RelationshipTypeValues.CONTAINS))
    return content


def _measurements(source: SourceImage, prediction: Prediction, model: ModelIdentity) -> Any:
    values = {probability_code(name): share for name, share in prediction.probabilities.items()}
    decisions = {DECISION: class_code(prediction.label)}
    if model.threshold is not None:
        values[THRESHOLD] = model.threshold
    if prediction.ood is not None:
        values[OOD_SCORE] = prediction.ood
    if prediction.in_distribution is not None:
        values[OOD_THRESHOLD] = float(prediction.ood_threshold or 0)
        decisions[OOD] = _NO if prediction.in_distribution else _YES
    reference, frames = source.reference, None if source.frame is None else [source.frame]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(source.uid("finding", model.sha256), "image classification"),
        algorithm_id=sr.AlgorithmIdentification(
            name=model.name, version=model.sha256, parameters=model.parameters, manufacturer=MANUFACTURER
        ),
        measurements=[sr.Measurement(name, value, _NO_UNITS) for name, value in values.items()],
        qualitative_evaluations=[sr.QualitativeEvaluation(name, value) for name, value in decisions.items()],
        source_images=[sr.SourceImageForMeasurementGroup(reference.SOPClassUID, reference.SOPInstanceUID, frames)],
    )

"""What a report and a heatmap hold, for every kind of source: the prediction, the patient, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom import Dataset

from tests.inputs.dicom.files import compressed, put_streams, to_bytes, without_preamble
from tests.serve.conftest import draw
from tests.serve.dicom_sr.conftest import IMAGE, PIXELS, SERIES, STUDY, by_kind, radiograph
from tests.serve.dicom_sr.standard import errors_of
from tests.serve.models.test_certificates import certify
from xfeat.featurize.errors import ImageError, OutputError
from xfeat.featurize.text import printable
from xfeat.serve.cli import main
from xfeat.serve.dicom_sr.identity import class_digest
from xfeat.serve.dicom_sr.write import ReportBuilder, ReportFolder
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import SkippedImage

pytestmark = pytest.mark.slow  # highdicom and dicom-validator take seconds to import

ReportOf = Callable[[bytes], dict[str, Dataset]]
EMPTY = dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"), "")
MISSING = dict.fromkeys([*EMPTY, "StudyID", "AccessionNumber", "ReferringPhysicianName", "InstanceNumber"])
DEIDENTIFIED = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "names replaced"}
SOURCES: dict[str, Callable[[], bytes]] = {
    "X-ray": lambda: to_bytes(radiograph()),
    "de-identified": lambda: to_bytes(radiograph(**EMPTY, **DEIDENTIFIED)),
    "no patient": lambda: to_bytes(radiograph(**MISSING)),
    "Latin-1": lambda: to_bytes(radiograph(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")),
    "UTF-8": lambda: to_bytes(radiograph(SpecificCharacterSet="ISO_IR 192", PatientName="王^小东")),
    "GB18030": lambda: to_bytes(radiograph(SpecificCharacterSet="GB18030", PatientName="Wang^XiaoDong=王^小东")),
    "Japanese": lambda: to_bytes(
        radiograph(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")
    ),
    "Korean": lambda: to_bytes(
        radiograph(SpecificCharacterSet=["", "ISO 2022 IR 149"], PatientName="Hong^Gildong=洪^吉洞=홍^길동")
    ),
    "Cyrillic, in sequences too": lambda: to_bytes(
        radiograph(SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг", ProcedureCodeSequence=[_code("грудь")])
    ),
    "a name that its character set does not have": lambda: to_bytes(radiograph()).replace(b"Doe^Jane", b"D\xfce^Jane"),
    "a name without a caret": lambda: to_bytes(radiograph(PatientName="Anonymous")),
    "colour": lambda: to_bytes(radiograph(np.full((8, 9, 3), 90, np.uint8), "RGB", Modality="ES")),
    "inverted": lambda: to_bytes(radiograph(photometric="MONOCHROME1")),
    "big endian": lambda: to_bytes(radiograph(PIXELS.byteswap()), "1.2.840.10008.1.2.2"),
    "no preamble": lambda: without_preamble(radiograph(), implicit=True),
    "JPEG 2000": lambda: _jpeg_2000(),
    "ultrasound of an old class": lambda: to_bytes(radiograph(SOPClassUID="1.2.840.10008.5.1.4.1.1.6", Modality="US")),
    "class of a vendor": lambda: to_bytes(radiograph(SOPClassUID="1.2.840.113619.4.26")),
    "orientation and lossy": lambda: to_bytes(
        radiograph(PatientOrientation=["L", "F"], LossyImageCompression="01", LossyImageCompressionRatio=12)
    ),
    "an empty aspect ratio": lambda: to_bytes(radiograph(PixelAspectRatio="", LossyImageCompressionRatio="")),
    "sequences without items": lambda: to_bytes(radiograph(ReferencedStudySequence=[], ProcedureCodeSequence=[])),
    "private tags": lambda: to_bytes(_private()),
}


def _code(meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99TEST", meaning
    return code


def _jpeg_2000() -> bytes:
    image = radiograph()
    put_streams(image, "jpeg2000", [imagecodecs.jpeg2k_encode(PIXELS, codecformat="j2k", bitspersample=12, level=0)])
    return to_bytes(image, image.file_meta.TransferSyntaxUID)


def _private() -> Dataset:
    image = radiograph(OperatorsName="Secret^Nurse", StationName="SECRET", InstitutionName="SECRET", Manufacturer="M")
    image.ProcedureCodeSequence = [_code("chest")]
    for level in (image, image.ProcedureCodeSequence[0]):
        level.private_block(0x11, "SECRET", create=True).add_new(1, "LO", "SECRET")
    return image


@pytest.mark.parametrize("kind", SOURCES)
def test_the_objects_are_valid_and_belong_to_the_study_of_the_image(kind, report_of: ReportOf, tmp_path):
    content = SOURCES[kind]()
    source = pydicom.dcmread(io.BytesIO(content), force=True)
    objects = report_of(content)
    assert list(objects) == ["sr", "heatmap"]
    for name, made in objects.items():
        path = tmp_path / f"{name}.dcm"
        made.save_as(path, enforce_file_format=True)
        assert errors_of(str(path)) == []
        read = pydicom.dcmread(path)
        assert read.StudyInstanceUID == STUDY
        assert read.SeriesInstanceUID not in (SERIES, "")
        assert read.SeriesDescription.endswith("For research use only. Not for diagnosis.")
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
            assert str(read[keyword].value or "") == str(source.get(keyword) or ""), keyword
        assert read.get("PatientIdentityRemoved") == source.get("PatientIdentityRemoved")
        assert b"SECRET" not in path.read_bytes().upper()
        referred = {(item.keyword, str(item.value)) for item in read.iterall()}
        assert {("ReferencedSOPInstanceUID", IMAGE), ("ReferencedSOPClassUID", source.SOPClassUID)} <= referred
        assert {value for keyword, value in referred if keyword == "ReferencedSOPClassUID"} == {source.SOPClassUID}
    assert objects["heatmap"].get("LossyImageCompression") == source.get("LossyImageCompression")


def measurement_group(report: Path) -> Any:
    import highdicom.sr

    [group] = highdicom.sr.srread(report).content.get_image_measurement_groups()
    return group


def content_items(report: Path) -> dict[str, Any]:
    group = measurement_group(report)
    return {item.name.meaning: item.value for item in group.get_measurements()} | {
        item.name.meaning: item.value.meaning for item in group.get_qualitative_evaluations()
    }


def test_the_report_says_what_the_prediction_says_and_what_made_it(heatmap_model, tmp_path):
    content = to_bytes(radiograph())
    predictor = Predictor(heatmap_model, device="cpu")
    [prediction] = predictor.predict([content], heatmap=True)
    path = tmp_path / "report.dcm"
    path.write_bytes(next(iter(ReportBuilder(predictor).build(prediction, content).values())))
    expected = {f"Probability of {name}": value for name, value in prediction.probabilities.items()}
    assert content_items(path) == expected | {
        "Predicted class": prediction.label,
        "Probability from which the positive class is predicted": 0.25,
        "Out-of-distribution score": prediction.ood,
        "Out-of-distribution score that is unusual if exceeded": 0.5,
        "Out of distribution": "No" if prediction.in_distribution else "Yes",
    }
    report = pydicom.dcmread(path)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert report.DeviceSerialNumber == hashlib.sha256(heatmap_model.read_bytes()).hexdigest()
    text = "\n".join(str(item.value) for item in report.iterall())
    model = ("certificate: none", "weights: float32", "covid is predicted from", "tiny")
    for said in ("For research use only. Not for diagnosis.", *model):
        assert said in text
    assert str(tmp_path) not in text


def test_the_same_image_and_model_give_the_same_uids_and_another_of_either_gives_others(report_of, write_model):
    content = to_bytes(radiograph())
    first, again = report_of(content), report_of(content)
    other_pixels = report_of(to_bytes(radiograph(PIXELS[::-1])))
    corrected_name = report_of(to_bytes(radiograph(PatientName="Doe^Joan")))
    predictor = Predictor(write_model("other.onnx", ood=True, heatmap=True, run="other"), device="cpu")
    [prediction] = predictor.predict([content], heatmap=True)
    other_model = by_kind(ReportBuilder(predictor).build(prediction, content))
    uids = [made["sr"].SOPInstanceUID for made in (first, again, corrected_name, other_pixels, other_model)]
    assert uids[0] == uids[1] == uids[2]
    assert len(set(uids)) == 3
    assert first["sr"].SeriesInstanceUID != other_model["sr"].SeriesInstanceUID


@pytest.mark.parametrize(
    "name", ["正常", "x" * 100, "a\\b", "two\nlines", " ", "Pneumonia, viral", "ünïcode" * 20, "caf\udce9"]
)
def test_any_class_name_fits_and_the_whole_name_is_in_the_report(name, write_model, tmp_path):
    names = (name, f"{name}2", "normal")
    predictor = Predictor(write_model(class_names=names, heatmap=True), device="cpu")
    content = to_bytes(radiograph())
    [prediction] = predictor.predict([content], heatmap=True)
    path = tmp_path / "report.dcm"
    path.write_bytes(next(iter(ReportBuilder(predictor).build(prediction, content).values())))
    assert errors_of(str(path)) == []
    group = measurement_group(path)
    assert [item.value for item in group.get_measurements()] == list(prediction.probabilities.values())
    assert len({item.name.value for item in group.get_measurements()}) == 3
    texts = {item.value for item in pydicom.dcmread(path).iterall() if item.keyword in ("TextValue", "CodeMeaning")}
    said = {f"Probability of {name}", f"class {class_digest(name)}: {printable(name)}"}
    assert {text.rstrip() for text in said} & texts  # DICOM pads with blanks


def test_one_frame_of_several_is_named(write_model):
    frames = [PIXELS, PIXELS[::-1], PIXELS // 2]
    image = pydicom.dcmread(io.BytesIO(compressed("rle", frames)))
    image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, SERIES
    predictor = Predictor(write_model(heatmap=True, preprocess={"frames": "middle"}), device="cpu")
    content = to_bytes(image, image.file_meta.TransferSyntaxUID)
    [prediction] = predictor.predict([content], heatmap=True)
    made = by_kind(ReportBuilder(predictor).build(prediction, content))
    assert made["heatmap"].SourceImageSequence[0].ReferencedFrameNumber == 2
    frames = [item.value for item in made["sr"].iterall() if item.keyword == "ReferencedFrameNumber"]
    assert frames == [2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n", "not a DICOM file"),
        *[
            (without_preamble(radiograph(**{keyword: value}), implicit=True), f"DICOM file without one {keyword}")
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            for value in (None, "", ["1.2", "1.3"])
            if (keyword, value) != ("SOPInstanceUID", None)
        ],
    ],
)
def test_an_image_that_no_report_can_belong_to_is_refused_with_the_reason(content, reason, heatmap_model):
    predictor = Predictor(heatmap_model, device="cpu")
    [prediction] = predictor.predict([to_bytes(radiograph())], heatmap=True)
    with pytest.raises(ImageError, match=reason):
        ReportBuilder(predictor).build(prediction, content)


@pytest.mark.parametrize(
    ("tag", "value"),
    [("StudyDate", "19.3.1950"), ("PatientBirthDate", "unknown"), ("PatientID", "x" * 70), ("PatientSex", "female")],
)
def test_a_value_against_the_standard_is_passed_on_and_not_printed(tag, value, report_of, recwarn, caplog):
    image = radiograph()
    with pydicom.config.disable_value_validation():
        setattr(image, tag, value)
        content = to_bytes(image)
    recwarn.clear()
    caplog.clear()  # what pydicom says to this test, and not to the report
    reports = report_of(content)
    assert [str(each.message) for each in recwarn] == []
    assert value not in caplog.text
    with pydicom.config.disable_value_validation():
        assert {str(made[tag].value) for made in reports.values()} == {value}


def test_the_heatmap_covers_what_the_network_saw_in_the_shape_of_the_image(report_of):
    black = np.zeros((60, 200), np.uint16)
    picture = report_of(to_bytes(radiograph(black + 2000, WindowCenter=2000, WindowWidth=4000)))["heatmap"]
    pixels = picture.pixel_array
    assert pixels.shape == (60, 200, 3)
    coloured = (np.ptp(pixels[:50].astype(int), axis=2) > 20).mean(axis=0)
    assert coloured[:80].mean() > 0.3  # the tiny model looks for covid in the upper left quarter
    assert coloured[130:].mean() == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 8), (160, 160)), ((300, 40), (1024, 137)), ((40, 300), (40, 300)), ((2048, 9), (1024, 4))],
)
def test_a_picture_is_wide_enough_for_what_it_is_for_and_not_too_long(shape, expected, report_of):
    assert report_of(to_bytes(radiograph(np.zeros(shape, np.uint16))))["heatmap"].pixel_array.shape[:2] == expected


def test_files_are_called_by_uids_and_what_has_no_report_is_counted(heatmap_model, tmp_path):
    predictor = Predictor(heatmap_model, device="cpu")
    contents = [to_bytes(radiograph(SOPInstanceUID=f"1.2.{number}")) for number in (1, 2)]
    [prediction] = predictor.predict([contents[0]], heatmap=True)
    folder = ReportFolder(predictor, tmp_path / "new" / "out")
    for content in [*contents, b"no image"] * 2:
        folder.add(prediction, lambda content=content: content)
    folder.add(SkippedImage(path="x", reason="damaged"), lambda: b"")
    folder.add(prediction, lambda: next((tmp_path / "new" / "out").glob("*.heatmap.dcm")).read_bytes())
    folder.add(prediction, lambda: to_bytes(radiograph(SOPInstanceUID="1.2.1", PatientID="P-2")))
    assert folder.written == 2
    assert {reason.split()[0]: number for reason, number in folder.left_out.items()} == {"not": 2, "its": 3, "made": 1}
    names = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert [name.split(".", 3)[-1] for name in names] == ["heatmap.dcm", "sr.dcm"] * 2
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--dicom-sr"):
        ReportFolder(predictor, tmp_path / "file")


def test_the_command_writes_reports_of_files_and_archives_that_equal_its_json(heatmap_model, write_model, tmp_path):
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    (images / "a" / "same.dcm").write_bytes(to_bytes(radiograph(SOPInstanceUID="1.2.1")))
    with zipfile.ZipFile(images / "b.zip", "w") as archive:
        archive.writestr("same.dcm", to_bytes(radiograph(PIXELS[::-1], SOPInstanceUID="1.2.2")))
    (images / "c.png").write_bytes(draw((9, 9, 9)))
    (images / "d.dcm").write_bytes(to_bytes(radiograph(StudyInstanceUID=None)))
    inputs = [str(images / name) for name in ("a", "b.zip", "c.png", "d.dcm")]
    command = ["predict", *inputs, "--model", str(heatmap_model), "--dicom-sr", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "structured reports: 2, with heatmaps" in done.stderr
    assert "images without a report: 1 (not a DICOM file)" in done.stderr
    assert "d.dcm: no report: DICOM file without one StudyInstanceUID" in done.stderr
    answers = {answer["path"]: answer["probabilities"] for answer in json.loads(done.stdout)["predictions"]}
    found = [list(content_items(path).items())[:3] for path in (tmp_path / "out").glob("*.sr.dcm")]
    expected = [
        [(f"Probability of {name}", share) for name, share in answers[path].items()]
        for path in answers
        if path.endswith("same.dcm")
    ]
    assert sorted(found) == sorted(expected)
    plain = ["predict", inputs[0], "--model", str(write_model("plain.onnx")), "--dicom-sr", str(tmp_path / "plain")]
    done = CliRunner().invoke(main, plain)
    assert (done.exit_code, "without heatmaps: the model has none" in done.stderr) == (0, True), done.output
    assert [path.name.split(".")[-2] for path in (tmp_path / "plain").iterdir()] == ["sr"]


def test_the_certificate_is_named_by_its_digest(heatmap_model, tmp_path):
    certificate = certify(heatmap_model)
    predictor = Predictor(heatmap_model, device="cpu")
    content = to_bytes(radiograph())
    [prediction] = predictor.predict([content])
    report = by_kind(ReportBuilder(predictor).build(prediction, content))["sr"]
    digest = hashlib.sha256(certificate.read_bytes()).hexdigest()
    texts = [item.value for item in report.iterall() if item.keyword == "TextValue"]
    assert f"certificate: belongs to the model, SHA-256 {digest}" in texts


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("kind", SOURCES)
def test_dciodvfy_and_dsrdump_find_no_error(kind, report_of: ReportOf, tmp_path: Path):
    for name, made in report_of(SOURCES[kind]()).items():
        path = tmp_path / f"{name}.dcm"
        made.save_as(path, enforce_file_format=True)
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        # It knows no schemes but those of the standard, and asks for more tags if a CD is to be written.
        assert [line for line in done.stderr.splitlines() if line.startswith(("Error", "Abort"))] == []
        # DCMTK knows no classes of vendors, and reads no report about one.
        if name == "sr" and kind != "class of a vendor" and shutil.which("dsrdump"):
            dumped = subprocess.run(["dsrdump", path], capture_output=True, text=True, check=True)
            assert "Probability of covid" in dumped.stdout

"""From predictions to DICOM files: a report and a picture of the heatmap for each DICOM image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xfeat.export.model.interface import HEATMAP
from xfeat.featurize.errors import ImageError, MissingExtraError
from xfeat.featurize.system.atomic import replacing
from xfeat.serve.dicom_sr.identity import ModelIdentity
from xfeat.serve.dicom_sr.source import Dataset, read_source
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction


class ReportBuilder:
    """Builds the DICOM objects that a model's predictions become.

    Args:
        predictor: the open model.

    Raises:
        MissingExtraError: if highdicom is not installed.
        ModelError: if the certificate cannot be read.

    Attributes:
        has_heatmaps: whether the model has heatmaps; without, there is only the report.
    """

    def __init__(self, predictor: Predictor) -> None:
        try:
            import highdicom  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"structured reports need {error.name}, which is not installed",
                fix="pip install 'xfeat-onnx[dicom-sr]'",
            ) from error
        self.has_heatmaps = HEATMAP in predictor.model.known_outputs
        self._model = ModelIdentity.of(predictor)
        self._preprocess = predictor.metadata.feature_spec.preprocess

    def build(self, prediction: Prediction, content: bytes) -> dict[str, Dataset]:
        """Return the report of one image, and the heatmap over it.

        Args:
            prediction: for this image, with its heatmaps if the model has them.
            content: of the DICOM file.

        Returns:
            Data sets of pydicom, by kind: ``sr``, and ``heatmap`` if the prediction has one.

        Raises:
            ImageError: if there can be no report; ``what`` is the reason.
        """
        from pydicom.config import disable_value_validation

        from xfeat.serve.dicom_sr.heatmap import build_heatmap
        from xfeat.serve.dicom_sr.report import build_report

        with disable_value_validation():  # its warnings would quote values of the source, such as a date of birth
            source = read_source(content, self._preprocess)
            report = build_report(source, prediction, self._model)
            heatmap = build_heatmap(source, prediction, self._model, self._preprocess)
        return {"sr": report} if heatmap is None else {"sr": report, "heatmap": heatmap}


class ReportFolder:
    """Writes the reports of a model's predictions to a folder, one image at a time.

    The files are called by the UIDs of the reports, since names of images may name patients; the same image and model
    give the same files.

    Args:
        predictor: the open model.
        folder: made if it is not there.

    Raises:
        MissingExtraError: if highdicom is not installed.

    Attributes:
        written: number of reports.
        has_heatmaps: whether the model has heatmaps; without, there are only reports.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self._builder = ReportBuilder(predictor)
        self.has_heatmaps = self._builder.has_heatmaps
        self._folder = folder
        self.written = 0

    def write(self, prediction: Prediction, read: Callable[[], bytes]) -> str | None:
        """Write the report of one image, and its heatmap.

        Args:
            prediction: with its heatmaps.
            read: returns the content of the image's file.

        Returns:
            Why there is none, or ``None`` if it is written.

        Raises:
            OutputError: if a file cannot be written.
        """
        try:
            objects = self._builder.build(prediction, read())
        except ImageError as error:
            return error.what
        for kind, dataset in objects.items():
            path = self._folder / f"{objects['sr'].SOPInstanceUID}.{kind}.dcm"
            with replacing(path, elsewhere="choose another folder with --dicom-sr") as partial:
                dataset.save_as(partial, enforce_file_format=True)
        self.written += 1
        return None

"""From predictions to DICOM files: a report and a picture of the heatmap for each DICOM image."""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xfeat.export.model.interface import HEATMAP
from xfeat.featurize.errors import ImageError, OutputError, needs_extra
from xfeat.featurize.system.atomic import replacing
from xfeat.serve.dicom_sr.identity import ModelIdentity
from xfeat.serve.dicom_sr.source import NOT_DICOM, OWN_HEATMAP, SourceImage, read_source
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction, Result, SkippedImage

logger = logging.getLogger(__name__)

_ELSEWHERE = "choose another folder with --dicom-sr"
_REPEATED = "its UID and pixels are those of an image before it, which has the report"


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
        with needs_extra("dicom-sr", "structured reports need highdicom, which is not installed"):
            import highdicom  # noqa: F401
        self.has_heatmaps = HEATMAP in predictor.model.known_outputs
        self._model = ModelIdentity.of(predictor)
        self._preprocess = predictor.metadata.feature_spec.preprocess

    def build(self, prediction: Prediction, content: bytes) -> dict[str, bytes]:
        """Return the report of one image, and the heatmap over it.

        Args:
            prediction: for this image, with its heatmaps if the model has them.
            content: of the DICOM file.

        Returns:
            Contents of DICOM files by name: ``UID.sr.dcm``, and ``UID.heatmap.dcm`` if the prediction has a heatmap.

        Raises:
            ImageError: if there can be no report; ``what`` is the reason.
        """
        from pydicom.config import disable_value_validation

        # Warnings of pydicom quote values of the source, such as a date of birth.
        with disable_value_validation(), warnings.catch_warnings(action="ignore"):
            source = read_source(content, self._preprocess)
            try:
                return self._files(source, prediction)
            except Exception as error:  # pydicom and highdicom have many for unusual tags, without a common base
                logger.debug("no report can be made", exc_info=True)
                raise ImageError(f"no report can be made of its tags ({type(error).__name__})") from error

    def _files(self, source: SourceImage, prediction: Prediction) -> dict[str, bytes]:
        from xfeat.serve.dicom_sr.heatmap import build_heatmap
        from xfeat.serve.dicom_sr.report import build_report

        report = build_report(source, prediction, self._model)
        made = {"sr": report, "heatmap": build_heatmap(source, prediction, self._model, self._preprocess)}
        files = {}
        for kind, dataset in made.items():
            if dataset is not None:
                file = io.BytesIO()
                dataset.save_as(file, enforce_file_format=True)
                files[f"{report.SOPInstanceUID}.{kind}.dcm"] = file.getvalue()
        return files


class ReportFolder:
    """Writes the reports of a model's predictions to a folder, one image at a time.

    A DICOM image that no report can belong to is logged.

    The files are called by the UIDs of the reports, since names of images may name patients; the same image and model
    give the same files.

    Args:
        predictor: the open model.
        folder: made with the first report, if it is not there.

    Raises:
        MissingExtraError: if highdicom is not installed.
        OutputError: if a file has this name.

    Attributes:
        written: number of reports.
        left_out: why images have none, with their number.
        has_heatmaps: whether the model has heatmaps; without, there are only reports.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self._builder = ReportBuilder(predictor)
        self._folder = folder
        self._names: set[str] = set()
        self.written = 0
        self.left_out: Counter[str] = Counter()
        self.has_heatmaps = self._builder.has_heatmaps
        if folder.exists() and not folder.is_dir():
            raise OutputError("reports go to a folder, and a file has this name", path=folder, fix=_ELSEWHERE)

    def add(self, result: Result, read: Callable[[], Any]) -> None:
        """Write the report of one image, and its heatmap; without a prediction, nothing.

        Args:
            result: for the image, with its heatmaps.
            read: returns the content of the image's file.

        Raises:
            OutputError: if a file cannot be written.
        """
        if isinstance(result, SkippedImage):
            return
        try:
            files = self._builder.build(result, read())
            if not self._names.isdisjoint(files):  # of another patient, maybe: nothing is replaced
                raise ImageError(_REPEATED)
        except ImageError as error:
            self.left_out[error.what] += 1
            if error.what not in (NOT_DICOM, OWN_HEATMAP):
                logger.warning("%s: no report: %s", result.path, error.what)
            return
        for name, content in files.items():
            with replacing(self._folder / name, elsewhere=_ELSEWHERE) as partial:
                partial.write_bytes(content)
        self._names.update(files)
        self.written += 1

    def summary(self) -> list[str]:
        """Return what was written and what was not, in lines for people."""
        heatmaps = "with heatmaps" if self.has_heatmaps else "without heatmaps: the model has none"
        return [
            f"{self._folder}: structured reports: {self.written}, {heatmaps}",
            *(f"images without a report: {number} ({reason})" for reason, number in self.left_out.items()),
        ]

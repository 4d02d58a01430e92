"""The public functions of this package: what ``import xfeat`` offers, and what its commands call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.export.specs import DEFAULT_MODEL, BenchSpec, ExportSpec, QuantizeSpec, TritonSpec, VerifySpec
from xfeat.featurize.keyword_settings import keyword_settings, spec_from
from xfeat.featurize.progress import Progress, StrPath, steps_of
from xfeat.head.public_runs import as_run
from xfeat.head.specs import DEFAULT_RUNS

if TYPE_CHECKING:
    from minisign import PublicKey

    from xfeat.export.bench import Speed
    from xfeat.export.card.write import WrittenCard
    from xfeat.export.explain import Explanation
    from xfeat.export.export import Export
    from xfeat.export.quantization.quantize import Quantized
    from xfeat.export.triton import Repository
    from xfeat.export.verify import Verification
    from xfeat.featurize.extractor import FeatureExtractor
    from xfeat.head.runs.reader import Run


@keyword_settings(spec=ExportSpec)
def export_run(
    run: StrPath | Run | None = None,
    output: StrPath = DEFAULT_MODEL,
    *,
    spec: ExportSpec,
    progress: Progress | None = None,
) -> Export:
    """Export a run to one ONNX model that is checked against the trained model: ``xexport onnx``.

    Beside it are written a core model (``.core.onnx``) for more runtimes, and a certificate. If a prediction differs on
    the run's test images, nothing is written.

    Args:
        run: the run, or its folder; by default the newest in ``runs``.
        output: the full model.
        progress: called as images are read and predicted.

    Returns:
        What was written, and how closely it agrees with torch and with the training.

    Raises:
        XfeatError: as :func:`xfeat.export.export.export_run` says.
    """
    from xfeat.head.runs.reader import latest_run

    opened = as_run(latest_run(Path(DEFAULT_RUNS)) if run is None else run)
    from xfeat.export.export import export_run as export

    return export(opened, Path(output), spec, steps_of(progress, "checking"))


def export_onnx(
    classifier: Any,
    extractor: FeatureExtractor,
    output: StrPath = DEFAULT_MODEL,
    *,
    check: Any,
    ood: Any = None,
    positive: str | None = None,
    threshold: float | None = None,
    opset: int = ExportSpec.opset,
    max_check_images: int = ExportSpec.max_check_images,
    tolerance: float = ExportSpec.tolerance,
    progress: Progress | None = None,
) -> Export:
    """Export a fitted classifier, with the network of its features, to one ONNX model that is checked.

    Beside it are written a core model (``.core.onnx``) for more runtimes, and a certificate. The model is compared with
    torch, and with ``predict_proba`` of the extractor's features; if a prediction differs, nothing is written.

    Args:
        classifier: fitted: HeadClassifier, LogisticRegression or another linear classifier with ``predict_proba``, or a
            pipeline of it with scalers; the best estimator of a search.
        extractor: of the features that it was fitted to.
        output: the full model.
        check: images to compare predictions on, as for :meth:`FeatureExtractor.transform`; best those that it was not
            fitted to.
        ood: the training features (n, D), for the out-of-distribution score; without them the model has none.
        positive: class with a threshold; by default the most probable class is predicted.
        threshold: probability from which ``positive`` is predicted.
        opset: of the core model, 18 or 13.
        max_check_images: most images of ``check`` that are used, evenly spaced.
        tolerance: largest difference of a probability from the classifier's; to be raised only for an extractor of
            another precision than float32.
        progress: called as images are read and predicted.

    Returns:
        What was written, and how closely it agrees.

    Raises:
        XfeatError: as :func:`xfeat.export.from_classifier.export_classifier` says.
    """
    from xfeat.export.from_classifier import export_classifier

    settings = {"opset": opset, "max_check_images": max_check_images, "tolerance": tolerance}
    return export_classifier(
        *(classifier, extractor, Path(output)),
        check=check,
        ood=ood,
        positive=positive,
        threshold=threshold,
        spec=spec_from(ExportSpec, settings),
        progress=steps_of(progress, "checking"),
    )


def verify(
    model: StrPath = DEFAULT_MODEL,
    data: StrPath | None = None,
    *,
    run: StrPath | Run | None = None,
    weights_file: StrPath | None = None,
    certificate: StrPath | None = None,
    require_signature: StrPath | PublicKey | None = None,
    gate: float = VerifySpec.gate,
    require_cuda: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Check that a model is the file that was exported, and still gives its predictions: ``xexport verify``.

    Args:
        model: the file; it is compared with its certificate.
        data: folder of the images, to compare predictions with those in the certificate.
        run: to compare predictions with those of torch, which runs again.
        weights_file: the backbone's weights; by default those of the run.
        certificate: by default the one beside the model.
        require_signature: minisign's public key that must have signed the certificate, or its file.
        gate: largest loss of accuracy, sensitivity or AUC, in percentage points, of a float16 or int8 model with
            ``run``.
        require_cuda: run on the GPU, and fail if part of the network would run on the CPU.
        progress: called as images are read and predicted.

    Returns:
        What was checked, all of it without an error.

    Raises:
        XfeatError: as :func:`xfeat.export.verify.verify_model` says, if anything differs.
    """
    from xfeat.export.parity.signature import as_public_key
    from xfeat.export.verify import verify_model
    from xfeat.featurize.errors import ModelError

    if Path(model).suffix.lower() in (".h5", ".hdf5"):
        raise ModelError("a feature cache, not a model", path=model, fix="xfeat.open_cache compares it with its digest")
    spec = VerifySpec(
        data=_path(data),
        weights_file=_path(weights_file),
        certificate=_path(certificate),
        require_signature=as_public_key(require_signature),
        gate=gate,
        require_cuda=require_cuda,
    )
    opened = None if run is None else as_run(run)
    return verify_model(Path(model), spec, run=opened, progress=steps_of(progress, "verifying"))


@keyword_settings(spec=QuantizeSpec)
def quantize(
    model: StrPath = DEFAULT_MODEL,
    output: StrPath | None = None,
    *,
    spec: QuantizeSpec,
    run: StrPath | Run | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Write a model in 8 bits or half precision, if it passes the accuracy gate: ``xexport quantize``.

    Args:
        model: the full float32 model.
        output: the model to write; by default MODEL.int8.onnx or MODEL.fp16.onnx.
        run: of the model; by default that of its name in ``runs``.
        progress: called as the nodes of an EfficientNet are quantised.

    Returns:
        What was written, and the scores before and after.

    Raises:
        XfeatError: as :func:`xfeat.export.quantization.quantize.quantize_model` says.
    """
    from xfeat.export.model.file import open_model
    from xfeat.export.quantization.quantize import quantize_model
    from xfeat.head.runs.inputs import find_run

    model = Path(model)
    metadata = open_model(model).metadata
    if run is None:
        run = find_run(metadata.run, metadata.head_sha256, runs=Path(DEFAULT_RUNS), near=model.absolute())
    target = _path(output) or model.with_suffix(".fp16.onnx" if spec.precision == "float16" else ".int8.onnx")
    return quantize_model(model, as_run(run), target, spec, steps_of(progress, "quantising"))


@keyword_settings(spec=BenchSpec)
def bench(
    models: Sequence[StrPath] = (DEFAULT_MODEL,),
    run: StrPath | Run | None = None,
    *,
    spec: BenchSpec,
    progress: Progress | None = None,
) -> list[Speed]:
    """Measure latency and images per second of models: ``xexport bench``.

    Args:
        models: the files, which take turns.
        run: whose torch model is timed for comparison.
        progress: called after each measurement.

    Returns:
        A row per model, provider, batch size and number of threads.

    Raises:
        DeviceError: if a named provider cannot be used.
        ModelError: if a model cannot be read.
    """
    from xfeat.export.bench import bench_models

    opened = None if run is None else as_run(run)
    return bench_models([Path(model) for model in models], spec, opened, steps_of(progress, "benchmarking"))


def explain(
    model: StrPath,
    images: Sequence[StrPath],
    *,
    output: StrPath = "explained",
    shown: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[Explanation], list[tuple[str, str]]]:
    """Write each image with the model's heatmap (Grad-CAM) over it: ``xexport explain``.

    Args:
        model: a full model.
        images: files, and folders of them.
        output: folder for the pictures.
        shown: class whose heatmap is shown; by default the predicted one.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        progress: called after each image.

    Returns:
        The explanations, and path and reason for every image that could not be read.

    Raises:
        XfeatError: as :func:`xfeat.export.explain.explain_images` says.
    """
    from xfeat.export.explain import explain_images
    from xfeat.export.model.file import open_model

    opened, files = open_model(Path(model), device=device), [Path(image) for image in images]
    return explain_images(opened, files, Path(output), shown=shown, progress=steps_of(progress, "explaining"))


def describe(model: StrPath = DEFAULT_MODEL) -> dict[str, Any]:
    """Describe a model file: classes, settings, fingerprints, threshold, size, operators: ``xexport info``.

    Args:
        model: the file.

    Returns:
        Plain JSON types.

    Raises:
        ModelError: if it was not written by this project.
    """
    from xfeat.export.describe import describe_model

    return describe_model(Path(model))


def sign(model: StrPath, key: StrPath) -> Path:
    """Sign the certificate of a model, in minisign's format, after comparing the two: ``xexport sign``.

    Args:
        model: the file.
        key: secret key without a password.

    Returns:
        The signature that was written.

    Raises:
        MismatchError: if the certificate does not belong to the model.
        XfeatError: as :func:`xfeat.export.parity.signature.sign_certificate` says.
    """
    from xfeat.export.model.file import open_model
    from xfeat.export.parity.certificate import certificate_path, read_certificate, require_match
    from xfeat.export.parity.signature import sign_certificate

    path = Path(model)
    certificate = read_certificate(certificate_path(path))
    require_match(open_model(path), certificate)
    return sign_certificate(certificate.path, certificate.content, Path(key))


@keyword_settings(spec=TritonSpec)
def write_triton(model: StrPath = DEFAULT_MODEL, output: StrPath = "triton", *, spec: TritonSpec) -> Repository:
    """Write a model into a model repository for NVIDIA Triton: ``xexport triton``.

    Args:
        model: a full or core model.
        output: the repository; other models in it are not changed.

    Returns:
        The files that were written.

    Raises:
        ModelError: if the model cannot be read.
        OutputError: if a file cannot be written.
    """
    from xfeat.export.triton import write_repository

    return write_repository(Path(model), Path(output), spec)


def write_snippet(model: StrPath = DEFAULT_MODEL, language: str = "python") -> str:
    """Return a program that classifies image files with a model, without xfeat: ``xexport snippet``.

    Args:
        model: a file of ``xexport onnx``.
        language: ``python``, ``js`` (Node) or ``cpp``.

    Returns:
        The text of the program.

    Raises:
        ModelError: if the model cannot be read.
        SpecError: if the language is unknown, or cannot prepare images for a core model.
    """
    from xfeat.export.snippets.write import write_snippet as write

    return write(Path(model), language)


def write_card(
    model: StrPath = DEFAULT_MODEL,
    output: StrPath = "card",
    *,
    run: StrPath | None = None,
    evaluations: Sequence[StrPath] = (),
    license: str | None = None,
) -> WrittenCard:
    """Write the card of a model, checklists of reporting guidelines and an ML-BOM: ``xexport card``.

    Everything in them was measured, with the file and key that says so, or is marked *for you to fill in*.

    Args:
        model: a file of ``xexport onnx`` or :func:`export_onnx`.
        output: the folder.
        run: folder of the model's run; by default that of its name in ``runs``, if it is there.
        evaluations: folders of ``xhead eval`` and ``xhead crossval``.
        license: of the model, such as ``apache-2.0``; by default left open.

    Returns:
        The files, and their content.

    Raises:
        XfeatError: as :func:`xfeat.export.card.write.write_card` says.
    """
    from xfeat.export.card.write import write_card as write

    folders = [Path(each) for each in evaluations]
    return write(Path(model), Path(output), run=_path(run), evaluations=folders, license=license)


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)

"""The public functions of this package: what ``import xfeat`` offers, and what its commands call. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.export.specs import DEFAULT_MODEL
from xfeat.featurize.keyword_settings import keyword_settings
from xfeat.featurize.progress import Progress, StrPath, steps_of
from xfeat.serve.specs import AccessOptions, ServerOptions, ServeSpec

if TYPE_CHECKING:
    from minisign import PublicKey

    from xfeat.serve.evaluation.evaluate import ModelEvaluation
    from xfeat.serve.models.registry import ModelRegistry


@keyword_settings(limits=ServeSpec, access=AccessOptions, options=ServerOptions)
def start_server(
    model: StrPath = DEFAULT_MODEL,
    on_ready: Callable[[str, ModelRegistry], None] | None = None,
    *,
    limits: ServeSpec,
    access: AccessOptions,
    options: ServerOptions,
) -> None:
    """Serve a model over HTTP, with a web page, until Ctrl-C or SIGTERM: ``xserve start``.

    Args:
        model: the file, or a folder of models.
        on_ready: called with the URL and the models once connections are accepted.

    Raises:
        MissingExtraError: if the libraries of a server are not installed.
        XfeatError: as :func:`xfeat.serve.http.server.serve` says.
    """
    from xfeat.featurize.errors import MissingExtraError

    try:
        from xfeat.serve.http.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"xserve start needs {error.name}, which is not installed", fix="pip install 'xfeat-onnx[serve]'"
        ) from error
    serve(Path(model), limits, options, on_ready=on_ready or (lambda url, models: None))


def write_page(
    model: StrPath,
    output: StrPath,
    *,
    single: bool = False,
    runtime: StrPath | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write a web page that runs a model in the browser, as a folder of files or as one file: ``xserve page``.

    Args:
        model: a full model.
        output: the folder, or the file, to write.
        single: write one HTML file that opens without a server.
        runtime: folder with the two files of onnxruntime-web, or its npm package, packed or unpacked; by default they
            are downloaded once.
        progress: called with the bytes of that download.

    Returns:
        The name of each file, with its size in bytes.

    Raises:
        XfeatError: as :func:`xfeat.serve.static_site.write.write_site` and
            :func:`xfeat.serve.static_site.single_file.write_single` say.
    """
    from xfeat.serve.static_site.single_file import write_single
    from xfeat.serve.static_site.write import write_site

    source = None if runtime is None else Path(runtime)
    write = write_single if single else write_site
    return write(Path(model), Path(output), source, steps_of(progress, "downloading onnxruntime-web"))


def evaluate_model(
    model: StrPath,
    data: StrPath,
    *,
    positive: str | None = None,
    threshold: float | None = None,
    groups: str | None = None,
    layout: str | None = None,
    described: Mapping[str, Any] | None = None,
    metadata: StrPath | None = None,
    progress: Progress | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    allow_unverified: bool = False,
    require_signature: PublicKey | None = None,
) -> ModelEvaluation:
    """Measure an ONNX classifier on labelled images, without torch: ``xserve eval``.

    Args:
        model: a file of ``xexport onnx``, or any ONNX classifier that ``described`` or ``metadata`` describes.
        data: a folder, zip archive or table, as for ``xfeat featurize``. Splits are ignored.
        positive: the class that the threshold is for; by default the model's own.
        threshold: probability from which it is predicted; by default the model's own.
        groups: table or regular expression for the patient of each image.
        layout: of the folders.
        described: of another model, fields of :class:`xfeat.serve.evaluation.specs.ClassifierSpec`.
        metadata: JSON file with these fields; ``described`` overrides it.
        progress: called as images are classified.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: on the CPU; by default the number of cores.
        batch_size: most images per call of the network; the default depends on the device.
        allow_unverified: warn, instead of raising, if the certificate does not belong to the file.
        require_signature: the key that must have signed the certificate.

    Returns:
        The predictions and their figures.

    Raises:
        XfeatError: as :func:`xfeat.serve.evaluation.evaluate.evaluate_model` says, and the opening of model and data.
    """
    from xfeat.featurize.datasets.layouts import open_dataset
    from xfeat.serve.evaluation.evaluate import evaluate_model, open_classifier
    from xfeat.serve.evaluation.specs import read_classifier_spec

    spec = read_classifier_spec(None if metadata is None else Path(metadata), dict(described or {}))
    trust: dict[str, Any] = {"allow_unverified": allow_unverified, "require_signature": require_signature}
    predictor = open_classifier(Path(model), spec, device=device, threads=threads, batch_size=batch_size, **trust)
    dataset = open_dataset(data, groups=groups, layout=layout)
    advance = steps_of(progress, "evaluating")
    return evaluate_model(predictor, dataset, positive=positive, threshold=threshold, progress=advance)

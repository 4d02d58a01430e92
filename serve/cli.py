"""The command ``xserve``. Each command parses, calls one library function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurize.console import Commands, default_of, json_option, progress_bar
from serve.spec import MEBIBYTE, ServeSpec

if TYPE_CHECKING:
    from export.metadata import ModelMetadata
    from serve.results import Prediction, SkippedImage

DEFAULT_MODEL = "model.onnx"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
_SHOWN = 10

_device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N. A device asked for is never replaced.",
)
_threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads for the network.  [default: number of cores]"
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat")
def main() -> None:
    """Answer images with an exported model: on the command line, over HTTP and on a page."""


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH…")
@click.option(
    "--model", type=click.Path(path_type=Path), default=DEFAULT_MODEL, show_default=True, help="A file of xexport onnx."
)
@_device_option
@_threads_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per call of the network.  [default: what suits the device]",
)
@json_option
def predict(
    paths: tuple[Path, ...], model: Path, device: str, threads: int | None, batch_size: int | None
) -> tuple[dict[str, Any], str]:
    """Classify image files, and all images in folders.

    Images that cannot be read are named on stderr and left out; if none can be read, that is an error.
    """
    from serve.predictor import Predictor
    from serve.results import as_json, split_results

    predictor = Predictor.open(model, device, threads)
    with progress_bar("predicting", "images") as progress:
        results = predictor.predict_paths(paths, batch_size=batch_size, progress=progress)
    predictions, skipped = split_results(results)
    _report_skipped(predictions, skipped)
    return as_json(str(model), results), _as_table(predictions, predictor.metadata)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), default=DEFAULT_MODEL)
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@_device_option
@_threads_option
@click.option(
    "--max-body-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=default_of(ServeSpec, "max_body_bytes") / MEBIBYTE,
    show_default=True,
    help="Largest request in MiB.",
)
@click.option(
    "--max-files",
    type=click.IntRange(min=1),
    default=default_of(ServeSpec, "max_files"),
    show_default=True,
    help="Most images of one request.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=default_of(ServeSpec, "max_queue"),
    show_default=True,
    help="Most images waiting; beyond it clients are told to come again.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Most images per call.  [default: what suits the device]"
)
@click.option(
    "--batch-wait-ms",
    type=click.FloatRange(min=0),
    default=default_of(ServeSpec, "batch_wait_ms"),
    show_default=True,
    help="How long an image waits for others to form a batch.",
)
def start(
    model: Path,
    host: str,
    port: int,
    device: str,
    threads: int | None,
    max_body_mb: float,
    batch_size: int | None,
    **limits: Any,
) -> None:
    """Serve MODEL over HTTP, with a page to drop images on.

    MODEL is a file of xexport onnx, by default model.onnx. Ctrl-C stops; requests that were accepted are answered.
    """
    spec = ServeSpec(max_body_bytes=int(max_body_mb * MEBIBYTE), max_batch=batch_size, **limits)
    from serve.predictor import Predictor

    run = _import_server()
    predictor = Predictor.open(model, device, threads)

    def announce(url: str) -> None:
        click.echo(f"serving {model} on {predictor.device} at {url}")
        click.echo("Ctrl-C stops", err=True)

    run(predictor, spec, host=host, port=port, on_ready=announce)
    click.echo("stopped", err=True)


def _import_server() -> Any:
    from featurize.errors import MissingExtraError

    try:
        from serve.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"xserve start needs {error.name}, which is not installed", mend="pip install 'xfeat[serve]'"
        ) from error
    return serve


def _report_skipped(predictions: list[Prediction], skipped: list[SkippedImage]) -> None:
    from featurize.errors import DataError

    if predictions:
        for image in skipped:
            click.echo(f"warning: skipped {image.path}: {image.reason}", err=True)
        return
    named = [f"{image.path}: {image.reason}" for image in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        named.append(f"… and {len(skipped) - _SHOWN} more")
    raise DataError("none of the images could be answered", found="\n            ".join(named))


def _as_table(predictions: list[Prediction], metadata: ModelMetadata) -> str:
    """Return aligned columns: path, label, the probability of each class, and the distance if the model measures it."""
    measured = any(prediction.ood is not None for prediction in predictions)
    rows = [["path", "label", *metadata.class_names, *(["ood"] if measured else [])]]
    for prediction in predictions:
        row = [prediction.path, prediction.label]
        row += [f"{probability:.4f}" for probability in prediction.probabilities.values()]
        if measured:
            row.append("" if prediction.ood is None else f"{prediction.ood:.2f}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    if metadata.threshold is not None:
        lines.append(f"{metadata.positive} from a probability of {metadata.threshold:.4g}")
    return "\n".join(lines)

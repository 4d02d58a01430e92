"""``xserve start``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.export.cli.options import cuda_graphs_option
from xfeat.export.specs import DEFAULT_MODEL
from xfeat.featurize.console import default_of
from xfeat.serve.cli.options import threads_option
from xfeat.serve.cli.settings import read_file, read_key
from xfeat.serve.specs import MEBIBYTE, Process, ServeSpec

if TYPE_CHECKING:
    from xfeat.serve.models.registry import Models


@click.command()
@click.argument("model", type=click.Path(path_type=Path), default=DEFAULT_MODEL)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_file,
    help="TOML file of these options, such as: max-queue = 512. Options and the environment come first.",
)
@click.option(
    "--host", default=default_of(Process, "host"), show_default=True, help="Address to listen on; 0.0.0.0 for all."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=default_of(Process, "port"),
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--device",
    default=default_of(Process, "device"),
    show_default=True,
    help="auto, cpu, cuda or cuda:N; several with commas, as cuda:0,cuda:1. A device asked for is never replaced.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    help="Sessions of a model on each device, which compute side by side.  [default: 2 on a CPU of as many cores, 1 "
    "on a GPU]",
)
@click.option("--require-cuda", is_flag=True, help="The same as --device cuda: without a GPU, do not start.")
@cuda_graphs_option
@threads_option
@click.option(
    "--max-body-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=default_of(ServeSpec, "max_body_bytes") / MEBIBYTE,
    show_default=True,
    help="Largest request in MiB.",
)
@click.option(
    "--max-memory-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=default_of(ServeSpec, "max_memory_bytes") / MEBIBYTE,
    show_default=True,
    help="Most MiB of all requests at one time; beyond it clients are told to come again.",
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
    help="Most images waiting for a model; beyond it clients are told to come again.",
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
@click.option(
    "--answer-timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=default_of(ServeSpec, "answer_timeout_s"),
    show_default=True,
    help="How long an accepted request may wait for its answers.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the key that clients must send; or put the key itself into XSERVE_API_KEY.",
)
@click.option(
    "--log-format",
    type=click.Choice(["off", "text", "json"]),
    default="off",
    show_default=True,
    help="A line a request on stderr, without images and file names.",
)
@click.option(
    "--watch-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Look for changed model files every so many seconds and reload them.  [default: only on SIGHUP]",
)
def start(model: Path, **settings: Any) -> None:
    """Serve MODEL over HTTP, with a page to drop images on.

    MODEL is a file of xexport onnx, by default model.onnx, or a folder of them. SIGHUP opens changed files anew while
    requests are answered. Ctrl-C stops; requests that were accepted are answered.
    """
    serve = _import_server()
    spec = ServeSpec(
        max_body_bytes=int(settings.pop("max_body_mb") * MEBIBYTE),
        max_memory_bytes=int(settings.pop("max_memory_mb") * MEBIBYTE),
        max_batch=settings.pop("batch_size"),
        **{name: settings.pop(name) for name in ("max_files", "max_queue", "batch_wait_ms", "answer_timeout_s")},
    )
    process = Process(
        device=_device(settings.pop("device"), settings.pop("require_cuda")),
        api_key=read_key(settings.pop("api_key_file")),
        **settings,
    )
    if process.log_format == "json":
        _log_as_json()

    def announce(url: str, models: Models) -> None:
        click.echo(f"serving {model} on {models.default.device} at {url}")
        click.echo("Ctrl-C stops", err=True)

    serve(model, spec, process, on_ready=announce)
    click.echo("stopped", err=True)


def _device(device: str, require_cuda: bool) -> str:
    from xfeat.featurize.errors import SpecError

    if not require_cuda or all(each.strip().startswith("cuda") for each in device.split(",")):
        return device
    if device == "auto":
        return "cuda"
    raise SpecError(f"--require-cuda contradicts --device {device}", fix="leave one of them out")


def _log_as_json() -> None:
    import logging

    from xfeat.serve.http.request_log import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("xfeat", "uvicorn"):
        logging.getLogger(name).handlers[:] = [handler]
        logging.getLogger(name).propagate = False


def _import_server() -> Any:
    from xfeat.featurize.errors import MissingExtraError

    try:
        from xfeat.serve.http.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"xserve start needs {error.name}, which is not installed", fix="pip install 'xfeat-onnx[serve]'"
        ) from error
    return serve

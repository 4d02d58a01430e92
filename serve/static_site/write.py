"""A static site that runs the model in the browser: the page, the model and onnxruntime-web in one folder."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import ModelError, OutputError
from xfeat.featurize.progress import Steps
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.text import listed
from xfeat.serve.inference.description import describe_model
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.page_files import PAGE_FILES, page_file
from xfeat.serve.static_site.onnxruntime_web import PACKAGE, VERSION, find_runtime

logger = logging.getLogger(__name__)

FORMAT = "xfeat.page"
SCHEMA_VERSION = 1
DESCRIPTION = "model.json"
# decode.js rejects TIFF, 16-bit PNG and most compressed DICOM by name, with advice.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WebP", "DICOM")
RUNTIME_NAMES = {"ort.wasm.bundle.min.mjs": "onnxruntime.js", "ort-wasm-simd-threaded.wasm": "onnxruntime.wasm"}
# WebAssembly may be compiled. The worker that runs it is started from a blob: so this policy applies to it as well.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'"
)
# Some 20 seconds with 40 Mbit/s.
_LARGE_BYTES = 100_000_000
_MODEL_NAME = re.compile(r"model-[0-9a-f]{12}\.onnx")
_UNFINISHED = re.compile(r"\..*\.tmp")  # what a killed run leaves behind


def write_site(model: Path, folder: Path, runtime: Path | None = None, progress: Steps | None = None) -> dict[str, int]:
    """Write the site of a model file. An earlier site is replaced; a folder with any other file is rejected.

    Args:
        model: a full model file of ``xexport onnx``.
        folder: where to write.
        runtime: source of onnxruntime-web; see :func:`xfeat.serve.static_site.onnxruntime_web.find_runtime`.
        progress: called with the bytes of its download.

    Returns:
        The name of each file, with its size in bytes.

    Raises:
        ModelError: if the model does not exist, or is the core variant.
        MismatchError: if it does not match the certificate beside it.
        OutputError: if the folder holds other files, or cannot be written.
        SpecError, MissingExtraError: if onnxruntime-web is not available.
    """
    _require_site_folder(folder)
    facts, files = site_parts(model, runtime, progress)
    pages = {name: page_file(name, "browser", "folder") for name in PAGE_FILES["browser"]}
    files |= {name: content.replace(b"$policy", POLICY.encode()) for name, content in pages.items()}
    description = {DESCRIPTION: json.dumps(facts, indent=1).encode()}
    # In a new folder the description comes first: it marks the folder as a site, so that an interrupted command can be
    # repeated. In an earlier site it comes last: when it changes, all files that it names are there.
    files = files | description if (folder / DESCRIPTION).exists() else description | files
    for file, data in files.items():
        with replacing(folder / file) as partial:
            partial.write_bytes(data)
    for old in folder.iterdir():
        if old.name not in files and _belongs_to_site(old):
            old.unlink()
    return {file: len(data) for file, data in files.items()}


def site_parts(model: Path, runtime: Path | None, progress: Steps | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the description of a model that the page reads, and the files of the model and of onnxruntime-web.

    Args:
        model: as above.
        runtime: as above.
        progress: as above.

    Raises:
        XfeatError: as above.
    """
    predictor = Predictor.open(model, device="cpu")
    if predictor.metadata.variant != "full":
        raise ModelError(
            "the core model has no heatmap and no out-of-distribution score, and its input differs from the page's",
            path=model,
            fix="pass the full model (without .core in its name) to --model",
        )
    content = predictor.model.read()
    if len(content) > _LARGE_BYTES:
        logger.warning(
            "%s has %.0f MB, which every visitor loads before the first answer; xexport quantize makes it smaller",
            model,
            len(content) / 1e6,
        )
    # The name depends on the content: a browser never takes a cached older model for this one.
    name = f"model-{predictor.model.sha256[:12]}.onnx"
    files = {name: content} | {RUNTIME_NAMES[part]: data for part, data in find_runtime(runtime, progress).items()}
    return _describe_site(predictor, name, files), files


def _describe_site(predictor: Predictor, name: str, files: dict[str, bytes]) -> dict[str, Any]:
    wasm = RUNTIME_NAMES["ort-wasm-simd-threaded.wasm"]
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "written_by": f"xfeat {version('xfeat-onnx')}",
        **describe_model(predictor),
        "name": predictor.path.stem,
        "names": [predictor.path.stem],
        "formats": list(IMAGE_FORMATS),
        "device": f"{PACKAGE} {VERSION}",
        "limits": None,
        "file": {"name": name, "bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()},
        "runtime": {"name": wasm, "bytes": len(files[wasm])},
    }


def _require_site_folder(folder: Path) -> None:
    """Reject a folder that holds files of others: they would be published together with the site.

    Raises:
        OutputError: if the folder is not empty and not an earlier site, or holds more than a site.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        is_site = json.loads((folder / DESCRIPTION).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError):
        is_site = False
    if not is_site:
        raise OutputError(
            "not an empty folder, and not a page written by xserve page", path=folder, fix="choose another with -o"
        )
    if others := sorted(path.name for path in folder.iterdir() if not _belongs_to_site(path)):
        raise OutputError(
            "the folder holds other files than the page",
            path=folder,
            found=listed(others),
            fix="move them away, or choose another folder with -o",
        )


def _belongs_to_site(path: Path) -> bool:
    names = {DESCRIPTION, *RUNTIME_NAMES.values(), *PAGE_FILES["browser"]}
    ours = path.name in names or _MODEL_NAME.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
    return bool(ours) and path.is_file()

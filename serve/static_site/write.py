"""A static site that runs the model in the browser: the page, the model and onnxruntime-web in one folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import ModelError, OutputError
from xfeat.featurize.system.atomic import replacing
from xfeat.serve.inference.description import model_facts
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.page_files import FORMS, page_file
from xfeat.serve.static_site.onnxruntime_web import PACKAGE, VERSION, find_runtime

FORMAT = "xfeat.page"
SCHEMA_VERSION = 1
FACTS = "model.json"
# TIFF, DICOM and PNG with 16 bits are named by decode.js, with what to do about them.
FORMATS = ("JPEG", "PNG", "BMP", "WebP")
RUNTIME_NAMES = {"ort.wasm.bundle.min.mjs": "onnxruntime.js", "ort-wasm-simd-threaded.wasm": "onnxruntime.wasm"}
# WebAssembly may be compiled, and the worker that runs it starts from a blob, so that this policy is its own too.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site that was written.

    Attributes:
        folder: where.
        files: number of files.
        size_bytes: of all together.
    """

    folder: Path
    files: int
    size_bytes: int


def write_site(model: Path, folder: Path, runtime: Path | None = None) -> Site:
    """Write the site of a model file. A site that is there already is replaced; a folder of other things is refused.

    Args:
        model: a full model file of ``xexport onnx``.
        folder: where to write.
        runtime: the npm package onnxruntime-web, as :func:`xfeat.serve.static_site.onnxruntime_web.find_runtime` takes
            it.

    Raises:
        ModelError: if there is no such model, or it is the core variant.
        OutputError: if the folder holds other things, or cannot be written.
        SpecError, MissingExtraError: if onnxruntime-web cannot be had.
    """
    _require_own(folder)
    predictor = Predictor.open(model, device="cpu")
    if predictor.metadata.variant != "full":
        raise ModelError(
            "the core variant has neither heatmap nor distance, and takes another input than the page gives",
            path=model,
            fix="name the full model, without .core, with --model",
        )
    content = model.read_bytes()
    # A name of its own for each content: what a browser has kept of another model is never taken for this one.
    name = f"model-{hashlib.sha256(content).hexdigest()[:12]}.onnx"
    files = {name: content} | {RUNTIME_NAMES[part]: found for part, found in find_runtime(runtime).items()}
    files |= {page: page_file(page, "browser").replace(b"$policy", POLICY.encode()) for page in FORMS["browser"]}
    facts = {FACTS: json.dumps(_facts(predictor, name, content, files), indent=1).encode()}
    # First in a new folder, which is ours from then on; last where a site is replaced, when all that it names is there.
    files = files | facts if (folder / FACTS).exists() else facts | files
    for file, data in files.items():
        with replacing(folder / file) as partial:
            partial.write_bytes(data)
    for old in folder.glob("model-*.onnx"):
        if old.name != name:
            old.unlink()
    return Site(folder=folder, files=len(files), size_bytes=sum(map(len, files.values())))


def _facts(predictor: Predictor, name: str, content: bytes, files: dict[str, bytes]) -> dict[str, Any]:
    wasm = RUNTIME_NAMES["ort-wasm-simd-threaded.wasm"]
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "written_by": f"xfeat {version('xfeat-onnx')}",
        **model_facts(predictor),
        "name": predictor.path.stem,
        "names": [predictor.path.stem],
        "formats": list(FORMATS),
        "device": f"{PACKAGE} {VERSION}",
        "limits": None,
        "file": {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "runtime": {"name": wasm, "bytes": len(files[wasm])},
    }


def _require_own(folder: Path) -> None:
    """Refuse to write among other things.

    Raises:
        OutputError: if the folder has content and is no site of an earlier run.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        if json.loads((folder / FACTS).read_bytes())["format"] == FORMAT:
            return
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise OutputError(
        "not an empty folder, and not a page that xserve page wrote", path=folder, fix="name another with -o"
    )

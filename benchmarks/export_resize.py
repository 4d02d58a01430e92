"""What another resize than the training's does to a model's answers, on the same images.

    python benchmarks/export_resize.py [MODEL IMAGES…]

By default on what ``make demo`` left. The baseline is what the training did: Pillow, before the model. Then the same
images are resized in other ways that deployments use, and once by the model itself. Columns: mean and largest
difference of a probability, decisions that change, and images that the model takes for unlike its training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xfeat.export.model.file import ModelFile, open_model
from xfeat.featurize.datasets.image_files import list_images
from xfeat.featurize.images.decode import decode

ROOT = Path(__file__).parents[1]
Resize = Callable[[Image.Image, int], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("images", type=Path, nargs="*", default=[ROOT / "data" / "test"])
    options = parser.parse_args()
    model = open_model(options.model)
    images = [decode(file.read_bytes()).convert("RGB") for file in list_images(options.images)]
    baseline, _ = answers(model, images, WAYS["as in the training (Pillow, bilinear, antialiased)"])
    print(f"{len(images)} images\n")
    print("| resize | mean | largest | changed decisions | unlike the training |\n|---|---|---|---|---|")
    for name, way in WAYS.items():
        found, foreign = answers(model, images, way)
        off = np.abs(found - baseline)
        changed = sum(decided(model, one) != decided(model, other) for one, other in zip(found, baseline, strict=True))
        print(f"| {name} | {off.mean():.1e} | {off.max():.1e} | {changed} | {foreign} |", flush=True)


def answers(model: ModelFile, images: list[Image.Image], way: Resize) -> tuple[np.ndarray, int]:
    """Return probabilities (n, C), and how many images are beyond the threshold of the distance."""
    side = model.metadata.feature_spec.preprocess.size
    probabilities, foreign = [], 0
    for image in images:
        pixels = np.asarray(way(image, side))[None]
        row, distance = model.session.run(["probabilities", "ood"], {"image": pixels})
        probabilities.append(row[0])
        foreign += bool(distance[0] > (model.metadata.ood_threshold or np.inf))
    return np.stack(probabilities), foreign


def decided(model: ModelFile, probabilities: np.ndarray) -> str:
    return model.metadata.decide(probabilities.tolist())


def by_pillow(filter_: Image.Resampling) -> Resize:
    return lambda image, side: image.resize((side, side), filter_)


def without_antialias(image: Image.Image, side: int) -> Image.Image:
    """Resize as OpenCV's INTER_LINEAR and ``torch.nn.functional.interpolate`` do."""
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=False)
    return Image.fromarray(resized[0].round().byte().permute(1, 2, 0).numpy())


def cropped(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to 8/7 of the model's and cut the middle out, as ImageNet's transforms do."""
    factor = side * 8 / 7 / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def padded(image: Image.Image, side: int) -> Image.Image:
    """Keep the aspect ratio and fill up with black."""
    factor = side / max(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


WAYS: dict[str, Resize] = {
    "as in the training (Pillow, bilinear, antialiased)": by_pillow(Image.Resampling.BILINEAR),
    "by the model itself": lambda image, side: image,
    "bilinear without antialias (OpenCV, torch)": without_antialias,
    "bicubic, antialiased (Pillow)": by_pillow(Image.Resampling.BICUBIC),
    "nearest": by_pillow(Image.Resampling.NEAREST),
    "shorter side, then the middle (ImageNet)": cropped,
    "aspect kept, black borders": padded,
}

if __name__ == "__main__":
    main()

"""How a model's predictions change if images are resized otherwise than in the training.

    python benchmarks/export_resize.py [MODEL IMAGES…]

By default on the output of ``make demo``. The baseline is the resize of the training: Pillow, before the model. The
same images are resized in other ways that deployments use, and by the model itself. Columns: mean and largest
difference of a probability, changed decisions, and images above the out-of-distribution threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xfeat.export.model.file import ModelFile, open_model
from xfeat.featurize.datasets.unlabelled import list_images
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
    baseline, _ = predict(model, images, WAYS["as in the training (Pillow, bilinear, antialiased)"])
    print(f"{len(images)} images\n")
    print("| resize | mean | largest | changed decisions | out of distribution |\n|---|---|---|---|---|")
    for name, way in WAYS.items():
        found, above = predict(model, images, way)
        off = np.abs(found - baseline)
        changed = sum(
            decision(model, one) != decision(model, other) for one, other in zip(found, baseline, strict=True)
        )
        print(f"| {name} | {off.mean():.1e} | {off.max():.1e} | {changed} | {above} |", flush=True)


def predict(model: ModelFile, images: list[Image.Image], way: Resize) -> tuple[np.ndarray, int]:
    """Return probabilities (n, C), and the number of images above the ood threshold."""
    side = model.metadata.feature_spec.preprocess.size
    probabilities, above = [], 0
    for image in images:
        pixels = np.asarray(way(image, side))[None]
        row, score = model.session.run(["probabilities", "ood"], {"image": pixels})
        probabilities.append(row[0])
        above += bool(score[0] > (model.metadata.ood_threshold or np.inf))
    return np.stack(probabilities), above


def decision(model: ModelFile, probabilities: np.ndarray) -> str:
    return model.metadata.decide(probabilities.tolist())


def by_pillow(filter_: Image.Resampling) -> Resize:
    return lambda image, side: image.resize((side, side), filter_)


def without_antialias(image: Image.Image, side: int) -> Image.Image:
    """Resize as OpenCV's INTER_LINEAR and ``torch.nn.functional.interpolate`` do."""
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=False)
    return Image.fromarray(resized[0].round().byte().permute(1, 2, 0).numpy())


def cropped(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to 8/7 of the model's and crop the centre, as ImageNet's transforms do."""
    factor = side * 8 / 7 / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def padded(image: Image.Image, side: int) -> Image.Image:
    """Keep the aspect ratio and pad with black."""
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
    "shorter side, then centre crop (ImageNet)": cropped,
    "same aspect ratio, black borders": padded,
}

if __name__ == "__main__":
    main()

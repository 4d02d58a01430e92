"""Does the ood score detect images that are not X-rays? AUROC of photos, drawings and noise against X-rays.

    python benchmarks/export_ood.py [MODEL XRAYS]

By default on the output of ``make demo``, which only shows that it runs; meaningful figures need real images.

MODEL is a full model written by ``xexport onnx``; XRAYS a folder of X-rays that it was not trained on. The other images
are those of installed libraries (scikit-learn, matplotlib, and scikit-image if available), whole and cropped, and drawn
ones. The baseline is the confidence in the predicted class, measured in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sklearn.metrics import roc_auc_score

from xfeat.export.model.file import ModelFile, open_model
from xfeat.featurize.datasets.layouts import list_images
from xfeat.featurize.images.decode import decode

ROOT = Path(__file__).parents[1]
CROPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("xrays", type=Path, nargs="?", default=ROOT / "data" / "test")
    options = parser.parse_args()
    model = open_model(options.model)
    threshold = model.metadata.ood_threshold
    xrays = [predict(model, decode(file.read_bytes())) for file in list_images([options.xrays])]
    print(f"{len(xrays)} X-rays, {share_above(xrays, threshold):.1%} above the threshold of {threshold:.3f}")
    print(f"{'other images':20} {'count':>5} {'AUROC ood score':>15} {'AUROC confidence':>17} {'above threshold':>17}")
    rng = np.random.default_rng(0)
    kinds = {"photos": photos(rng), "photos, grey": grey(photos(rng)), "drawings": drawings(rng), "noise": noise(rng)}
    others = {kind: [predict(model, image) for image in images] for kind, images in kinds.items()}
    others["all"] = [each for rows in others.values() for each in rows]
    for kind, rows in others.items():
        labels = [0] * len(xrays) + [1] * len(rows)
        score = roc_auc_score(labels, [each[0] for each in xrays + rows])
        confidence = roc_auc_score(labels, [-each[1] for each in xrays + rows])
        above = share_above(rows, threshold)
        print(f"{kind:20} {len(rows):5} {score:15.4f} {confidence:17.4f} {above:17.1%}")


def predict(model: ModelFile, image: Image.Image) -> tuple[float, float]:
    pixels = np.asarray(image.convert("RGB"))[None]
    score, probabilities = model.session.run(["ood", "probabilities"], {"image": pixels})
    return float(score[0]), float(probabilities.max())


def share_above(rows: list[tuple[float, float]], threshold: float | None) -> float:
    return float(np.mean([each[0] > (threshold or 0) for each in rows]))


def photos(rng: np.random.Generator) -> Iterator[Image.Image]:
    for whole in shipped_photos():
        yield whole
        for _ in range(CROPS):
            width, height = (int(side * rng.uniform(0.4, 0.8)) for side in whole.size)
            left, top = int(rng.integers(whole.width - width)), int(rng.integers(whole.height - height))
            yield whole.crop((left, top, left + width, top + height))


def shipped_photos() -> Iterator[Image.Image]:
    import matplotlib.cbook
    from sklearn.datasets import load_sample_images

    for pixels in load_sample_images().images:
        yield Image.fromarray(pixels)
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        yield Image.open(file).convert("RGB")
    try:
        import skimage.data
    except ModuleNotFoundError:
        return
    for name in (
        "astronaut",
        "brick",
        "camera",
        "cat",
        "coins",
        "coffee",
        "grass",
        "gravel",
        "hubble_deep_field",
        "moon",
    ):
        try:
            yield Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        except (OSError, ModuleNotFoundError, AttributeError):  # not in the wheel; nothing is downloaded
            continue


def grey(images: Iterator[Image.Image]) -> Iterator[Image.Image]:
    return (image.convert("L") for image in images)


def drawings(rng: np.random.Generator) -> Iterator[Image.Image]:
    for number in range(40):
        image = Image.new("RGB" if number % 2 else "L", (400, 320), "white")
        pen = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(3, 15))):
            corners = np.sort(rng.integers(0, (400, 320), (2, 2)), axis=0).ravel().tolist()
            colour = tuple(int(c) for c in rng.integers(0, 256, 3)) if number % 2 else int(rng.integers(0, 256))
            (pen.ellipse, pen.rectangle, pen.line)[int(rng.integers(3))](corners, fill=colour)
        yield image


def noise(rng: np.random.Generator) -> Iterator[Image.Image]:
    for number in range(40):
        shape = (300, 300, 3) if number % 2 else (300, 300)
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        yield image.filter(ImageFilter.GaussianBlur(number // 8))


if __name__ == "__main__":
    main()

"""Which kinds of images does the ood score find? Share above the threshold and AUROC against X-rays, by kind.

    python benchmarks/export_ood.py [MODEL XRAYS [OTHER ...]]

By default on the output of ``make demo``, which only shows that it runs; meaningful figures need real images.

MODEL is a full model written by ``xexport onnx``; XRAYS a folder of X-rays that it was not trained on; each OTHER a
folder of further images, such as X-rays of another hospital. The other kinds are those of the certificate, made from
XRAYS; photos of installed libraries (scikit-learn, matplotlib, and scikit-image if available), whole and cropped; other
examinations that pydicom has. The baseline is the confidence in the predicted class, measured in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.metrics import roc_auc_score

from xfeat.export.model.batches import batches
from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.parity.ood_kinds import made_kinds
from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import Pixels, resize

ROOT = Path(__file__).parents[1]
CROPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("xrays", type=Path, nargs="?", default=ROOT / "data" / "test")
    parser.add_argument("others", type=Path, nargs="*", metavar="OTHER")
    options = parser.parse_args()
    model = open_model(options.model)
    spec, threshold = model.metadata.feature_spec.preprocess, model.metadata.ood_threshold
    if threshold is None:
        parser.error(f"{options.model} has no ood score")

    def pixels(images: Iterator[Image.Image]) -> Pixels:
        return np.stack([resize(image.convert("RGB"), spec) for image in images])

    def files(folder: Path) -> Iterator[Image.Image]:
        return (decode(file.read_bytes(), spec) for file in list_images([folder]))

    rng = np.random.default_rng(0)
    xrays = pixels(files(options.xrays))
    kinds = dict(made_kinds(xrays)) | {
        "photos": pixels(photos(rng)),
        "photos, grey": pixels(image.convert("L") for image in photos(rng)),
        "other examinations": pixels(other_examinations()),
        **{str(folder): pixels(files(folder)) for folder in options.others},
    }
    known = predict(model, xrays)
    print(f"{len(xrays)} X-rays, {(known[0] > threshold).mean():.1%} above the threshold of {threshold:.3f}")
    print(f"{'other images':24} {'count':>5} {'above threshold':>15} {'AUROC ood score':>15} {'AUROC confidence':>17}")
    for kind, images in kinds.items():
        found = predict(model, images)
        labels = [0] * len(xrays) + [1] * len(images)
        by_score, by_confidence = (
            roc_auc_score(labels, np.concatenate(pair)) for pair in zip(known, found, strict=True)
        )
        above = (found[0] > threshold).mean()
        print(f"{kind:24} {len(images):5} {above:15.1%} {by_score:15.4f} {by_confidence:17.4f}")


def predict(model: ModelFile, pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Return ood scores, and the confidence in the predicted class with a minus."""
    outputs = [model.run(batch) for batch in batches(pixels)]
    return np.concatenate([each.ood for each in outputs]), -np.concatenate(
        [each.probabilities.max(1) for each in outputs]
    )


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


def other_examinations() -> Iterator[Image.Image]:
    from pydicom.data import get_testdata_file

    for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "examples_overlay.dcm", "examples_palette.dcm"):
        path = get_testdata_file(name, download=False)
        if path is None:  # not in the wheel; nothing is downloaded
            continue
        try:
            image = decode(Path(str(path)).read_bytes())
        except (ImageError, UnidentifiedImageError):
            continue
        yield from (image, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


if __name__ == "__main__":
    main()

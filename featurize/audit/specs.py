"""The thresholds of an audit. docs/audit.md says where each comes from."""

from __future__ import annotations

from dataclasses import dataclass

from xfeat.featurize.specs import Spec, require


@dataclass(frozen=True, kw_only=True)
class AuditSpec(Spec):
    """What counts as what.

    Attributes:
        neighbours: nearest neighbours in feature space that are looked at for each image.
        same_pixels: correlation of fine detail from which two images are the same one.
        laid_over: of the nearest neighbours, so many are also laid over the image: a copy may be cropped or turned.
        same_laid_over: correlation of fine detail from which they are the same image then.
        doubtful_laid_over: from here to ``same_laid_over`` they are compared again, all grey levels equally frequent.
        alike_features: cosine from which a pair is reported although its pixels cannot be compared (files gone).
        strong_shortcut: AUC from which a shortcut is a warning.
        probe_images: images that take part in the shortcut probes at most, drawn at random.
        few_test_images: below this the test figures are coarse.
        few_class_images: below this a class of the train split is tiny.
        seed: of folds and samples.
    """

    neighbours: int = 10
    same_pixels: float = 0.9
    laid_over: int = 3
    same_laid_over: float = 0.98
    doubtful_laid_over: float = 0.9
    alike_features: float = 0.97
    strong_shortcut: float = 0.8
    probe_images: int = 5000
    few_test_images: int = 100
    few_class_images: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, "too few neighbours", expected="1 or more", found=self.neighbours)
        require(self.laid_over >= 0, "laid_over is negative", expected="0 or more", found=self.laid_over)
        for name in ("same_pixels", "same_laid_over", "doubtful_laid_over", "alike_features", "strong_shortcut"):
            require(0 < getattr(self, name) <= 1, f"{name} out of range", expected="0 to 1", found=getattr(self, name))
        require(self.probe_images >= 50, "too few images to probe", expected="50 or more", found=self.probe_images)

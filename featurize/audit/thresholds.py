"""The thresholds of an audit. docs/audit.md explains each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What an audit compares, and from where on it reports.

    Attributes:
        neighbours: nearest neighbours in feature space that are compared with each image.
        outlier_neighbours: nearest neighbours from whose distance outliers are told, if there are four times as many
            images: ten images of another kind are no outliers among ten.
        same_pixels: correlation of fine detail from which two images are duplicates.
        laid_over: so many of the nearest neighbours are also registered: a copy may be cropped or rotated.
        same_laid_over: correlation of fine detail after registration from which two images are duplicates.
        doubtful_laid_over: from here to ``same_laid_over``, pairs are compared again with equalised histograms.
        alike_features: cosine from which a pair is reported if its pixels cannot be compared (files missing).
        strong_shortcut: AUC from which a shortcut is a warning.
        probe_images: the most images for the shortcut probes, drawn at random.
        few_test_images: below this number, a small test split is reported.
        few_class_images: below this number, a small class of the train split is reported.
        blank_deviation: standard deviation of the grey levels below which an image is blank.
        colour: mean difference between the channels, in grey levels, from which an image is in colour.
        grey_share: share of grey images from which one in colour is reported.
        kind_recall: share of copies turned, mirrored or inverted on purpose that must be told from their originals; for
            kinds below it, nothing is reported.
        kind_images: the most images that the model of turned and inverted ones is fitted on, drawn at random.
        seed: of folds and samples.
    """

    neighbours: int = 10
    outlier_neighbours: int = 30
    same_pixels: float = 0.9
    laid_over: int = 3
    same_laid_over: float = 0.98
    doubtful_laid_over: float = 0.9
    alike_features: float = 0.97
    strong_shortcut: float = 0.8
    probe_images: int = 5000
    few_test_images: int = 100
    few_class_images: int = 20
    blank_deviation: float = 4.0
    colour: float = 10.0
    grey_share: float = 0.95
    kind_recall: float = 0.95
    kind_images: int = 2000
    seed: int = 0


THRESHOLDS = Thresholds()

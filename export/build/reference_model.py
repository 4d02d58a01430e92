"""What an export needs besides the head: backbone, distance from the training features, images to check with."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xfeat.export.build.fused_model import PlainModel
from xfeat.export.build.ood_distance import Distance, familiar_threshold, fit_distance
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.agreement import Advance, CheckImages, Probabilities, blocks, load_images
from xfeat.export.parity.progress import Steps
from xfeat.export.parity.subsample import thinned
from xfeat.export.specs import ExportSpec
from xfeat.featurize.backbones.network import load_backbone
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import DataError, MismatchError, RunError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.pipeline.request import featurize_command
from xfeat.head.data.pooling import pooled
from xfeat.head.runs.backbone_weights import weights_of
from xfeat.head.runs.reader import PROBABILITY_PREFIX, Run

logger = logging.getLogger(__name__)


def plain_model(run: Run, weights_file: Path | None = None) -> PlainModel:
    """Return the model exactly as it was trained.

    Args:
        run: the trained head.
        weights_file: the backbone's weights; by default the file that was used, or where ``xfeat`` finds them.

    Raises:
        MismatchError: if the weights are not those of the run.
        WeightsError: if they are gone, or there is no ``weights_file``.
        RunError: if the head's weights are missing or damaged.
    """
    head = run.load_head()
    backbone = load_backbone(run.feature_spec, weights_of(run, weights_file))
    return PlainModel(backbone, head, run.feature_spec.preprocess, temperature(run))


def torch_probabilities(model: PlainModel, pixels: Pixels, advance: Advance = lambda done: None) -> Probabilities:
    """Run the torch model: uint8 (n, S, S, 3) to float32 (n, C)."""
    answers = []
    with torch.inference_mode():
        for block in blocks(pixels):
            answers.append(model(torch.from_numpy(block)).numpy())
            advance(len(block))
    return np.concatenate(answers)


def metadata_of(run: Run, ood_threshold: float | None) -> ModelMetadata:
    """Return what the model says of itself; the variant is set when a file is written."""
    point = run.facts.get("operating_point") or {}
    return ModelMetadata(
        variant="full",
        class_names=run.class_names,
        feature_spec=run.feature_spec,
        temperature=temperature(run),
        positive=point.get("positive"),
        threshold=point.get("threshold"),
        cache_sha256=run.cache["content_sha256"],
        head_sha256=run.head_sha256,
        run=run.name,
        metrics=run.metrics,
        ood_threshold=ood_threshold,
        audit=run.facts.get("audit"),
    )


def temperature(run: Run) -> float:
    """Return what the run divides its logits by before the softmax."""
    return float(run.facts.get("temperature", 1.0))


def distance_of(run: Run, spec: ExportSpec) -> tuple[Distance, float] | tuple[None, None]:
    """Fit the distance to the training features in the run's cache, which must be what it was then.

    Returns:
        The distance, and its threshold from the validation images; nothing if ``spec`` wants none, or if the cache has
        changed and ``spec`` allows that.

    Raises:
        CacheError: if the cache is damaged.
        MismatchError: if it has been made anew with other settings, or, where a distance is wanted, of other images.
        DataError: if it is gone, or does not have the images of the run.
    """
    path = Path(run.cache["path"])
    if not spec.ood and (spec.allow_changed_cache or not path.exists()):
        return None, None
    if not path.exists():
        raise DataError(
            "the features that the run was trained on are gone, so the distance from them cannot be measured",
            path=path,
            mend=f"{featurize_command(run.feature_spec, run.cache['data_root'], path, run.class_names)}, or export "
            "without the distance with --no-ood",
        )
    cache = pooled(FeatureCache.open(path), run.feature_spec.pooling)
    try:
        _require_unchanged(run, cache, content=spec.ood)
    except MismatchError as change:
        if not spec.allow_changed_cache:
            raise
        logger.warning("%s: %s; the distance from it (ood) is left out", path, change.what)
        return None, None
    if not spec.ood:
        return None, None
    distance = fit_distance(_features(run, cache, "train"))
    return distance, familiar_threshold(distance(_features(run, cache, "valid")))


def _require_unchanged(run: Run, cache: FeatureCache, *, content: bool) -> None:
    if cache.spec.fingerprint != run.feature_spec.fingerprint:
        raise MismatchError(
            "the cache has been made anew with other settings since the run",
            path=cache.path,
            expected=run.feature_spec.describe(),
            found=cache.spec.describe(),
            mend="train on it with xhead train, or export this run without the distance with --allow-changed-cache",
        )
    if content and cache.content_sha256 != run.cache["content_sha256"]:
        raise MismatchError(
            "the cache has been made anew since the run, of other images, labels or splits or by another engine",
            path=cache.path,
            expected=f"content of SHA-256 {run.cache['content_sha256'][:16]}…",
            found=f"{cache.content_sha256[:16]}…",
            mend="train on it with xhead train, or export this run without the distance with --no-ood or "
            "--allow-changed-cache",
        )


def images_to_check(
    run: Run, data: Path | None, limit: int | None = None, steps: Steps | None = None
) -> tuple[CheckImages, Probabilities]:
    """Read the run's test images (all of them if it has no test) and the probabilities noted for them.

    Args:
        run: the run.
        data: the folder of the images; by default the one that was featurized.
        limit: at most so many images, spread evenly.
        steps: counts the images that are read, and is told how many there are.

    Raises:
        DataError: if none of them can be read.
    """
    noted = _noted_probabilities(run, limit)
    images = _read(run, list(noted), data, steps, "images")
    return images, np.array([noted[path] for path in images.paths], np.float32)


def labelled_images(
    run: Run, split: str, data: Path | None, limit: int | None = None, steps: Steps | None = None
) -> tuple[CheckImages, list[str]]:
    """Read images of one part of the run, spread evenly if there are more than ``limit``, and their classes' names.

    Arguments as for :func:`images_to_check`.

    Raises:
        DataError: if none of them can be read.
    """
    rows = [row for row in run.predictions() if row["split"] == split]
    labels = {row["path"]: row["label"] for row in thinned(rows, limit)}
    images = _read(run, list(labels), data, steps, f"{split} images")
    return images, [labels[path] for path in images.paths]


def _read(run: Run, paths: list[str], data: Path | None, steps: Steps | None, what: str) -> CheckImages:
    """Read images of the run, with a warning if some of them are gone."""
    root = data or Path(run.cache["data_root"])
    steps = steps or Steps(None)
    steps.expect(len(paths))
    images = load_images(root, paths, run.feature_spec.preprocess, steps)
    if not len(images):
        raise DataError(
            f"none of the {what} of the run can be read, so the model cannot be checked",
            path=root,
            expected=f"files such as {next(iter(paths), 'those in predictions.csv')}",
            mend="name the folder of the images with --data DIR",
        )
    if gone := len(paths) - len(images):
        logger.warning("%d of %d %s can no longer be read", gone, len(paths), what)
    return images


def _features(run: Run, cache: FeatureCache, split: str) -> NDArray[np.float32]:
    rows = {path: row for row, path in enumerate(cache.columns.path)}
    wanted = [row["path"] for row in run.predictions() if row["split"] == split]
    found = sorted(rows[path] for path in wanted if path in rows)
    if len(found) < max(2, len(wanted) // 2):
        raise DataError(
            f"the cache has {len(found)} of the run's {len(wanted)} {split} images",
            path=cache.path,
            mend="train again with xhead train, or export without the distance with --no-ood",
        )
    features = cache.features[found]
    # Of several views of an image, the first is the clean one.
    return np.asarray(features if features.ndim == 2 else features[:, 0], np.float32)


def _noted_probabilities(run: Run, limit: int | None) -> dict[str, list[float]]:
    """Return path to noted probabilities of the test images (of all without a test), thinned to ``limit``."""
    rows = run.predictions()
    rows = [row for row in rows if row["split"] == "test"] or rows
    columns = [PROBABILITY_PREFIX + name for name in run.class_names]
    try:
        return {row["path"]: [float(row[column]) for column in columns] for row in thinned(rows, limit)}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "predictions.csv does not fit the run", path=run.folder, found=repr(error), mend="train the run again"
        ) from error

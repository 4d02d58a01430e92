"""Class folders to ``train|valid|test/<class>/``: stratified, seeded, and no group in two splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.datasets.groups import joined_groups
from xfeat.featurize.datasets.image_files import choose_images
from xfeat.featurize.datasets.layouts import NO_LABEL, SPLITS, Dataset, ImageEntry
from xfeat.featurize.datasets.split_files import COLUMNS_FILE, PlacedImage, place_images, write_split
from xfeat.featurize.datasets.structure import read_structure
from xfeat.featurize.errors import DataError, ImageError, OutputError
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import Spec, require
from xfeat.featurize.text import listed

Progress = Callable[[int, int], None]
"""Called with files done and files to do."""


@dataclass(frozen=True, kw_only=True)
class SplitSpec(Spec):
    """How a data set is split.

    Attributes:
        ratios: shares of train, valid and test; any positive scale; valid or test may be 0 and is then not created.
        seed: the same seed, images and groups give the same split.
        link: make hard links instead of copies where the file system can.
    """

    ratios: tuple[float, float, float] = (60, 20, 20)
    seed: int = 0
    link: bool = False

    def __post_init__(self) -> None:
        ratios = self.ratios
        expected = "three numbers such as 60,20,20: train above 0, the others 0 or more"
        good = len(ratios) == 3 and all(np.isfinite(ratios)) and min(ratios) >= 0 and ratios[0] > 0
        require(good, "invalid ratios", expected=expected, found=ratios)
        require(np.isfinite(sum(ratios)), "ratios too large", expected="shares such as 60,20,20", found=ratios)
        require(sum(ratios[1:]) > 0, "nothing to split", expected="valid or test above 0", found=ratios)
        require(self.seed >= 0, "the seed must not be negative", expected="0 or more", found=self.seed)


@dataclass(frozen=True)
class SplitResult:
    """The result of a split.

    Attributes:
        output: the new folder.
        images: one record per image, sorted by new path.
        counts: split to class to number of images.
        groups: number of groups, where an image without a group counts as one.
        named_groups: whether groups.csv was written.
        columns_file: the table of further columns, if there are any.
        linked: number of files that are hard links; the others are copies.
    """

    output: Path
    images: list[PlacedImage]
    counts: dict[str, dict[str, int]]
    groups: int
    named_groups: bool
    linked: int
    columns_file: Path | None = None


def split_dataset(dataset: Dataset, output: Path, spec: SplitSpec, *, progress: Progress | None = None) -> SplitResult:
    """Split a data set into ``output``, whole or not at all.

    Images of one group stay together, and so do exact copies of one file, whatever their names.

    Args:
        dataset: the labelled images; its own splits, if any, are ignored.
        output: a folder that does not exist or is empty.
        spec: shares, seed, and how files are placed.
        progress: called while files are hashed and placed.

    Raises:
        DataError: if images have no class, a class has fewer groups than there are splits or cannot be a folder, or a
            file cannot be read.
        OutputError: if ``output`` is not empty or cannot be written.
        Interrupted: on Ctrl-C; nothing is left behind.
    """
    _check_source(dataset)
    _check_target(dataset, output)
    total = 2 * len(dataset.entries)

    def step(done: int) -> None:
        if progress is not None:
            progress(done, total)

    source = dataset.open()
    hashes = _hash_files(dataset, source, step)
    groups = joined_groups([entry.group for entry in dataset.entries], hashes)
    labels = np.array([entry.label for entry in dataset.entries], np.int32)
    splits = assign_splits(labels, groups, spec)
    _check_classes(dataset, labels, groups, splits, spec)
    images = place_images(dataset, splits, groups)
    _check_read_back(dataset, source, images)
    named = any(entry.group for entry in dataset.entries)
    linked = write_split(dataset, source, output, images, link=spec.link, step=lambda done: step(len(images) + done))
    counts: dict[str, dict[str, int]] = {}
    for (split, label), number in sorted(Counter((image.split, image.entry.label) for image in images).items()):
        counts.setdefault(SPLITS[split], {})[dataset.class_names[label]] = number
    columns_file = output / COLUMNS_FILE if dataset.columns else None
    return SplitResult(output, images, counts, len(set(groups.tolist())), named, linked, columns_file)


def assign_splits(labels: NDArray[np.int32], groups: NDArray[np.int64], spec: SplitSpec) -> NDArray[np.uint8]:
    """Assign whole groups to splits so that every class comes close to the ratios in every split.

    scikit-learn's ``StratifiedGroupKFold`` makes folds of equal size; this is its greedy rule (large groups first, each
    where the class counts come closest to what they should be) for shares that differ. Before that, each class gets
    one of its smallest groups in each split, so that no split is without a class.

    Args:
        labels: int32 (n,), the class of each image.
        groups: int64 (n,), the number of each image's group.
        spec: shares and seed.

    Returns:
        uint8 (n,), index into train, valid, test. With too few groups, a split may be without a class.
    """
    names, group_rows = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (group_rows, labels), 1)
    shares = np.array(spec.ratios) / sum(spec.ratios)
    wanted = shares[:, None] * counts.sum(axis=0)  # (splits, classes)
    has = np.zeros_like(wanted)
    of_group = np.full(len(names), -1)
    # Shuffled first, then sorted by size with a stable sort: the seed decides between groups of the same size.
    shuffled = np.random.default_rng(spec.seed).permutation(len(names))
    small_first = shuffled[np.argsort(counts[shuffled].sum(axis=1), kind="stable")]
    used = np.flatnonzero(shares)

    def give(group: int, split: int) -> None:
        of_group[group] = split
        has[split] += counts[group]

    for label in np.argsort((counts > 0).sum(axis=0), kind="stable"):  # the class with the fewest groups comes first
        for split in used[np.argsort(shares[used], kind="stable")]:
            free = [group for group in small_first if counts[group, label] and of_group[group] < 0]
            if counts[:, label].any() and not has[split, label] and free:
                give(free[0], int(split))
    weight = 1 / np.maximum(wanted[used], 1e-9)
    for group in small_first[::-1]:
        if of_group[group] < 0:
            # How much the chi-squared distance of each split from its wanted counts grows with this group.
            missing = wanted[used] - has[used]
            cost = ((counts[group] ** 2 - 2 * counts[group] * missing) * weight).sum(axis=1)
            give(group, int(used[np.argmin(cost)]))
    return of_group[group_rows].astype(np.uint8)


def _check_source(dataset: Dataset) -> None:
    if unlabelled := sum(entry.label == NO_LABEL for entry in dataset.entries):
        raise DataError(
            f"images without a class: {unlabelled} of {len(dataset.entries)}",
            path=dataset.table or dataset.root,
            expected="one folder per class, such as covid/ and normal/, or a label in each line of the CSV file",
            fix="move the images into class folders",
        )


def _check_target(dataset: Dataset, output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        fix = "choose another, or delete this one"
        raise OutputError("the output folder is not empty", path=output, expected="a new or empty folder", fix=fix)
    if isinstance(dataset.root, Path) and output.resolve().is_relative_to(dataset.root.resolve()):
        raise OutputError(
            "the output folder is inside the data set",
            path=output,
            expected=f"a folder outside {dataset.root}",
            fix="choose a folder outside it: the next run would read the output as data",
        )


def _hash_files(dataset: Dataset, source: ImageSource, step: Callable[[int], None]) -> list[str]:
    def digest(entry: ImageEntry) -> str:
        try:
            return hashlib.sha256(source.read(entry.path)[0]).hexdigest()
        except ImageError as error:
            fix = "fix or remove the file, or take its line out of the CSV file"
            raise DataError(error.what, path=dataset.root / entry.path, fix=fix) from error

    hashes = []
    with ThreadPoolExecutor() as pool:
        for result in pool.map(digest, dataset.entries):
            hashes.append(result)
            step(len(hashes))
    return hashes


def _check_classes(
    dataset: Dataset, labels: NDArray[np.int32], groups: NDArray[np.int64], splits: NDArray[np.uint8], spec: SplitSpec
) -> None:
    parts = sum(ratio > 0 for ratio in spec.ratios)
    if len(set(zip(splits.tolist(), labels.tolist(), strict=True))) < parts * len(np.unique(labels)):
        groups_of = {name: len(np.unique(groups[labels == code])) for code, name in enumerate(dataset.class_names)}
        raise DataError(
            "too few groups for every class in every split",
            path=dataset.table or dataset.root,
            expected=f"at least {parts} groups (patients, or different images) of each class",
            found=listed(f"{name} {number}" for name, number in groups_of.items()),
            fix="add images, exclude the small class with --classes, or set a ratio to 0 (such as --ratios 80,0,20)",
        )


def _check_read_back(dataset: Dataset, source: ImageSource, images: list[PlacedImage]) -> None:
    """Refuse images that xfeat featurize would not find again with their class: classes of tables may be any text."""
    entry_of = {image.path: image.entry for image in images}
    names, left_out = choose_images(entry_of, lambda name, size: source.head(entry_of[name].path, size))
    listing = read_structure(dataset.root, names, "splits")
    labels = {image.path: image.label for image in listing.images}
    reasons = dict(left_out + listing.left_out)
    for image in images:
        name = dataset.class_names[image.entry.label]
        if labels.get(image.path) != name:
            raise DataError(
                f"as a file of class folders, {image.entry.path} would be read otherwise",
                path=dataset.table or dataset.root,
                expected=f"a class that can be the name of a folder, and a file that is read as an image: {name}",
                found=f"{image.path}, {reasons.get(image.path) or f'class {labels.get(image.path)}'}",
                fix="rename the class in the table, or the file",
            )

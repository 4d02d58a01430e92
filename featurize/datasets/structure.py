"""What the folders of a data set mean: wrappers, splits, classes. A guess that contradicts the folders is refused."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from xfeat.featurize.datasets.image_files import ListedImage, Listing, count_splits
from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)

_SPLIT_WORDS = {
    "train": ("train", "training", "trn", "tr", "learn"),
    "valid": ("valid", "val", "validate", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "eval", "evaluation"),
}
# Words that may stand beside the name of a split, also glued to it, or of a folder that only holds the images.
_FILLERS = {"set", "data", "dataset", "split", "image", "images", "img", "imgs", "seg", "folder", "x", "png", "jpg"}
_WRAPPERS = _FILLERS | {"archive", "jpeg", "dicom", "dcm", "photos", "pictures", "cxr", "original", "originals", "raw"}
_SPLIT_OF = {
    form: split
    for split, words in _SPLIT_WORDS.items()
    for word in words
    for form in (word, *(word + filler for filler in _FILLERS), *(filler + word for filler in _FILLERS))
}
_UNLABELLED = {"pred", "prediction", "predict", "unlabeled", "unlabelled", "submission"}
_LAYOUTS = "train|valid|test/<class>/<image>, or <class>/<image>"

_Parts = dict[str, list[str]]
"""The folders and the file of each image, without the folders around everything."""
_Found = dict[str, tuple[str, list[str]]]
"""The split of each image, and its other folders and its file."""


def split_of(name: str) -> str:
    """Return the split that a folder or a CSV value names, in any of its usual forms; empty if it names none."""
    words = _words(name)
    for forms in (words, ["".join(words)]):  # TRAINset has words of its own by its capitals
        named = {_SPLIT_OF[word] for word in forms if word in _SPLIT_OF}
        if len(named) == 1 and all(word in _SPLIT_OF or word in _FILLERS for word in forms):
            return named.pop()
    return ""


def splits_of(table: Path, header: str, texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the split that each cell of a column names, and the rows whose text names none.

    A column such as ``fold`` without any name of a split is no column of splits.
    """
    named = {text: split_of(text) for text in set(texts)}
    if header.casefold() != "split" and not any(named.values()):
        if any(texts):
            logger.warning("%s: column %s names no splits and is not used", table, header)
        return [""] * len(texts), []
    return [named[text] for text in texts], [row for row, text in enumerate(texts) if text and not named[text]]


def read_structure(root: Root, names: Iterable[str], layout: str | None = None) -> Listing:
    """Read splits and classes from the folders in the names.

    Args:
        root: of the data set, for messages.
        names: of the images, relative to it with forward slashes.
        layout: ``splits`` (split, then class), ``classes`` (class folders only) or ``flat`` (no classes); by default
            the reading that the folders allow.

    Raises:
        DataError: if the folders can be read in two ways; both are shown.
    """
    names = list(names)
    if layout == "flat":
        return Listing([ListedImage(name, "", "") for name in names], "no classes")
    above = _wrapper(names)
    # A preview beside the folders that are looked through is in none of them.
    parts = {name: name[len(above) if name.startswith(above) else name.rfind("/") + 1 :].split("/") for name in names}
    tops = Counter(part[0] for part in parts.values() if len(part) > 1)
    splits = {} if layout == "classes" else {top: split for top in tops if (split := split_of(top))}
    if layout == "splits" and not splits:
        raise DataError(
            "no folder is called like a split",
            path=root,
            expected="train, valid or test, also as Training, val, test_set",
            found=listed(sorted(tops)),
            fix="rename the folders, or leave --layout away",
        )
    if splits:
        found = _inside_splits(parts, splits)
    elif layout is None and (inner := _splits_within(parts)):
        found = {name: (inner[part[1]], [part[0], *part[2:]]) for name, part in parts.items() if len(part) > 2}
    else:
        found = {name: ("", part) for name, part in parts.items()}
    if layout is None:
        _refuse_two_readings(root, parts, tops, splits, found)
    return _labelled(names, found, above)


def _labelled(names: list[str], found: _Found, above: str) -> Listing:
    """Give each image the class that its first folder names; images that are not found are in no split."""
    left_out = [(name, "not in a split") for name in names if name not in found]
    labels = {name: _composed(part[0]).strip() if len(part) > 1 else "" for name, (_, part) in found.items()}
    if any(labels.values()):
        left_out += [(name, "in no class folder") for name, label in labels.items() if not label]
        labels = {name: label for name, label in labels.items() if label}
    images, notes = unify_spelling([ListedImage(name, label, found[name][0]) for name, label in labels.items()])
    text = count_splits(images) + (f", in {above}" if above else "")
    return Listing(images, text, left_out, notes, above)


def unify_spelling(images: list[ListedImage]) -> tuple[list[ListedImage], list[str]]:
    """Unify classes that differ in case between splits; in one folder they are classes of their own.

    Args:
        images: with their splits and classes.

    Returns:
        The images with the name to take for their class, and what to say of it.
    """
    places: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, label in {(image.split, image.label) for image in images}:
        places[label.casefold()][label].add(split)
    chosen, notes = {}, []
    for spellings in places.values():
        beside = any(spellings[one] & spellings[other] for one in spellings for other in spellings if one < other)
        first = min(spellings, key=lambda label: ("train" not in spellings[label], label))
        if len(spellings) > 1:
            what = "are classes of their own" if beside else f"are one class, {first}"
            notes.append(f"{listed(sorted(spellings))} differ only in upper and lower case: they {what}")
        chosen.update({label: label if beside else first for label in spellings})
    return [image._replace(label=chosen[image.label]) for image in images], sorted(notes)


# Which folders are what


def _wrapper(names: list[str]) -> str:
    """Return the folders around everything, with a slash: they are neither splits nor classes."""
    folders = {tuple(name.split("/")[:-1]) for name in names}
    chain: tuple[str, ...] = ()
    while len(tops := {folder[len(chain)] for folder in folders if len(folder) > len(chain)}) == 1:
        chain += tuple(tops)
    split_at = next((depth for depth, folder in enumerate(chain) if split_of(folder)), None)
    holds_splits = any(split_of(part) for folder in folders for part in folder)
    if split_at is not None:
        chain = chain[:split_at]
    # Folders with digits below a single one may be the patients of one class.
    elif not holds_splits and (not tops or _has_digit("".join(tops))):
        chain = chain[: next((depth for depth, folder in enumerate(chain) if not _is_wrapper(folder)), len(chain))]
    return "".join(f"{folder}/" for folder in chain)


def _inside_splits(parts: _Parts, splits: dict[str, str]) -> _Found:
    """Take the split away from each path, with folders in it that repeat its name or only say ``images``."""
    found: _Found = {}
    for top, split in splits.items():
        own = {name: part[1:] for name, part in parts.items() if len(part) > 1 and part[0] == top}
        while True:
            firsts = {part[0] if len(part) > 1 else "" for part in own.values()}
            first = firsts.pop()
            if firsts or not (_is_wrapper(first) or split_of(first) == split):
                break
            own = {name: part[1:] for name, part in own.items()}
        found |= {name: (split, part) for name, part in own.items()}
    return found


def _splits_within(parts: _Parts) -> dict[str, str]:
    """Return the splits below the classes, by folder name; empty unless all folders there are splits."""
    found = {name: split_of(name) for name in {part[1] for part in parts.values() if len(part) > 2}}
    return found if all(found.values()) else {}


# Two readings


def _refuse_two_readings(root: Root, parts: _Parts, tops: Counter[str], splits: dict[str, str], found: _Found) -> None:
    if splits:
        _refuse_others(root, parts, tops, splits)
    elif not any(split for split, _ in found.values()):
        _refuse_hidden_splits(root, parts)
    _refuse_sources(root, [part for _, part in found.values()], "splits" if splits else "classes")


def _refuse_others(root: Root, parts: _Parts, tops: Counter[str], splits: dict[str, str]) -> None:
    """Refuse folders beside the splits, unless they are without labels, or hold the same paths again.

    Some archives were packed twice.
    """
    paths = {"/".join(part) for part in parts.values()}
    others = [top for top in tops if top not in splits and not _UNLABELLED.intersection(_words(top))]
    if all("/".join(part[1:]) in paths for part in parts.values() if len(part) > 1 and part[0] in others):
        return
    beside = sorted(set(tops) - set(splits))
    lost = sum(tops[top] for top in beside)
    raise _two_readings(
        root,
        f"as splits: {listed(sorted(splits))}, without the {lost} images in {listed(beside)}; "
        f"as classes: {listed(sorted(tops))}",
        "say which: --layout splits, or --layout classes",
    )


def _refuse_hidden_splits(root: Root, parts: _Parts) -> None:
    """Refuse folders that differ only in the name of a split: ``train_covid`` and ``test_covid``."""
    alike: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for folder in sorted({"/".join(part[:-1]) for part in parts.values()}):
        words = _words(folder)
        named = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
        if len(named) == 1:
            alike[tuple(word for word in words if word not in _SPLIT_OF)].setdefault(named.pop(), folder)
    for folders in alike.values():
        if len(folders) > 1:
            raise _two_readings(
                root,
                f"{listed(folders.values())}: either as splits, or as parts of classes without splits",
                "make folders such as train/<class> and test/<class>, or take the outer folders as classes with "
                "--layout classes",
            )


def _refuse_sources(root: Root, parts: list[list[str]], layout: str) -> None:
    """Refuse folders that contain the same folders: they are splits by another name, or sources."""
    tops_of: defaultdict[str, set[str]] = defaultdict(set)
    for part in parts:
        inner = next((folder for folder in part[1:-1] if not _is_wrapper(folder)), "")
        tops_of[_composed(inner).casefold()].add(part[0])
    shared = [name for name, tops in tops_of.items() if name and len(tops) > 1 and not _has_digit(name)]
    if len(shared) > 1:
        tops = set.union(*(tops_of[name] for name in shared))
        raise _two_readings(
            root,
            f"{listed(sorted(tops))}, each with the folders {listed(sorted(shared))}: "
            f"either {len(tops)} classes, or splits or sources that each hold these classes",
            "rename splits to train, valid and test; of several sources make a CSV file with path,label; or take the "
            f"outer folders as classes with --layout {layout}",
        )


def _two_readings(root: Root, found: str, fix: str) -> DataError:
    return DataError("the folders can be read in two ways", path=root, expected=_LAYOUTS, found=found, fix=fix)


# Names


def _composed(name: str) -> str:
    """Return a name in composed form: macOS writes é as two characters."""
    return unicodedata.normalize("NFC", name)


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", _composed(name))]


def _is_wrapper(name: str) -> bool:
    return bool(words := _words(name)) and _WRAPPERS.issuperset(words)


def _has_digit(name: str) -> bool:
    return any(character.isdigit() for character in name)

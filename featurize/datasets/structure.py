"""What the folders of a data set mean: wrappers, splits, classes. A guess that contradicts the folders is refused."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed

_SPLIT_WORDS = {
    "train": ("train", "training", "trn", "tr", "learn"),
    "valid": ("valid", "val", "validate", "validation", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
# Words that may stand beside the name of a split, or of a folder that only holds the images.
_FILLERS = {"set", "data", "dataset", "split", "image", "images", "img", "imgs", "seg", "folder", "x", "png", "jpg"}
_WRAPPERS = _FILLERS | {"archive", "jpeg", "dicom", "dcm", "photos", "pictures", "cxr", "original", "originals", "raw"}
_UNLABELLED = {"pred", "prediction", "predict", "unlabeled", "unlabelled", "submission"}
_SHOWN = 6


class Placed(NamedTuple):
    """An image with what its folders say: ``split`` is train, valid, test or empty, ``label`` a class or empty."""

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Structure:
    """How the folders of a data set were read.

    Attributes:
        images: the images that take part.
        above: the folders around everything, empty or with a slash at the end.
        left_out: path and reason of each image that does not take part.
        notes: what was unified, for the user.
    """

    images: list[Placed]
    above: str
    left_out: list[tuple[str, str]]
    notes: list[str]

    @property
    def text(self) -> str:
        """What was taken, such as ``3 splits × 2 classes, in chest_xray/``."""
        splits = len({image.split for image in self.images if image.split})
        classes = len({image.label for image in self.images if image.label})
        parts = [f"{splits} split{'s' * (splits != 1)}"] if splits else []
        parts.append(f"{classes} class{'es' * (classes != 1)}" if classes else "no classes")
        return " × ".join(parts) + (f", in {self.above}" if self.above else "")


def split_of(name: str) -> str:
    """Return the split that a folder or a CSV value names, in any of its usual forms; empty if it names none."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", _plain(name))]
    named = [word for word in words if word in _SPLIT_OF]
    if not named or any(word not in _SPLIT_OF and word not in _FILLERS for word in words):
        whole = "".join(words)
        endings = [word for word in ("train", "test", "val") if whole in (f"{word}{filler}" for filler in _FILLERS)]
        return _SPLIT_OF[endings[0]] if endings else ""
    return _SPLIT_OF[named[0]] if len({_SPLIT_OF[word] for word in named}) == 1 else ""


def read_structure(root: Path, names: Iterable[str], layout: str | None = None) -> Structure:
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
        return Structure([Placed(name, "", "") for name in names], "", [], [])
    above = _wrapper(names)
    parts = {name: name.removeprefix(above).split("/") for name in names}
    tops = Counter(part[0] for part in parts.values() if len(part) > 1)
    splits = {} if layout == "classes" else {top: split for top in tops if (split := split_of(top))}
    if layout == "splits" and not splits:
        raise DataError(
            "no folder is called like a split",
            path=root,
            expected="train, valid or test, also as Training, val, test_set",
            found=_some(tops),
            fix="rename the folders, or leave --layout away",
        )
    if not splits:
        if layout is None and (inner := _splits_within(parts)):
            moved = {name: (inner[part[1]], [part[0], *part[2:]]) for name, part in parts.items() if len(part) > 2}
            return _labelled(above, names, moved)
        if layout is None:
            _refuse_sources(root, parts)
        return _labelled(above, names, {name: ("", part) for name, part in parts.items()})
    others = [top for top in tops if top not in splits and not _words(top) & _UNLABELLED]
    if layout is None and others and not _repeat_the_splits(names, above, others):
        raise _two_readings(root, tops, splits)
    inside = {name: (splits[part[0]], part[1:]) for name, part in parts.items() if len(part) > 1 and part[0] in splits}
    for top in splits:
        _strip_wrappers(inside, [name for name in inside if parts[name][0] == top], top)
    return _labelled(above, names, inside)


def _labelled(above: str, names: list[str], found: dict[str, tuple[str, list[str]]]) -> Structure:
    """Give each image the class that its first folder names; images that are not ``found`` are in no split."""
    left_out = [(name, "not in a split") for name in names if name not in found]
    firsts = {name: part[0] if len(part) > 1 else "" for name, (_, part) in found.items()}
    plain = {first: _plain(first).strip() for first in set(firsts.values())}
    labels = {name: plain[first] for name, first in firsts.items()}
    if any(plain.values()):
        left_out += [(name, "in no class folder") for name, label in labels.items() if not label]
        labels = {name: label for name, label in labels.items() if label}
    chosen, notes = unify_spelling({(found[name][0], label) for name, label in labels.items()})
    images = [Placed(name, chosen[label], found[name][0]) for name, label in labels.items()]
    return Structure(images, above, left_out, notes)


def unify_spelling(labels: set[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Unify classes that differ in case between splits; in one folder they are classes of their own.

    Args:
        labels: the splits and the classes in them.

    Returns:
        The name to take for each class, and what to say of it.
    """
    splits_of: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, label in labels:
        splits_of[label.casefold()][label].add(split)
    chosen, notes = {}, []
    for spellings in splits_of.values():
        together = any(spellings[one] & spellings[other] for one in spellings for other in spellings if one < other)
        first = min(spellings, key=lambda label: ("train" not in spellings[label], label))
        if len(spellings) > 1:
            what = "are classes of their own" if together else f"are one class, {first}"
            notes.append(f"{listed(sorted(spellings))} differ only in upper and lower case: they {what}")
        chosen.update({label: label if together else first for label in spellings})
    return chosen, sorted(notes)


def _wrapper(names: list[str]) -> str:
    """Return the folders around everything, with a slash: they are neither splits nor classes."""
    folders = {tuple(name.split("/")[:-1]) for name in names}
    above: tuple[str, ...] = ()
    while True:
        inner = [folder[len(above) :] for folder in folders if folder[: len(above)] == above]
        tops = {folder[0] for folder in inner if folder}
        if len(tops) != 1:
            break
        (top,) = tops
        # Folders with digits below a single one may be the patients of one class.
        inner_tops = {folder[1] for folder in inner if len(folder) > 1}
        class_like = len(inner_tops) > 1 and not any(character.isdigit() for character in "".join(inner_tops))
        holds_splits = any(map(split_of, {part for folder in inner for part in folder[1:]}))
        if split_of(top) or not (class_like or holds_splits or _is_wrapper(top)):
            break
        above += (top,)
    return "".join(f"{folder}/" for folder in above)


def _strip_wrappers(inside: dict[str, tuple[str, list[str]]], names: list[str], split: str) -> None:
    """Remove folders that only repeat a split's name, or only say that there are images in it."""
    while True:
        tops = {inside[name][1][0] for name in names if len(inside[name][1]) > 1}
        if len(tops) != 1 or not all(len(inside[name][1]) > 1 for name in names):
            return
        (top,) = tops
        if not (_is_wrapper(top) or top.casefold() == split.casefold() or split_of(top)):
            return
        for name in names:
            inside[name] = (inside[name][0], inside[name][1][1:])


def _splits_within(parts: dict[str, list[str]]) -> dict[str, str]:
    """Return the splits below the classes, by folder name; empty unless all folders there are splits."""
    second = {part[1] for part in parts.values() if len(part) > 2}
    found = {name: split_of(name) for name in second}
    return found if found and all(found.values()) else {}


def _refuse_sources(root: Path, parts: dict[str, list[str]]) -> None:
    """Refuse folders that all contain the same folders: they are splits by another name, or sources."""
    within: defaultdict[str, set[str]] = defaultdict(set)
    for part in parts.values():
        if len(part) > 2:
            within[part[0]].add(_plain(part[1]).casefold())
    shared = [
        name for name, number in Counter(name for inner in within.values() for name in inner).items() if number > 1
    ]
    classes = [name for name in shared if not any(character.isdigit() for character in name)]
    if len(within) < 2 or len(classes) < 2 or any(inner - set(shared) for inner in within.values()):
        return
    raise DataError(
        "the folders can be read in two ways",
        path=root,
        expected="train|valid|test/<class>/<image>, or <class>/<image>",
        found=f"{_some(within)}, each with the folders {_some(classes)}: "
        f"either {len(within)} classes, or splits or sources that each hold these classes",
        fix="rename splits to train, valid and test; of several sources make a CSV file with path,label; or take the "
        "outer folders as classes with --layout classes",
    )


def _two_readings(root: Path, tops: Counter[str], splits: dict[str, str]) -> DataError:
    others = sorted(set(tops) - set(splits))
    lost = sum(tops[top] for top in others)
    return DataError(
        "the folders can be read in two ways",
        path=root,
        expected="train|valid|test/<class>/<image>, or <class>/<image>",
        found=f"as splits: {_some(splits)}, without the {lost} images in {_some(others)}; "
        f"as classes: {_some(sorted(tops))}",
        fix="say which: --layout splits, or --layout classes",
    )


def _repeat_the_splits(names: list[str], above: str, others: list[str]) -> bool:
    """Tell whether other folders hold only copies, as when an archive was packed twice: the same paths again."""
    known = set(names)
    extra = [name for name in names if name.removeprefix(above).split("/")[0] in others]
    return all(above + name.removeprefix(above).partition("/")[2] in known for name in extra)


def _plain(name: str) -> str:
    """Return a name in composed form: macOS writes é as two characters."""
    return unicodedata.normalize("NFC", name)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", _plain(name).lower()))


def _is_wrapper(name: str) -> bool:
    return bool(_words(name)) and _words(name) <= _WRAPPERS


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return listed(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")

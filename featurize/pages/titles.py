"""What data a page is about, as its title says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from xfeat.featurize.text import count_of, shortened

_CLASSES_NAMED = 5


class Described(TypedDict):
    """What a page says of its data: the title, the patients, and whether intervals are by patient or by image."""

    title: str
    patients: str
    by: str


def described(
    class_names: Sequence[str], images: str, groups: Sequence[str], *, positive: str | None = None, more: str = ""
) -> Described:
    """Describe the data of a page, with a title such as ``covid against normal, 100 test images, 96 patients``.

    Args:
        class_names: of the classifier or the data set.
        images: how many, such as ``, 100 test images`` or `` on 200 images of other``.
        groups: of each image, empty where it is unknown.
        positive: the class to name first, if there is one.
        more: the end of the title.
    """
    patients = patients_text(groups)
    title = f"{classes_text(class_names, positive)}{images}, {patients}{more}"
    return Described(title=title, patients=patients, by="by patient" if any(groups) else "by image")


def classes_text(class_names: Sequence[str], positive: str | None = None) -> str:
    """Write classes: ``covid against normal``, ``3 classes: a, b, c``, ``14 classes``."""
    names = [shortened(name) for name in sorted(class_names, key=lambda name: name != positive)]
    if len(names) == 2:
        return " against ".join(names)
    counted = count_of(len(names), "class", "classes")
    return f"{counted}: {', '.join(names)}" if 0 < len(names) <= _CLASSES_NAMED else counted


def patients_text(groups: Sequence[str]) -> str:
    """Say how many patients are known: ``96 patients``.

    Args:
        groups: of each image, empty where it is unknown.
    """
    unknown = sum(not group for group in groups)
    if unknown == len(groups):
        return "no patients known"
    patients = count_of(len({group for group in groups if group}), "patient")
    return f"{patients} and {count_of(unknown, 'image')} of unknown patients" if unknown else patients

"""Data sets in containers: shards by a pattern, and labels that tables and WebDataset archives bring with them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import translate
from itertools import product

from xfeat.featurize.datasets.column_choice import ColumnChoice, further_names
from xfeat.featurize.datasets.image_files import LeftOut, ListedImage, Listing, TableColumn, choose_images, count_splits
from xfeat.featurize.datasets.structure import read_structure, split_of, unify_spelling
from xfeat.featurize.datasets.tables import NO_VALUE, choose_columns
from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.containers import is_container
from xfeat.featurize.sources.image_source import ImageSource, Records
from xfeat.featurize.text import count_of, listed, quote
from xfeat.featurize.urls import Root, Url, root_of

_MAGIC = re.compile(r"[*?{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_SHARDS = 100_000
_SHARD_NUMBER = re.compile(r"([-_.]?\d+|-of)+$")
# Texts beside images are captions, and not classes, if so many of them differ.
_CLASS_SHARE = 0.5
_MAX_LABEL = 100


def split_pattern(data: str | os.PathLike[str]) -> tuple[Root, str]:
    """Divide a pattern such as ``shards-{000..009}.tar`` into the folder and the rest, empty if it is no pattern."""
    root = root_of(data)
    text = root.full if isinstance(root, Url) else os.fspath(data)
    found = _MAGIC.search(text)
    # In a web address, ? and * mean something else.
    if found is None or (root.is_web if isinstance(root, Url) else os.path.exists(root)):
        return root, ""
    folder, slash, _ = text[: found.start()].rpartition("/")
    return root_of(folder or slash or "."), text[len(folder) + len(slash) :]


def match_shards(root: Root, pattern: str, names: Sequence[str]) -> list[str]:
    """Return the archives and tables that a pattern names.

    Args:
        root: the folder.
        pattern: relative to it; ``*`` and ``?`` do not go over a slash, ``{000..009}`` and ``{a,b}`` are all of them.
        names: of the files in the folder.

    Raises:
        DataError: if there are none, or one that is numbered is missing, or what they are is no container.
    """
    there, found = set(names), []
    for each in _expanded(root, pattern):
        if _MAGIC.search(each):
            parts = [re.compile(translate(part)) for part in each.split("/")]
            found += [name for name in names if _matches(parts, name.split("/"))]
        elif each in there:
            found.append(each)
        else:
            expected = f"all of {pattern}"
            raise DataError("a shard is missing", path=root / each, expected=expected, fix="check the pattern")
    if others := [name for name in found if not is_container(name)]:
        raise DataError(
            "the pattern names files that are no shards",
            path=root / pattern,
            expected="archives (.tar, .tar.gz, .zip) or tables (.parquet)",
            found=listed(map(quote, others)),
            fix="give the folder of images itself",
        )
    if not found:
        raise DataError("no file is called so", path=root / pattern, fix="check the pattern; put it in quotation marks")
    return sorted(dict.fromkeys(found))


def _matches(parts: list[re.Pattern[str]], names: list[str]) -> bool:
    return len(parts) == len(names) and all(part.match(name) for part, name in zip(parts, names, strict=True))


def _expanded(root: Root, pattern: str) -> list[str]:
    """Expand braces, as shells do."""
    pieces: list[list[str]] = []
    end, count = 0, 1
    for found in _BRACES.finditer(pattern):
        choices = found[1].split(",")
        if span := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
            first, last = sorted((int(span[1]), int(span[2])))
            numbers = range(first, min(last, first + _MOST_SHARDS) + 1)
            choices = [f"{number:0{len(span[1])}d}" for number in numbers]
        pieces += [[pattern[end : found.start()]], choices]
        end, count = found.end(), count * len(choices)
        if count > _MOST_SHARDS:
            what = f"the pattern names more than {_MOST_SHARDS:,} shards"
            raise DataError(what, path=root / pattern, fix="check the pattern")
    return ["".join(parts) for parts in product(*pieces, [pattern[end:]])]


def list_containers(
    root: Root, containers: Mapping[str, ImageSource], layout: str | None, choice: ColumnChoice
) -> Listing | None:
    """List the images of archives and tables; ``None`` if one archive has only names, as a folder has.

    Args:
        root: of the data set, for messages.
        containers: the sources by their path in the data set; empty for the data set itself.
        layout: of folders in archives that have no labels of their own.
        choice: what the user says of columns.

    Raises:
        DataError: if their columns contradict each other, or what their folders mean is not clear.
    """
    records = {place: source.records() for place, source in containers.items()}
    if layout is None and any(records.values()):
        return _from_records(root, containers, records, choice)
    if "" in containers:
        return None
    return _from_folders(root, containers, layout)


def _from_folders(root: Root, containers: Mapping[str, ImageSource], layout: str | None) -> Listing:
    """Read the folders in all archives as those of one data set."""
    paths: dict[str, str] = {}  # a name that no other archive has, in the same folder -> path
    left_out: LeftOut = []
    named = {place: _split_of_shard(place) for place in containers}
    splits = {place: f"{split}/" if all(named.values()) else "" for place, split in named.items()}
    for place, source in containers.items():
        names, others = choose_images(source.names(), source.head)
        left_out += [(f"{place}/{name}", reason) for name, reason in others]
        for name in names:
            folder, slash, file = f"{splits[place]}{name}".rpartition("/")
            paths[f"{folder}{slash}{place.replace('/', '~')}~{file}"] = f"{place}/{name}"
    listing = read_structure(root, paths, layout)
    images = [image._replace(path=paths[image.path]) for image in listing.images]
    left_out += [(paths[name], reason) for name, reason in listing.left_out]
    doubts = dict.fromkeys(doubt for source in containers.values() for doubt in source.doubts)
    text = f"{listing.text}, in {count_of(len(containers), 'archive')}"
    return replace(listing, images=images, text=text, left_out=left_out, notes=[*doubts, *listing.notes])


def _from_records(
    root: Root, containers: Mapping[str, ImageSource], records: Mapping[str, Records | None], choice: ColumnChoice
) -> Listing:
    known = [each for each in records.values() if each]
    header = list(dict.fromkeys(name for each in known for name in each.columns))
    ready = {each.labels for each in known if each.labels}
    roles = choose_columns(root, header, [], ["split", "group"] if ready else ["label", "split", "group"], [], choice)
    if ready:
        roles["label"] = header.index(min(ready))
    elif "label" not in roles and "txt" in header and _are_classes(known):
        roles["label"] = header.index("txt")
    further, renamed = further_names(header, roles, choice)
    images: list[ListedImage] = []
    notes, left_out = [f"{root}: {note}" for note in renamed], list[tuple[str, str]]()
    for place, source in containers.items():
        found = records[place] or Records([])
        notes += source.doubts
        names = found.names
        if not source.all_images:
            names, others = choose_images(found.names, source.head)
            left_out += [(f"{place}/{name}".lstrip("/"), reason) for name, reason in others]
        taken, shard_split = set(names), _split_of_shard(place or root.name)
        cells = [found.columns.get(column, [""] * len(found.names)) for column in header]
        for at, name in enumerate(found.names):
            if name in taken:
                texts = {role: cells[column][at].strip() for role, column in roles.items()}
                value = {role: "" if text.casefold() in NO_VALUE else text for role, text in texts.items()}
                label, group = value.get("label", ""), value.get("group", "")
                split = split_of(value.get("split", "")) or shard_split
                path, more = f"{place}/{name}" if place else name, tuple(cells[column][at] for column in further)
                images.append(ListedImage(path, label, split, group, more))
                _check_label(root, path, label)
    if any(image.label for image in images):
        left_out += [(image.path, "no label in the table") for image in images if not image.label]
        images = [image for image in images if image.label]
    images, unified = unify_spelling(images)
    where = f"{root.name} says" if "" in containers else f"{len(containers)} files say"
    used = ", ".join(f"{role}: {header[at]}" for role, at in roles.items())
    text = f"{count_splits(images)}, as {where}" + f" ({used})" * bool(used)
    columns = tuple(TableColumn(name, root.name) for name in further.values())
    return Listing(images, text, left_out, [*dict.fromkeys(notes), *unified], "", columns, tuple(header))


def _split_of_shard(place: str) -> str:
    """Return the split that the name of a shard begins with: ``train-00000-of-00002.parquet``."""
    stem = place.rpartition("/")[2].partition(".")[0]
    return split_of(_SHARD_NUMBER.sub("", stem))


def _are_classes(records: Sequence[Records]) -> bool:
    """Tell whether texts beside images are classes, and no captions: most images share theirs with others."""
    texts = [text for each in records for text in each.columns.get("txt", ()) if text]
    return len(set(texts)) <= max(2, _CLASS_SHARE * len(texts)) and all(len(text) <= _MAX_LABEL for text in texts)


def _check_label(root: Root, path: str, label: str) -> None:
    if len(label) > _MAX_LABEL or "\n" in label:
        raise DataError(
            "a label is a text of several lines, or too long",
            path=root / path,
            expected=f"the name of a class, at most {_MAX_LABEL} characters",
            found=quote(label),
            fix="name the column of the classes with --columns label=NAME",
        )

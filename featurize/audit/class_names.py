"""Findings from names: classes called like splits, masks or the places that images come from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from xfeat.featurize.audit.findings import WARNING, Finding, readable
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.image_files import is_mask_name
from xfeat.featurize.datasets.layouts import NO_LABEL
from xfeat.featurize.datasets.structure import split_of

# Places, devices, and public collections: what says where an image is from, and not what it shows.
_SOURCES = re.compile(
    "hospital|clinic|institution|institute|university|cohort|source|dataset|repo|repository|scanner|vendor|manufacturer|"
    "siemens|philips|agfa|canon|fujifilm|carestream|kaggle|github|figshare|zenodo|roboflow|internet|scraped|google|flickr|"
    "nih|mimic|chexpert|padchest|vindr|vinbig|rsna|siim|openi|tcia|bimcv|covidx|cohen|montgomery|shenzhen|chestxray|isic"
)
# Words that are sources only with a number or letter: center_1, siteA.
_NUMBERED = re.compile(r"(^|[^a-z])(center|centre|site|device|collection)[ _-]*(\d+|[a-z])$", re.IGNORECASE)


def name_findings(cache: FeatureCache) -> Iterator[Finding]:
    """Ask about classes called like splits or masks, and about classes that seem to come from one source each."""
    if odd := [name for name in cache.class_names if split_of(name) or is_mask_name(name)]:
        yield Finding(
            kind="classes.odd-names",
            severity=WARNING,
            title=f"Classes called {', '.join(odd)}",
            meaning="That is what splits and masks are called: the network would learn to tell these apart.",
            fix="look at the line layout: of xfeat info, and read the folders otherwise with xfeat featurize --layout",
        )
    if sources := _sources(cache):
        count = "One class is" if len(sources) == 1 else f"{len(sources)} classes are"
        yield Finding(
            kind="classes.sources",
            severity=WARNING,
            title=f"Does each class come from a source of its own? {count} named after one",
            meaning="Then the network can learn to tell hospitals, devices or collections apart in place of findings, "
            "and no split of this data set shows it.",
            fix="if so, make the findings the classes, take images of every class from every source, and test on "
            "another source with xhead eval; if these are findings, nothing needs to be done",
            lines=[f"{readable(name)}: {readable(folder)}" for name, folder in sources.items()],
        )


def _sources(cache: FeatureCache) -> dict[str, str]:
    """Return the classes all of whose images, and no others, are in a folder called like a source, with that folder.

    Of a table, the name of the class counts, too.
    """
    shared: dict[int, set[str]] = {}  # the folders that all images of a class are in
    used: defaultdict[int, set[str]] = defaultdict(set)  # those that some are in
    for path, label in zip(cache.columns.path, cache.columns.label.tolist(), strict=True):
        if label != NO_LABEL:
            folders = set(path.split("/")[:-1])
            shared[label] = shared.get(label, folders) & folders
            used[label] |= folders
    found = {}
    for label in sorted(shared):
        name = cache.class_names[label]
        elsewhere = {folder for other, folders in used.items() if other != label for folder in folders}
        if sources := sorted(filter(_is_source, (shared[label] | {name}) - elsewhere)):
            found[name] = sources[0]
    return found


def _is_source(name: str) -> bool:
    words = re.findall(r"[a-z]+", name.lower()) + re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return bool(_NUMBERED.search(name)) or any(_SOURCES.fullmatch(word.lower().removesuffix("s")) for word in words)

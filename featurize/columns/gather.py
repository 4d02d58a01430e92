"""What a cache gets besides labels and splits: the columns of tables, and those that DICOM files fill."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from posixpath import splitext
from typing import NamedTuple

from xfeat.featurize.cache.columns import GROUP
from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.columns.kinds import typed_column, years
from xfeat.featurize.datasets.column_choice import DICOM_COLUMNS
from xfeat.featurize.datasets.image_files import DICOM_SUFFIXES, IMAGE_SUFFIXES
from xfeat.featurize.datasets.layouts import Dataset
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom.patient import HEAD_BYTES, read_patient_tags
from xfeat.featurize.images.file_kinds import is_dicom
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.user_cache import cache_file
from xfeat.featurize.text import first_ten, listed

logger = logging.getLogger(__name__)

PATIENT = DICOM_COLUMNS[-1]
_KINDS = {"PatientAge": "number", "StudyDate": "date", PATIENT: "text"}
_DICOM = "DICOM"
_KEY_FILE, _KEY_BYTES = "patient-key", 32
_HASH_DIGITS = 16


class Gathered(NamedTuple):
    """What is known of N images: further columns by name, and their groups."""

    extra: dict[str, ExtraColumn]
    groups: list[str]


def table_columns(dataset: Dataset) -> dict[str, ExtraColumn]:
    """Return the columns that the tables of a data set have; say of which kind they are, and what is doubtful."""
    columns: dict[str, ExtraColumn] = {}
    notes: dict[str, list[str]] = {}
    for at, (name, source) in enumerate(dataset.columns):
        kind, texts = dataset.column_kinds.get(name, ""), [entry.further[at] for entry in dataset.entries]
        column, said = typed_column(name, texts, kind=kind, source=source)
        if column is not None:
            columns[name] = column
        for note in said:
            notes.setdefault(note, []).append(name)
    if columns:
        logger.info("columns: %s", listed(f"{name} ({column.kind})" for name, column in columns.items()))
    lines = [f"column{'s' * (len(names) > 1)} {listed(names)}: {note}" for note, names in notes.items()]
    for line in first_ten(lines, "more remarks on columns"):
        logger.warning("%s", line)
    return columns


def gather(
    dataset: Dataset,
    tables: Mapping[str, ExtraColumn],
    rows: Sequence[int],
    sha256: Sequence[str],
    source: ImageSource,
    old: FeatureCache | None,
) -> Gathered:
    """Return columns and groups of the images that a cache holds.

    Args:
        dataset: the images.
        tables: what :func:`table_columns` returned for all of them.
        rows: numbers of the images in the cache.
        sha256: of their content.
        source: where DICOM files are read.
        old: the cache as it was, whose DICOM columns are taken for images with the same content.
    """
    entries = [dataset.entries[row] for row in rows]
    extra = {name: column.take(rows) for name, column in tables.items()}
    before = old.extra if old is not None else {}
    taken, kinds = {name.casefold() for name in extra}, dataset.column_kinds
    wanted = [name for name in DICOM_COLUMNS if kinds.get(name) != "ignore" and name.casefold() not in taken]
    dicom = _dicom_columns(dataset, [entry.path for entry in entries], wanted, sha256, source, old)
    extra |= dicom
    groups = [entry.group for entry in entries]
    if PATIENT in dicom and not any(groups):
        groups = _patients(dicom[PATIENT].texts())
    regrouped = {each.path: each.value for each in dataset.corrections if each.action == GROUP}
    groups = [regrouped.get(entry.path, group) for entry, group in zip(entries, groups, strict=True)]
    if gone := [name for name in before if name not in extra]:
        sources = listed(sorted({before[name].source.partition(",")[0] for name in gone}))
        fix = "to keep them, give that table again: xfeat featurize … --metadata"
        logger.warning("columns that the cache had from %s are no longer in it: %s; %s", sources, listed(gone), fix)
    return Gathered(extra, groups)


def with_patients(dataset: Dataset) -> Dataset:
    """Return a data set whose groups are the patients of its DICOM files, if there are no other groups."""
    possible = {entry.path for entry in dataset.entries if _may_be_dicom(entry.path)}
    if not possible or any(entry.group for entry in dataset.entries) or dataset.column_kinds.get(PATIENT) == "ignore":
        return dataset
    source, key = dataset.open(), patient_key()
    found = [_tags(source, entry.path, key) if entry.path in possible else {} for entry in dataset.entries]
    groups = _patients([tags.get(PATIENT, "") for tags in found])
    entries = [entry._replace(group=group) for entry, group in zip(dataset.entries, groups, strict=True)]
    return replace(dataset, entries=entries)


def _patients(groups: list[str]) -> list[str]:
    """Return the groups that the patients of DICOM files are; none if all files have one and the same."""
    if not any(groups):
        return groups
    if len(set(groups) - {""}) < 2 < len(groups):
        logger.warning("all DICOM files have the same PatientID, which is therefore not used as the group")
        return [""] * len(groups)
    counts = Counter(groups)
    unknown = f"; {counts['']} images have none" if counts[""] else ""
    logger.info("groups are the patients of the DICOM files: %d%s", len(counts.keys() - {""}), unknown)
    return groups


# DICOM


def _dicom_columns(
    dataset: Dataset,
    paths: Sequence[str],
    wanted: Sequence[str],
    sha256: Sequence[str],
    source: ImageSource,
    old: FeatureCache | None,
) -> dict[str, ExtraColumn]:
    possible = [number for number, path in enumerate(paths) if _may_be_dicom(path)]
    if not possible or not wanted:
        return {}
    key = patient_key()
    origin = f"{_DICOM}, key {hashlib.sha256(key).hexdigest()[:8]}, {'+'.join(wanted)}"
    known = _known(old, origin)
    tags: list[dict[str, str]] = [{}] * len(paths)
    for number in possible:
        found = known.get(sha256[number])
        tags[number] = _tags(source, paths[number], key) if found is None else found
    columns = {}
    for name in wanted:
        kind = dataset.column_kinds.get(name) or _KINDS.get(name, "")
        texts = [found.get(name, "") for found in tags]
        column = typed_column(name, texts, kind=kind, source=origin).column
        if column is not None:
            columns[name] = column
    return columns


def _known(old: FeatureCache | None, origin: str) -> dict[str, dict[str, str]]:
    """Return what an earlier run found in files, by their content; nothing if it looked for other tags."""
    columns = [(name, old.extra[name]) for name in old.extra] if old is not None else []
    texts = {name: column.texts() for name, column in columns if column.source == origin}
    if old is None or not texts:
        return {}
    rows = zip(*texts.values(), strict=True)
    return {sha256: dict(zip(texts, row, strict=True)) for sha256, row in zip(old.columns.sha256, rows, strict=True)}


def _may_be_dicom(path: str) -> bool:
    suffix = splitext(path)[1].lower()
    return suffix in DICOM_SUFFIXES or suffix not in IMAGE_SUFFIXES


def _tags(source: ImageSource, path: str, key: bytes) -> dict[str, str]:
    """Return what a file says, as text of one form; the patient only as a hash."""
    head = source.head(path, HEAD_BYTES)
    if not is_dicom(head):
        return {}
    try:
        try:
            found = read_patient_tags(head)
        except ImageError:  # a tag before these is larger than the head
            found = read_patient_tags(source.read(path)[0])
    except ImageError:
        return {}
    age = years(found.pop("PatientAge", ""))
    day = found.get("StudyDate", "")
    found |= {"PatientAge": f"{age:.3f}".rstrip("0").rstrip(".")} if age is not None else {}
    found |= {"StudyDate": f"{day[:4]}-{day[4:6]}-{day[6:]}"} if len(day) == 8 and day.isdecimal() else {}
    if patient := found.pop("PatientID", ""):
        found[PATIENT] = hmac.new(key, patient.encode("utf-8", "replace"), "sha256").hexdigest()[:_HASH_DIGITS]
    return found


def patient_key() -> bytes:
    """Return the secret that patients are hashed with, of this user on this machine; make it if there is none.

    Without it, whoever has a cache could hash all numbers that a patient can have, and compare.
    """
    file = cache_file(_KEY_FILE)
    with suppress(OSError):
        if len(key := file.read_bytes()) >= _KEY_BYTES:
            return key
    with replacing(file, elsewhere="set XFEAT_CACHE_DIR to another folder") as partial:
        partial.touch(0o600, exist_ok=False)
        partial.write_bytes(secrets.token_bytes(_KEY_BYTES))
    return file.read_bytes()  # of another process, if that was later

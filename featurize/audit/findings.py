"""The findings of an audit, with their evidence, the most severe first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from xfeat.featurize.audit.stored import FORMAT, FOUND, SCHEMA_VERSION, Verdicts, verdicts_of
from xfeat.featurize.audit.survey import Survey
from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.cache.extra import columns_digest
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.system.versions import library_versions

FAILURE, WARNING, NOTE = "failure", "warning", "note"
SEVERITIES = (FAILURE, WARNING, NOTE)


class Pair(NamedTuple):
    """Two images that should not both be in the data set, or not in different splits.

    Attributes:
        first: row of the cache.
        second: row of the cache.
        how: what they have in common.
        pixels: correlation of their fine detail, if it was measured.
        features: cosine of their features, if it was measured.
    """

    first: int
    second: int
    how: str
    pixels: float | None = None
    features: float | None = None


class ImageName(NamedTuple):
    """What people know an image by: its path as text that can be printed, its split and its class, if it has them."""

    path: str
    split: str | None
    label: str | None


class FlaggedImage(NamedTuple):
    """One image that should be looked at: its row, the reason, and the score it was ranked by."""

    row: int
    why: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well a linear model predicts the label from one part of the information.

    Attributes:
        name: ``border``, ``centre-blacked-out``, ``file``, ``grey-levels`` or ``features``.
        what: the information it is given, in words.
        auc: area under the ROC curve of each class against the rest, out of fold; one entry if there are two classes.
        standard_error: of the largest of them, from its spread over the folds.
        balanced_accuracy: mean of the classes' sensitivities.
        chance_balanced_accuracy: that of guessing; the AUC of guessing is 0.5.
        images: number of images.
    """

    name: str
    what: str
    auc: dict[str, float]
    standard_error: float
    balanced_accuracy: float
    chance_balanced_accuracy: float
    images: int

    @property
    def best(self) -> float:
        """The largest AUC of any class."""
        return max(self.auc.values())

    @property
    def is_control(self) -> bool:
        """Whether it is given the whole image, for comparison."""
        return self.name == "features"


@dataclass(frozen=True, kw_only=True)
class ColumnProbe:
    """How well a column predicts the label.

    Attributes:
        name: of the column.
        probe: of a linear model that is given the column alone; ``None`` if too few groups have a value.
        interval: 95 % interval of its best AUC, from the spread of the folds.
        is_class: every value has images of one class only.
    """

    name: str
    probe: Probe | None
    interval: tuple[float, float] = (0.0, 1.0)
    is_class: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of ``columns`` in ``features.audit.json``."""
        measured = {} if self.probe is None else {"auc": self.probe.auc, "images": self.probe.images}
        best = None if self.probe is None else self.probe.best
        interval = None if self.probe is None else self.interval
        return {"name": self.name, "best_auc": best, "interval": interval, "is_class": self.is_class, **measured}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding, with its evidence.

    Attributes:
        kind: stable name for programs, such as ``leakage.same-file``.
        severity: ``failure``, ``warning`` or ``note``.
        title: what was found, one sentence.
        meaning: its consequence.
        fix: what to do about it.
        pairs: pairs of images, the clearest first.
        images: single images, the clearest first.
        probes: measurements of shortcuts.
        lines: other evidence, one line each.
    """

    kind: str
    severity: str
    title: str
    meaning: str
    fix: str
    pairs: Sequence[Pair] = ()
    images: Sequence[FlaggedImage] = ()
    probes: Sequence[Probe] = ()
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Audit:
    """The findings on one cache, most severe first, and the data they are based on.

    Attributes:
        cache: the features.
        findings: most severe first.
        probes: how well the label can be predicted from parts of the images.
        survey: what was read of the images.
        columns: how well it can be predicted from the further columns.
        page: the HTML page with the images, once it is written.
        created: when, ISO 8601, UTC.
    """

    cache: FeatureCache
    findings: list[Finding]
    probes: list[Probe]
    survey: Survey
    columns: Sequence[ColumnProbe] = ()
    page: Path | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def images_read(self) -> int:
        """Number of images whose pixels were checked."""
        return int(self.survey.present.sum())

    @property
    def failures(self) -> list[str]:
        """Titles of the findings that make the audit fail."""
        return [finding.title for finding in self.findings if finding.severity == FAILURE]

    @property
    def warnings(self) -> list[str]:
        """Titles of the findings that do not make the audit fail, but affect metrics."""
        return [finding.title for finding in self.findings if finding.severity == WARNING]

    @property
    def passed(self) -> bool:
        """Whether no image or group leaks from one split into another."""
        return not self.failures

    @property
    def verdicts(self) -> Verdicts:
        """Whether leakage and shortcuts were found, not found, or not checked."""
        kinds, probes = [finding.kind for finding in self.findings], [probe.name for probe in self.probes]
        return verdicts_of(kinds, probes, passed=self.passed)

    @property
    def verdict_texts(self) -> dict[str, str]:
        """The verdicts in words."""
        texts = {"leakage": self.verdicts["leakage"], "shortcuts": self.verdicts["shortcuts"]}
        kinds = {finding.kind for finding in self.findings}
        if not self.passed:
            texts["leakage"] = "FOUND: metrics on this data are optimistically biased"
        elif "splits.none" in kinds:
            texts["leakage"] = "not checked: there are no splits yet"
        elif "groups.unknown" in kinds:
            texts["leakage"] = "none found among images; patients could not be checked"
        if texts["shortcuts"] == FOUND:
            texts["shortcuts"] = "FOUND: the label can be predicted without looking at the anatomy"
        return texts

    def image(self, row: int) -> ImageName:
        """Return the names of a row's file, split and class."""
        split, label = (int(column[row]) for column in (self.cache.columns.split, self.cache.columns.label))
        return ImageName(
            readable(self.cache.columns.path[row]),
            None if split == NO_SPLIT else SPLITS[split],
            None if label == NO_LABEL else self.cache.class_names[label],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``features.audit.json``."""
        probes = [asdict(probe) | {"best_auc": probe.best, "chance_auc": 0.5} for probe in self.probes]
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "cache": str(self.cache.path),
            "cache_sha256": self.cache.content_sha256,
            "columns_sha256": columns_digest(self.cache.extra),
            "created": self.created,
            "images": len(self.cache),
            "images_read": self.images_read,
            "counts": self.cache.counts,
            "passed": self.passed,
            "verdicts": self.verdicts,
            "corrections": dict(Counter(correction.action for correction in self.cache.corrections)),
            "failures": self.failures,
            "warnings": self.warnings,
            "findings": _rounded([self._finding(finding) for finding in self.findings]),
            "shortcuts": _rounded(probes),
            "columns": _rounded([column.to_dict() for column in self.columns]),
            "spec": asdict(THRESHOLDS),
            "versions": library_versions(),
            **({} if self.page is None else {"page": str(self.page)}),
        }

    def _finding(self, finding: Finding) -> dict[str, Any]:
        texts = {name: getattr(finding, name) for name in ("kind", "severity", "title", "meaning")}
        images = [self.image(row)._asdict() | {"why": why, "score": score} for row, why, score in finding.images]
        pairs = list(map(self._pair, finding.pairs))
        return {**texts, "mend": finding.fix, "pairs": pairs, "images": images, "lines": finding.lines}

    def _pair(self, pair: Pair) -> dict[str, Any]:
        paths, splits, labels = zip(self.image(pair.first), self.image(pair.second), strict=True)
        measured = {"how": pair.how, "pixels": pair.pixels, "features": pair.features}
        return {"paths": paths, "splits": splits, "labels": labels, **measured}


def readable(text: str) -> str:
    """Return text that can be printed and encoded, whatever bytes the file name it came from has."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value

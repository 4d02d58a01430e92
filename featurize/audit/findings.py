"""The findings of an audit, with their evidence, the most severe first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from xfeat.featurize.audit.specs import AuditSpec
from xfeat.featurize.audit.survey import Survey
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.system.versions import library_versions

FORMAT = "xfeat.audit"
SCHEMA_VERSION = 1
FAILURE, WARNING, NOTE = "failure", "warning", "note"
SEVERITIES = (FAILURE, WARNING, NOTE)


class Pair(NamedTuple):
    """Two images that should not both be in the data set, or not in different splits.

    Attributes:
        first: row of the cache.
        second: row of the cache.
        how: what they have in common, in words.
        pixels: correlation of their fine detail, if it was measured.
        features: cosine of their features, if it was measured.
    """

    first: int
    second: int
    how: str
    pixels: float | None = None
    features: float | None = None


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
        chance: balanced accuracy of guessing; the AUC of guessing is 0.5.
        images: number of images.
    """

    name: str
    what: str
    auc: dict[str, float]
    standard_error: float
    balanced_accuracy: float
    chance: float
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
    """The findings on one cache, most severe first, and the data they are based on."""

    cache: FeatureCache
    spec: AuditSpec
    findings: list[Finding]
    probes: list[Probe]
    survey: Survey

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

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``features.audit.json``."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "cache": str(self.cache.path),
            "cache_sha256": self.cache.content_sha256,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "images": len(self.cache),
            "images_read": self.images_read,
            "counts": self.cache.counts,
            "passed": self.passed,
            "failures": self.failures,
            "warnings": self.warnings,
            "findings": [self._finding(finding) for finding in self.findings],
            "shortcuts": [_probe(probe) for probe in self.probes],
            "spec": self.spec.to_dict(),
            "versions": library_versions(),
        }

    def _finding(self, finding: Finding) -> dict[str, Any]:
        return {
            "kind": finding.kind,
            "severity": finding.severity,
            "title": finding.title,
            "meaning": finding.meaning,
            "mend": finding.fix,
            "pairs": [
                {
                    "paths": [name_of(self.cache, row) for row in (pair.first, pair.second)],
                    "splits": [split_name(self.cache, row) for row in (pair.first, pair.second)],
                    "labels": [label_name(self.cache, row) for row in (pair.first, pair.second)],
                    "how": pair.how,
                    "pixels": _rounded(pair.pixels),
                    "features": _rounded(pair.features),
                }
                for pair in finding.pairs
            ],
            "images": [
                {
                    "path": name_of(self.cache, flagged.row),
                    "split": split_name(self.cache, flagged.row),
                    "label": label_name(self.cache, flagged.row),
                    "why": flagged.why,
                    "score": _rounded(flagged.score),
                }
                for flagged in finding.images
            ],
            "lines": list(finding.lines),
        }


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by severity; findings of one severity keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def count_of(number: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def readable(text: str) -> str:
    """Return text that can be printed and encoded, whatever bytes the file name it came from has."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def name_of(cache: FeatureCache, row: int) -> str:
    """Return a row's path as text that can be printed."""
    return readable(cache.columns.path[row])


def split_name(cache: FeatureCache, row: int) -> str | None:
    """Return the name of a row's split, or ``None``."""
    code = int(cache.columns.split[row])
    return None if code == NO_SPLIT else SPLITS[code]


def label_name(cache: FeatureCache, row: int) -> str | None:
    """Return the name of a row's class, or ``None``."""
    code = int(cache.columns.label[row])
    return None if code == NO_LABEL else cache.class_names[code]


def _probe(probe: Probe) -> dict[str, Any]:
    return {
        "name": probe.name,
        "what": probe.what,
        "auc": {name: _rounded(value) for name, value in probe.auc.items()},
        "best_auc": _rounded(probe.best),
        "standard_error": _rounded(probe.standard_error),
        "chance_auc": 0.5,
        "balanced_accuracy": _rounded(probe.balanced_accuracy),
        "chance_balanced_accuracy": _rounded(probe.chance),
        "images": probe.images,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)

"""One audit, from a cache to findings: read the images, search for neighbours, fit probes, report."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.balance import balance_findings, file_findings
from xfeat.featurize.audit.class_names import name_findings
from xfeat.featurize.audit.columns import column_findings, probe_columns
from xfeat.featurize.audit.duplicates import near_duplicates, same_files
from xfeat.featurize.audit.findings import NOTE, SEVERITIES, WARNING, Audit, Finding, Probe
from xfeat.featurize.audit.leakage import duplicate_findings, group_findings, unconfirmed_finding
from xfeat.featurize.audit.neighbours import clean_view, nearest_neighbours, sample_rows, short_features
from xfeat.featurize.audit.probing import Labels, has_enough_groups, out_of_fold, score
from xfeat.featurize.audit.shortcuts import EVIDENCE, is_strong, probe_shortcuts
from xfeat.featurize.audit.survey import Survey, survey_images
from xfeat.featurize.audit.suspects import label_findings, outlier_findings, picture_findings
from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MissingExtraError
from xfeat.featurize.progress import Steps

# Source of 0.12: measured on X-rays of other sources, docs/audit.md.
_CUT = "xfeat featurize DATA --crop 0.12 -o cropped.h5 (with the other options of this cache)"


def audit_cache(cache: FeatureCache, *, progress: Steps | None = None) -> Audit:
    """Look for everything that makes metrics of a model trained on this cache optimistically biased.

    Args:
        cache: the features; the images are read from its data root.
        progress: called with images read and images to read.

    Raises:
        MissingExtraError: if scikit-learn, cleanlab or Jinja is not installed.
    """
    # Missing libraries are reported before all images are read.
    if missing := [name for name in ("cleanlab", "jinja2", "sklearn") if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(f"the audit needs {', '.join(missing)}", fix="pip install 'xfeat-onnx[train]'")
    survey = survey_images(cache, progress=progress)
    columns = cache.columns
    kept = np.flatnonzero(~cache.excluded)
    unique, copies = same_files([columns.sha256[row] for row in kept.tolist()])
    unique = kept[unique]
    copies = [pair._replace(first=int(kept[pair.first]), second=int(kept[pair.second])) for pair in copies]
    compared = THRESHOLDS.neighbours
    wanted = max(compared, min(THRESHOLDS.outlier_neighbours, len(unique) // 4))
    neighbours, cosines = nearest_neighbours(clean_view(cache), unique, wanted)
    near, unconfirmed = near_duplicates(unique, neighbours[:, :compared], cosines[:, :compared], survey)
    probes, from_probes = _probe(cache, survey)
    by_column = probe_columns(cache)
    findings = [
        *duplicate_findings(copies, near, columns),
        *group_findings(columns),
        *unconfirmed_finding(unconfirmed, columns),
        *from_probes,
        *name_findings(cache),
        *balance_findings(cache),
        *column_findings(cache, by_column),
        *file_findings(cache, survey),
        *picture_findings(survey, cache.group_keys, np.flatnonzero(survey.present & ~cache.excluded)),
        *outlier_findings(unique, cosines, columns.label[unique]),
    ]
    worst_first = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(cache, worst_first, probes, survey, by_column)


def _probe(cache: FeatureCache, survey: Survey) -> tuple[list[Probe], list[Finding]]:
    """Measure shortcuts and find suspicious labels, if there are enough classes."""
    labels, groups = cache.columns.label, cache.group_keys
    rows = np.flatnonzero(has_enough_groups(labels, groups))
    if not len(rows):
        return [], [
            Finding(
                kind="shortcut.unmeasured",
                severity=NOTE,
                title="Shortcuts and labels could not be checked: too few groups of at least two classes",
                meaning="Each class needs five groups (patients, or images without a known patient).",
                fix="add images" if cache.class_names else "run xfeat featurize on class folders",
            )
        ]
    own, names = _classes_of(cache, rows)
    predicted = out_of_fold(short_features(clean_view(cache))[rows], own, groups[rows], balanced=False)
    probes = [score("features", "the features of the whole image", own, names, predicted)]
    suspects = label_findings(rows, own, predicted[0], names, probes[0])
    visible = np.flatnonzero(has_enough_groups(np.where(survey.present, labels, -1), groups))
    seen = sample_rows(visible, THRESHOLDS.probe_images)
    seen = seen[has_enough_groups(labels[seen], groups[seen])]
    if len(seen):
        probes += probe_shortcuts(survey, seen, *_classes_of(cache, seen), groups[seen])
    return probes, [*_shortcut_finding(cache, probes), *suspects]


def _classes_of(cache: FeatureCache, rows: NDArray[np.int64]) -> tuple[Labels, list[str]]:
    """Return the labels of rows as 0 to C - 1, and the names of these C classes."""
    codes, labels = np.unique(cache.columns.label[rows], return_inverse=True)
    return labels, [cache.class_names[code] for code in codes]


def _shortcut_finding(cache: FeatureCache, probes: list[Probe]) -> Iterator[Finding]:
    strong = sorted((probe for probe in probes if is_strong(probe)), key=lambda probe: -probe.best)
    if strong:
        how = f": {_CUT}" if cache.spec.preprocess.crop == 0 else ""
        short_list = ", ".join(f"{EVIDENCE[probe.name][0]} {probe.best:.3f}" for probe in strong)
        yield Finding(
            kind="shortcut",
            severity=WARNING,
            title=f"The label can be predicted without looking at the anatomy ({short_list}; chance is 0.5)",
            meaning="This information contains little or nothing of the anatomy, yet a linear model that is given "
            f"nothing else predicts the label with this AUC; with the whole image it reaches {probes[0].best:.3f}. "
            "So the accuracy of a model on this data can come from recognising the source of an image (hospital, "
            "device, crop, markers, sharpness, shape), not the disease. The test split cannot show the difference, "
            "because its images come from the same sources.",
            fix="before you report an accuracy, test on images of another hospital (xhead eval); collect all classes "
            f"from the same sources, and cut off frames and burnt-in letters{how}",
            probes=strong,
        )

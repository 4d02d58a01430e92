"""One audit, from a cache to findings: read the images, search for neighbours, fit probes, report."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.balance import balance_findings, file_findings
from xfeat.featurize.audit.duplicates import near_duplicates, same_files
from xfeat.featurize.audit.findings import NOTE, SEVERITIES, WARNING, Audit, Finding, Probe, count_of
from xfeat.featurize.audit.leakage import duplicate_findings, group_findings, unconfirmed_finding
from xfeat.featurize.audit.neighbours import (
    clean_view,
    nearest_neighbours,
    require_finite,
    sample_rows,
    short_features,
)
from xfeat.featurize.audit.probing import Labels, has_enough_groups, out_of_fold, score
from xfeat.featurize.audit.shortcuts import EVIDENCE, is_strong, probe_shortcuts
from xfeat.featurize.audit.specs import AuditSpec
from xfeat.featurize.audit.survey import Progress, Survey, survey_images
from xfeat.featurize.audit.suspects import label_suspects, outliers
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MissingExtraError

# Below this AUC, labels that the features contradict are not reported.
_MIN_AUC = 0.65


def audit_cache(cache: FeatureCache, spec: AuditSpec | None = None, *, progress: Progress | None = None) -> Audit:
    """Look for everything that makes metrics of a model trained on this cache optimistically biased.

    Args:
        cache: the features; the images are read from its data root.
        spec: the thresholds.
        progress: called with images read and images to read.

    Raises:
        CacheError: if a feature is not finite.
        MissingExtraError: if scikit-learn, cleanlab or Jinja is not installed.
    """
    spec = spec or AuditSpec()
    # Missing libraries are reported before all images are read.
    if missing := [name for name in ("cleanlab", "jinja2", "sklearn") if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(f"the audit needs {', '.join(missing)}", fix="pip install 'xfeat-onnx[train]'")
    require_finite(cache)
    survey = survey_images(cache, progress=progress)
    columns = cache.columns
    unique, copies = same_files(columns.sha256)
    neighbours, cosines = nearest_neighbours(clean_view(cache), unique, spec.neighbours, seed=spec.seed)
    near, unconfirmed = near_duplicates(unique, neighbours, cosines, survey, spec)
    labels = np.asarray(columns.label)
    groups = cache.group_keys
    probes, from_probes = _probe(cache, survey, labels, groups, spec)
    findings = [
        *duplicate_findings(copies, near, columns),
        *group_findings(columns),
        *unconfirmed_finding(unconfirmed, columns),
        *from_probes,
        *balance_findings(cache, spec),
        *file_findings(cache, survey),
        *_outlier_finding(unique, cosines, labels[unique]),
    ]
    worst_first = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(cache, spec, worst_first, probes, survey)


def _probe(
    cache: FeatureCache, survey: Survey, labels: Labels, groups: NDArray[np.int64], spec: AuditSpec
) -> tuple[list[Probe], list[Finding]]:
    """Measure shortcuts and find suspicious labels, if there are enough classes."""
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
    codes, own = np.unique(labels[rows], return_inverse=True)
    names = [cache.class_names[code] for code in codes]
    values = short_features(clean_view(cache), seed=spec.seed)[rows]
    predicted = out_of_fold(values, own, groups[rows], balanced=False, seed=spec.seed)
    probes = [score("features", "the features of the whole image", own, names, predicted)]
    suspects = _suspect_finding(rows, own, predicted[0], names, probes[0])
    visible = np.flatnonzero(has_enough_groups(np.where(survey.present, labels, -1), groups))
    seen = sample_rows(visible, spec.probe_images, spec.seed)
    seen = seen[has_enough_groups(labels[seen], groups[seen])]
    if len(seen):
        codes, own = np.unique(labels[seen], return_inverse=True)
        names = [cache.class_names[code] for code in codes]
        probes += probe_shortcuts(survey, seen, own, groups[seen], names, spec)
    return probes, [*_shortcut_finding(probes, spec), *suspects]


def _shortcut_finding(probes: list[Probe], spec: AuditSpec) -> Iterator[Finding]:
    strong = sorted((probe for probe in probes if is_strong(probe, spec)), key=lambda probe: -probe.best)
    if strong:
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
            "from the same sources, and crop off frames and burnt-in letters",
            probes=strong,
        )


def _suspect_finding(
    rows: NDArray[np.int64], labels: Labels, probabilities: NDArray[np.float64], names: list[str], whole: Probe
) -> Iterator[Finding]:
    if whole.best < _MIN_AUC:
        yield Finding(
            kind="labels.unmeasured",
            severity=NOTE,
            title=f"The features do not separate the classes (AUC {whole.best:.2f}; chance is 0.5)",
            meaning="So single labels cannot be checked, and a head will not learn much from these features.",
            fix="check that the images are in the right class folders; "
            "try another backbone, size or --pooling multilevel",
        )
    elif flagged := label_suspects(rows, labels, probabilities, names):
        share = len(flagged) / len(rows)
        yield Finding(
            kind="labels.suspect",
            severity=WARNING if share >= 0.01 else NOTE,
            title=f"{count_of(len(flagged), 'label')} ({share:.1%}) contradicted by the features",
            meaning="Some are wrong labels, which reduce accuracy and distort the test; others are hard cases. The "
            "least likely labels come first.",
            fix="look at the first of them, move wrong ones to the right class folder, and run xfeat featurize again",
            images=flagged,
        )


def _outlier_finding(rows: NDArray[np.int64], cosines: NDArray[np.float32], labels: Labels) -> Iterator[Finding]:
    if flagged := outliers(rows, cosines, labels):
        yield Finding(
            kind="outliers",
            severity=NOTE,
            title=f"{count_of(len(flagged), 'image')} out of distribution (outliers)",
            meaning="They may be images of another kind (a photograph, a side view, a test pattern), or rare cases.",
            fix="remove what does not belong; keep what is rare",
            images=flagged,
        )

"""Renders features.audit.html: one self-contained page that can be mailed and printed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np

from xfeat.featurize.audit.findings import Audit, Finding, Pair, Probe, readable
from xfeat.featurize.audit.report.pictures import Thumbnails, class_average
from xfeat.featurize.audit.shortcuts import is_strong
from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.cache.columns import describe_corrections
from xfeat.featurize.datasets.file_lookup import name_as_text
from xfeat.featurize.pages.templates import page_environment
from xfeat.featurize.pages.titles import described
from xfeat.featurize.system.versions import library_versions
from xfeat.featurize.text import MAX_LISTED, count_of

_PAIRS_SHOWN = 12
_IMAGES_SHOWN = 18
_LINES_SHOWN = 50
# Findings whose copies, or images, can be excluded at once.
_COPIES = ("leakage.same-file", "leakage.near-duplicate", "duplicates.inside")
_STRANGE = ("images.blank", "images.colour", "images.turned", "images.mirrored", "images.inverted", "outliers")


def render_page(audit: Audit) -> str:
    """Return the page of an audit; images are read from the data root, and missing files are marked."""
    cache = audit.cache
    pictures = Thumbnails(cache)
    names = [*cache.class_names, *(["none"] if any("none" in row for row in cache.counts.values()) else [])]
    return (
        page_environment((__package__, "."))
        .get_template("template.html")
        .render(
            **described(cache.class_names, f", {count_of(len(cache), 'image')}", cache.columns.group),
            audit=audit,
            thresholds=THRESHOLDS,
            name=cache.path.name,
            class_names=cache.class_names,
            spec_line=cache.spec.describe(),
            data_root=readable(str(cache.images.root or cache.data_root)),
            findings=[_finding(finding, audit, pictures) for finding in audit.findings],
            probes=[_probe(probe, audit, pictures) for probe in audit.probes],
            averages=_class_averages(audit),
            counts=[(name, [row.get(name, 0) for row in cache.counts.values()]) for name in names],
            totals={split: sum(row.values()) for split, row in cache.counts.items()},
            largest=max((number for row in cache.counts.values() for number in row.values()), default=1),
            versions=library_versions(),
            corrected=describe_corrections(cache.corrections),
            images={"paths": dict(_correctable(audit)), "classes": list(cache.class_names)},
            script=files("xfeat.featurize.audit.report").joinpath("corrections.js").read_text("utf-8"),
        )
    )


def _correctable(audit: Audit) -> Iterator[tuple[int, str]]:
    """Yield rows that findings are about, and their paths, as a table in UTF-8 can hold them."""
    for finding in audit.findings:
        rows = [one.row for one in finding.images] + [row for pair in finding.pairs for row in pair[:2]]
        yield from ((row, name_as_text(audit.cache.columns.path[row])) for row in rows)


def _finding(finding: Finding, audit: Audit, pictures: Thumbnails) -> dict[str, Any]:
    extra = sorted({pair.second for pair in finding.pairs}) if finding.kind in _COPIES else []
    flagged = [one.row for one in finding.images] if finding.kind in _STRANGE else []
    return {
        "excludable": extra or flagged,
        "exclude": f"Exclude {'one of each pair' if extra else 'all of them'} ({len(extra or flagged)})",
        "finding": finding,
        "pairs": [_pair(pair, audit, pictures) for pair in finding.pairs[:_PAIRS_SHOWN]],
        "images": [
            {**_image(flagged.row, audit, pictures), "why": flagged.why} for flagged in finding.images[:_IMAGES_SHOWN]
        ],
        "lines": finding.lines[:_LINES_SHOWN],
        "hidden": len([*finding.pairs[_PAIRS_SHOWN:], *finding.images[_IMAGES_SHOWN:], *finding.lines[_LINES_SHOWN:]]),
    }


def _pair(pair: Pair, audit: Audit, pictures: Thumbnails) -> dict[str, Any]:
    values = {"pixels agree": pair.pixels, "features agree": pair.features}
    measured = ", ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)
    sides = [_image(row, audit, pictures) for row in (pair.first, pair.second)]
    return {"how": pair.how, "measured": measured, "sides": sides}


def _image(row: int, audit: Audit, pictures: Thumbnails) -> dict[str, Any]:
    path, split, label = audit.image(row)
    picture = pictures.of_row(row)
    names = {"path": path, "split": split or "no split", "label": label or "no label"}
    return {**names, "row": row, "picture": picture}


def _probe(probe: Probe, audit: Audit, pictures: Thumbnails) -> dict[str, Any]:
    present = np.flatnonzero(audit.survey.present)
    strong = is_strong(probe)
    return {
        "probe": probe,
        "picture": pictures.seen_by(probe.name, int(present[0])) if len(present) else "",
        "bars": [
            {
                "name": name,
                "auc": auc,
                "strong": strong and auc >= THRESHOLDS.strong_shortcut,
                "percent": round(100 * max(0.0, min(1.0, 2 * auc - 1)), 1),
            }
            for name, auc in _shown(probe.auc)
        ],
    }


def _shown(auc: dict[str, float]) -> list[tuple[str, float]]:
    """Return all classes, or of more than ten those that are predicted best."""
    return list(auc.items()) if len(auc) <= MAX_LISTED else sorted(auc.items(), key=lambda item: -item[1])[:MAX_LISTED]


def _class_averages(audit: Audit) -> list[dict[str, str]]:
    labels, present = audit.cache.columns.label, audit.survey.present
    return [
        {"name": name, "picture": class_average(audit.survey.grey[rows])}
        for code, name in enumerate(audit.cache.class_names)
        if len(rows := np.flatnonzero(present & (labels == code)))
    ]

"""Renders an audit for the terminal: the verdicts, then the findings, the most severe first."""

from __future__ import annotations

import textwrap

from xfeat.featurize.audit.findings import Audit, Finding
from xfeat.featurize.cache.columns import describe_corrections
from xfeat.featurize.text import count_lines, printable

_WIDTH = 100
_SHOWN = 3


def summarize(audit: Audit) -> list[str]:
    """Return the lines that ``xfeat audit`` prints."""
    cache = audit.cache
    lines = [f"{cache.path}: {len(cache)} images, {audit.images_read} of them read"]
    lines += [f"{name + ':':10} {text}" for name, text in audit.verdict_texts.items()]
    if corrected := describe_corrections(cache.corrections):
        lines.append(f"corrections: {corrected}")
    lines.append("")
    lines += count_lines(cache.counts)
    for finding in audit.findings:
        lines += ["", *_describe(finding, audit)]
    if not audit.findings:
        lines += ["", "nothing found"]
    if audit.probes:
        lines += [
            "",
            "how well a linear model predicts the label from one source of information alone (AUC; chance is 0.5)",
        ]
        for probe in audit.probes:
            name, auc = max(probe.auc.items(), key=lambda item: item[1])
            of = f"  ({name} against the rest)" if len(probe.auc) > 1 else ""
            lines.append(f"  {auc:.3f}  {probe.what}{of}")
    return lines


def _describe(finding: Finding, audit: Audit) -> list[str]:
    lines = textwrap.wrap(printable(f"{finding.severity.upper()}: {finding.title}"), _WIDTH)
    lines += textwrap.wrap(printable(finding.meaning), _WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
    evidence = [
        f"{_row(audit, pair.first)} = {_row(audit, pair.second)} ({pair.how}"
        + (f", {pair.pixels:.2f})" if pair.pixels is not None else ")")
        for pair in finding.pairs[:_SHOWN]
    ]
    evidence += [f"{_row(audit, flagged.row)}: {flagged.why}" for flagged in finding.images[:_SHOWN]]
    evidence += finding.lines[:_SHOWN]
    lines += [f"    {line}" for line in evidence]
    more = len(finding.pairs) + len(finding.images) + len(finding.lines) - len(evidence)
    if more > 0:
        lines.append(f"    … and {more} more")
    lines += textwrap.wrap(
        printable(f"fix: {finding.fix}"), _WIDTH - 2, initial_indent="  ", subsequent_indent="       "
    )
    return lines


def _row(audit: Audit, row: int) -> str:
    name, split, label = audit.image(row)
    # Folders usually name split and class; the paths of a manifest need not.
    said = [word for word in (split, label) if word and word not in name.split("/")]
    return f"{name} [{', '.join(said)}]" if said else name

"""``xfeat audit``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
from xfeat.featurize.console import PATH, json_flag, print_result, progress_bars
from xfeat.featurize.errors import DataError
from xfeat.featurize.specs import DEFAULT_CACHE


@click.command()
@click.argument("file", type=PATH, default=DEFAULT_CACHE)
@click.option("-o", "--output", type=PATH, help="Page to write.  [default: FILE with .audit.html]")
@click.option("--strict", is_flag=True, help="Exit with 1 if anything leaks from one split into another.")
@click.option("--strict-shortcuts", is_flag=True, help="Exit with 1 also if the label can be predicted by a shortcut.")
@json_flag
def audit(file: Path, output: Path | None, strict: bool, strict_shortcuts: bool, as_json: bool) -> None:
    """Check whether metrics measured on a cache can be trusted.

    Looks for images and groups in two splits, near-duplicates, doubtful labels, shortcuts (can the label be predicted
    from the border, the file or the grey levels alone?), blank, turned and inverted images, outliers and imbalance.
    Prints a verdict on leakage and one on shortcuts, then the findings, most severe first. Writes FILE with
    .audit.json, which xhead train reads, and a page with the images, where corrections can be ticked and saved for
    xfeat featurize --corrections.
    """
    with progress_bars() as progress:
        done = xfeat.audit(file, output, progress=progress)
    from xfeat.featurize.audit.report.summary import summarize
    from xfeat.featurize.audit.stored import FOUND, audit_path
    from xfeat.featurize.typed_json import with_digest

    lines = [*summarize(done), "", f"page: {done.page}", f"facts: {audit_path(file)}"]
    print_result(with_digest(done.to_dict()), lines, as_json=as_json)
    wrong = [*done.failures] if strict or strict_shortcuts else []
    if strict_shortcuts and done.verdicts["shortcuts"] == FOUND:
        wrong.append(f"shortcuts {done.verdict_texts['shortcuts']}")
    if wrong:
        # The result is printed in any case; the options only add the error and the exit code.
        raise DataError("the audit failed", path=file, found="; ".join(wrong), fix=f"see {done.page}")

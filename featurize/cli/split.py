"""``xfeat split``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

import xfeat
from xfeat.featurize.console import (
    DATA,
    PATH,
    Printed,
    comma_list,
    json_option,
    layout_option,
    progress_bars,
    table_options,
)
from xfeat.featurize.errors import SpecError
from xfeat.featurize.text import MAX_LISTED, aligned, shortened

if TYPE_CHECKING:
    from xfeat.featurize.datasets.split import SplitResult


@click.command()
@click.argument("src", type=DATA)
@click.argument("dst", type=PATH)
@click.option("--ratios", default="60,20,20", help="Shares of train, valid and test; valid or test may be 0.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The same seed makes the same split.")
@click.option(
    "--groups",
    metavar="FILE|REGEX",
    help="Patient or series of each image: a CSV with path,group, or an expression on the path.  "
    "[default: groups.csv in SRC, if there]",
)
@click.option("--classes", metavar="A,B", help="Take these classes only.")
@layout_option
@table_options
@click.option(
    "--copy/--link",
    default=True,
    help="Copy the files, or make hard links, which take no space; files that cannot be linked are copied.",
)
@json_option
def split(
    src: Path,
    dst: Path,
    ratios: str,
    seed: int,
    groups: str | None,
    classes: str | None,
    layout: str | None,
    metadata: Path | None,
    columns: str | None,
    copy: bool,
) -> Printed:
    """Divide the class folders of SRC into DST/train, DST/valid and DST/test.

    SRC is a folder or zip archive with one folder per class, or a table (CSV) with the columns path,label[,group].
    Every class keeps its share in every split, images of one group (a patient) stay together, and so do exact copies of
    a file. DST is an argument, there is no -o: it must be new or empty, and appears whole or not at all. If two files
    have the same name, the name of their folder is put in front.
    """
    shares = _parse_ratios(ratios)
    with progress_bars() as progress:
        done = xfeat.split(
            *(src, dst),
            ratios=shares,
            seed=seed,
            link=not copy,
            groups=groups,
            classes=comma_list(classes),
            layout=layout,
            metadata=metadata,
            columns=columns,
            progress=progress,
        )
    facts = {
        "output": str(done.output),
        "images": len(done.images),
        "counts": done.counts,
        "groups": done.groups,
        "groups_file": done.named_groups,
        "columns_file": None if done.columns_file is None else str(done.columns_file),
        "linked": done.linked,
        "copied": len(done.images) - done.linked,
        "ratios": list(shares),
        "seed": seed,
    }
    return facts, _describe_split(done)


def _parse_ratios(text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError("--ratios cannot be read", expected="three numbers such as 60,20,20", found=text) from error
    return train, valid, test


def _describe_split(done: SplitResult) -> list[str]:
    names = sorted({name for classes in done.counts.values() for name in classes})
    totals = [sum(classes.values()) for classes in done.counts.values()]
    table = [["", *done.counts]]
    table += [[shortened(name), *(str(classes.get(name, 0)) for classes in done.counts.values())] for name in names]
    more = table[1 + MAX_LISTED :]
    table[1 + MAX_LISTED :] = [[f"… and {len(more)} more classes: see --json", *[""] * len(totals)]] * bool(more)
    table.append(["share", *(f"{100 * total / len(done.images):.0f} %" for total in totals)])
    lines = [f"{done.output} written: {_describe_groups(done)}", *aligned(table)]
    if done.named_groups:
        lines.append(f"the groups are in {done.output / 'groups.csv'}, where xfeat featurize finds them")
    else:
        lines.append("no patients are known: images of one patient may be in two splits; --groups says whose they are")
    command = ["xfeat", "featurize", str(done.output)]
    if done.columns_file is not None:
        lines.append(f"further columns are in {done.columns_file}")
        command += ["--metadata", str(done.columns_file)]
    return [*lines, f"next: {shlex.join(command)}"]


def _describe_groups(done: SplitResult) -> str:
    images = len(done.images)
    if done.named_groups:
        return f"{images} images in {done.groups} groups, none in two splits"
    copies = images - done.groups
    return f"{images} images" + (f", {copies} of them copies of others, in the split of the others" if copies else "")

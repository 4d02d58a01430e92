"""``xfeat split`` and ``xfeat audit``: the commands about a data set rather than about its features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.featurize.console import comma_list, json_option, progress_bar
from xfeat.featurize.errors import DataError, SpecError

if TYPE_CHECKING:
    from xfeat.featurize.datasets.split import SplitResult

_DEFAULT_CACHE = "features.h5"


@click.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--ratios", default="60,20,20", show_default=True, help="Shares of train, valid and test; valid or test may be 0."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed makes the same split."
)
@click.option(
    "--groups",
    metavar="FILE|REGEX",
    help="Patient or series of each image: a CSV with path,group, or an expression on the path.  "
    "[default: groups.csv in SRC, if there]",
)
@click.option("--classes", metavar="A,B", help="Take these classes only.")
@click.option(
    "--copy/--link",
    "copy",
    default=True,
    show_default=True,
    help="Copy the files, or make hard links, which take no space; files that cannot be linked are copied.",
)
@json_option
def split(
    src: Path, dst: Path, ratios: str, seed: int, groups: str | None, classes: str | None, copy: bool
) -> tuple[dict[str, Any], str]:
    """Divide the class folders of SRC into DST/train, DST/valid and DST/test.

    SRC is a folder or zip archive with one folder a class, or a CSV file with the columns path,label[,group]. Every
    class keeps its share in every split, images of one group (a patient) stay together, and so do exact copies of a
    file. DST must be new or empty; it appears whole or not at all. Files of the same name get their folder's name in
    front.
    """
    from xfeat.featurize.datasets.layouts import open_dataset
    from xfeat.featurize.datasets.split import SplitSpec, split_dataset

    spec = SplitSpec(ratios=_parse_ratios(ratios), seed=seed, link=not copy)
    dataset = open_dataset(src, classes=comma_list(classes), groups=groups)
    with progress_bar("dividing", "files") as progress:
        done = split_dataset(dataset, dst, spec, progress=progress)
    facts = {
        "output": str(done.output),
        "images": len(done.images),
        "counts": done.counts,
        "groups": done.groups,
        "groups_file": done.named_groups,
        "linked": done.linked,
        "copied": len(done.images) - done.linked,
        "ratios": list(spec.ratios),
        "seed": spec.seed,
    }
    return facts, _describe_split(done)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=_DEFAULT_CACHE)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Page to write.  [default: FILE with .audit.html]"
)
@click.option("--strict", is_flag=True, help="Exit with 1 if anything leaks from one split into another.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else there.")
def audit(file: Path, output: Path | None, strict: bool, as_json: bool) -> None:
    """Check whether figures measured on a cache can be believed.

    Looks for images and groups in two splits, near-duplicates, doubtful labels, shortcuts (can the label be told from
    the border, the file or the grey levels alone?), outliers and imbalance. Prints a summary, worst first, and writes a
    page with the pictures and FILE with .audit.json, which xhead train reads.
    """
    from xfeat.featurize.audit.page import render_page
    from xfeat.featurize.audit.run import audit_cache
    from xfeat.featurize.audit.summary import summarize
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.featurize.system.atomic import replacing

    cache = FeatureCache.open(file)
    with progress_bar("looking at images", "images") as progress:
        done = audit_cache(cache, progress=progress)
    page, facts_file = output or file.with_suffix(".audit.html"), file.with_suffix(".audit.json")
    facts = done.to_dict() | {"page": str(page)}
    for path, text in ((page, render_page(done)), (facts_file, json.dumps(facts, indent=1) + "\n")):
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    click.echo(json.dumps(facts) if as_json else f"{summarize(done)}\n\npage: {page}\nfacts: {facts_file}")
    if strict and not done.passed:
        # The result is on stdout as ever; the gate only adds the message and the exit code.
        raise DataError("the audit failed", path=file, found="; ".join(done.failures), mend=f"see {page}")


def _parse_ratios(text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError("--ratios cannot be read", expected="three numbers such as 60,20,20", found=text) from error
    return train, valid, test


def _describe_split(done: SplitResult) -> str:
    names = sorted({name for classes in done.counts.values() for name in classes})
    width = max(7, *(len(name) for name in names)) + 2
    lines = [f"{done.output} written: {len(done.images)} images in {done.groups} groups, none in two splits"]
    lines.append(" " * 6 + "".join(f"{name:>{width}}" for name in [*names, "share"]))
    for part, classes in done.counts.items():
        share = f"{100 * sum(classes.values()) / len(done.images):.0f} %"
        lines.append(f"{part:<6}" + "".join(f"{classes.get(name, 0):>{width}}" for name in names) + f"{share:>{width}}")
    if done.named_groups:
        lines.append(f"the groups are in {done.output / 'groups.csv'}, where xfeat featurize finds them")
    lines.append(f"next: xfeat featurize {done.output}")
    return "\n".join(lines)

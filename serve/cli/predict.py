"""``xserve predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.featurize.console import DATA, EXIT_PARTIAL, PATH, json_flag, print_result, progress_bar, say, warn
from xfeat.featurize.errors import DataError, SpecError
from xfeat.featurize.text import MAX_LISTED, aligned, printable, shortened
from xfeat.serve.cli.options import model_option, predictor_options
from xfeat.serve.cli.path_list import paths_of

if TYPE_CHECKING:
    from xfeat.export.model.metadata import ModelMetadata
    from xfeat.serve.inference.results import Prediction, Result
    from xfeat.serve.inference.tables import Write

_SHOWN_CLASSES = 3
_STDIN = _STDOUT = Path("-")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=DATA, metavar="PATH...")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="Write a row per image to FILE (.csv, .jsonl or .parquet) as soon as it is known; - is CSV on stdout.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    help="What to do if an image cannot be classified: skip it, and exit with code 3 at the end; or fail at once.",
)
@click.option(
    "--recursive/--no-recursive", default=True, help="Search the folders in folders and archives, too, to any depth."
)
@click.option("-0", "--null", is_flag=True, help="Paths on stdin end in NUL, as find -print0 writes them.")
@click.option("--columns", metavar="path=COLUMN", help="The column of a table that has the paths.")
@click.option(
    "--dicom-sr",
    type=PATH,
    metavar="DIR",
    help="Write a DICOM Structured Report and a picture of the heatmap to DIR for each DICOM image.",
)
@model_option
@predictor_options
@json_flag
def predict(
    paths: tuple[Path, ...],
    output: Path | None,
    overwrite: bool,
    on_error: str,
    null: bool,
    dicom_sr: Path | None,
    model: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Classify image files, and all images in folders, archives and tables.

    PATH is an image, a folder, an archive (zip, tar), a pattern such as 'part-*.tar', a parquet table of images, a
    table (CSV or Excel) with a column of paths, or an address (s3://, gs://, https://) of one of these. With -, stdin
    is read: one path of an image file per line. Labels are ignored.

    Without -o, a table is printed at the end. Images that cannot be classified are reported on stderr. Exit code: 0 if
    all were classified, 3 if only some were, 1 if none was or --on-error fail has stopped.
    """
    from xfeat.serve.dicom_sr.write import ReportFolder
    from xfeat.serve.inference.results import SkippedImage
    from xfeat.serve.inference.results import as_json as to_json
    from xfeat.serve.inference.tables import check_output

    if as_json and output == _STDOUT:
        raise SpecError("--json and -o - cannot be combined", fix="leave one out")
    if paths.count(_STDIN) > 1:
        raise SpecError("- is given twice, and stdin can be read once", fix="leave one out")
    named = [path for path in paths if path != _STDIN]
    if output is not None and output != _STDOUT:
        check_output(output, overwrite=overwrite, inputs=named)
    chosen = {name: settings.pop(name) for name in ("recursive", "columns")}
    predictor = xfeat.Predictor(model, **settings)
    reports = None if dicom_sr is None else ReportFolder(predictor, dicom_sr)
    stream = predictor.stream(
        named,
        paths_of(sys.stdin.buffer, b"\0" if null else b"\n") if _STDIN in paths else None,
        on_error="raise" if on_error == "fail" else "skip",
        each=None if reports is None else reports.add,
        progress=lambda done, total: progress(done, total),
        **chosen,
    )
    results: list[Result] = []
    with progress_bar("predicting", "images") as progress:
        classified, skipped = _write_rows(stream, output, predictor.metadata, results)
    if not classified:
        raise DataError("none of the images could be classified", found=f"skipped: {skipped}, for the reasons above")
    if output is None:
        lines, remarks = _as_table([each for each in results if not isinstance(each, SkippedImage)], predictor.metadata)
        print_result(to_json(str(model), results), lines, as_json=as_json)
        for remark in remarks:
            say(remark)
    elif output != _STDOUT:
        found = {"model": str(model), "output": str(output), "classified": classified, "skipped": skipped}
        print_result(found, [f"{output}: {classified} classified, {skipped} skipped"], as_json=as_json)
    for line in [] if reports is None else reports.summary():
        say(line)
    if skipped:
        sys.exit(EXIT_PARTIAL)


def _write_rows(
    stream: Iterator[Result], output: Path | None, metadata: ModelMetadata, results: list[Result]
) -> tuple[int, int]:
    """Write each result when it is known; return how many images were classified, and how many were skipped."""
    from xfeat.serve.inference.results import SkippedImage

    classified = skipped = 0
    first = list(islice(stream, 1))  # what fails before it leaves no file
    with _rows(output, metadata, results) as write:
        for result in chain(first, stream):
            if isinstance(result, SkippedImage):
                skipped += 1
                warn([f"skipped {result.path}: {result.reason}"])
            else:
                classified += 1
            write(result)
    return classified, skipped


def _rows(output: Path | None, metadata: ModelMetadata, results: list[Result]) -> AbstractContextManager[Write]:
    """Return where results go: to a file, to stdout, or into a list that is printed at the end."""
    from xfeat.serve.inference.tables import csv_rows, open_rows

    if output is None:
        return nullcontext(results.append)
    if output == _STDOUT:
        return nullcontext(csv_rows(_print_row, metadata.class_names))
    return open_rows(output, metadata.class_names)


def _print_row(row: str) -> None:
    """Print a row with the bytes that a file would have, or on a terminal with what it can show."""
    shown = printable(row.removesuffix("\n")) + "\n"
    click.echo(shown if sys.stdout.isatty() else row.encode("utf-8", "surrogateescape"), nl=False)


def _as_table(predictions: list[Prediction], metadata: ModelMetadata) -> tuple[list[str], list[str]]:
    """Return aligned columns (path, label, probabilities, out-of-distribution score if there is one), and remarks.

    Of more than ten classes, only the three most probable ones of each image are shown.
    """
    has_ood = any(prediction.ood is not None for prediction in predictions)
    many = len(metadata.class_names) > MAX_LISTED
    shown = ["most probable"] if many else [shortened(name) for name in metadata.class_names]
    rows = [["path", "label", *shown, *(["ood"] if has_ood else [])]]
    for prediction in predictions:
        row = [prediction.path, shortened(prediction.label)]
        row += _most_probable(prediction) if many else [f"{share:.4f}" for share in prediction.probabilities.values()]
        if has_ood:
            row.append("" if prediction.ood is None else f"{prediction.ood:.2f}")
        rows.append(row)
    remarks = []
    if many:
        remarks.append(f"all {len(metadata.class_names)} probabilities: --json, or -o FILE")
    if metadata.threshold is not None:
        remarks.append(f"{metadata.positive} at a probability of {metadata.threshold:.4g} or more")
    if has_ood and metadata.ood_threshold is not None:
        remarks.append(f"out-of-distribution above {metadata.ood_threshold:.4g}")
    return aligned(rows, left=(0, 1, 2) if many else (0, 1)), remarks


def _most_probable(prediction: Prediction) -> list[str]:
    best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:_SHOWN_CLASSES]
    return [", ".join(f"{shortened(name)} {share:.4f}" for name, share in best)]

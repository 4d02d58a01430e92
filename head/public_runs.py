"""The public functions for finished runs: opened, tested on other images, compared, written up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import SpecError
from xfeat.featurize.progress import Progress, StrPath, steps_of
from xfeat.featurize.system.atomic import replacing
from xfeat.head.public import Features, open_features
from xfeat.head.specs import DEFAULT_RUNS, SORTS

if TYPE_CHECKING:
    from xfeat.head.compare.comparison import Comparison
    from xfeat.head.evaluate import Evaluation
    from xfeat.head.evaluation.subgroups import Bins
    from xfeat.head.paper.writing import PaperFiles
    from xfeat.head.runs.reader import Run


def evaluate(
    run: StrPath | Run,
    data: Features,
    *,
    features: StrPath | None = None,
    groups: str | None = None,
    layout: str | None = None,
    metadata: StrPath | None = None,
    columns: str | None = None,
    weights: StrPath | None = None,
    device: str = "auto",
    bins: Bins | None = None,
    name: str | None = None,
    runs: StrPath | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Test a run on an external data set and show the drop from its own test images: ``xhead eval``.

    All labelled images are used; the split is ignored. Classes are matched by name.

    Args:
        run: the run, or its folder.
        data: a cache made with the settings of the run, or images in any layout of :func:`xfeat.extract`, which are
            featurized with these settings.
        features: cache for the features of images, used again by the next call; by default NAME.features.h5.
        groups: CSV file or regular expression for the patients or series.
        layout: ``splits``, ``classes`` or ``flat``; by default what the folders allow.
        metadata: table (CSV or Excel) of further columns, joined by path, base name or group.
        columns: what the columns of tables are, as for :func:`xfeat.extract`.
        weights: the backbone's weights file, if it has moved.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, for featurizing.
        bins: upper ends of the bins of further columns of numbers, for subgroups; by default quartiles.
        name: of the result folder; by default ``eval-`` and the time.
        runs: folder of the result folder; by default that of the run.
        progress: called as images are featurized.

    Returns:
        Metrics on these images beside those on the run's own test images, and the folder that has them.

    Raises:
        XfeatError: as :func:`xfeat.head.evaluate.evaluate_run` says.
    """
    from xfeat.head.runs.reader import new_run_name
    from xfeat.head.runs.writer import RunWriter

    opened = as_run(run)
    home = opened.folder if opened.folder.name else opened.folder.absolute()
    folder, name = Path(runs) if runs is not None else home.parent, name or f"eval-{new_run_name()}"
    RunWriter(folder, name, latest=False)  # refuses a name that is taken, before images are featurized
    if not isinstance(data, FeatureCache) and Path(data).suffix.lower() not in (".h5", ".hdf5"):
        from xfeat.featurize.datasets.column_choice import ColumnChoice
        from xfeat.featurize.datasets.layouts import open_dataset
        from xfeat.featurize.engines import open_engine
        from xfeat.featurize.pipeline.compute import RunOptions
        from xfeat.featurize.pipeline.extract import extract_features
        from xfeat.featurize.pipeline.grey_range import warn_of_other_range
        from xfeat.head.evaluate import check_classes_match
        from xfeat.head.runs.inputs import weights_of

        choice = ColumnChoice.parse(columns)
        dataset = open_dataset(data, groups=groups, layout=layout, metadata=metadata, columns=choice)
        check_classes_match(opened, dataset, Path(data))
        spec, found = opened.feature_spec, weights_of(opened, None if weights is None else Path(weights))
        warn_of_other_range(dataset, spec)
        output = Path(features or _cache_name(data))
        engine = partial(open_engine, spec, found, device=device)
        steps = steps_of(progress, "featurizing")
        extract_features(dataset, spec, found, output, RunOptions(open_engine=engine, progress=steps))
        data = output
    elif metadata is not None or columns is not None:
        raise SpecError(
            "--metadata and --columns are for images",
            found=f"{data}, a cache, which has its own columns",
            fix="give them to xfeat featurize",
        )
    cache = open_features(data)
    from xfeat.head.evaluate import evaluate_run
    from xfeat.head.reports.eval_report import save_evaluation

    done = evaluate_run(opened, cache, bins=bins)
    return save_evaluation(done, folder, name)


def _cache_name(data: StrPath) -> str:
    """Return the name of a cache for images, after the last part of their place that is more than a pattern."""
    from xfeat.featurize.urls import Url, root_of

    root = root_of(data)
    place = root if isinstance(root, Url) else root.resolve()
    for part in (PurePosixPath(place.name).stem, place.parent.name):
        if name := re.sub(r"[*?\[\]{}]", "", part).strip("-_. "):
            return f"{name}.features.h5"
    return "images.features.h5"


def compare(
    runs: Sequence[StrPath | Run] = (),
    folder: StrPath = DEFAULT_RUNS,
    *,
    sort: str = SORTS[0],
    baselines: bool = False,
    features: StrPath | None = None,
    csv_file: StrPath | None = None,
    html_file: StrPath | None = None,
) -> Comparison:
    """Compare runs: settings, metrics, and whether a difference is larger than chance: ``xhead compare``.

    Each run is compared with the first by McNemar's exact test on the images that both were tested on, and by a
    bootstrap over patients if patients have several images.

    Args:
        runs: runs and cross-validations: their folders, or their names in ``folder``; by default all in it.
        folder: of all runs.
        sort: the metric whose best comes first.
        baselines: also fit scikit-learn's classifiers, tuned, to the first run's data.
        features: the cache that runs were trained on; by default that of each run.
        csv_file: table to write.
        html_file: page to write.

    Returns:
        An entry per run, the best first, and the cross-validations.

    Raises:
        SpecError: if there is no such metric.
        RunError: if there is nothing to compare, or something that was named is damaged.
        MismatchError: if no run was trained on ``features``.
        OutputError: if a file cannot be written.
    """
    if sort not in SORTS:
        raise SpecError("unknown metric", expected=", ".join(SORTS), found=repr(sort))
    from xfeat.head.compare.comparison import as_entries, common_part, compare_entries, find_runs
    from xfeat.head.compare.results import compared_results, find_results, is_result, open_result
    from xfeat.head.runs.inputs import with_cache
    from xfeat.head.runs.reader import Run, runs_in

    home = Path(folder)
    folders = [_named(Path(each), home) for each in runs if not isinstance(each, Run)]
    results = [open_result(each) for each in folders if is_result(each)] if runs else find_results(home)
    found = [each for each in runs if isinstance(each, Run)]
    found += [open_run(each) for each in folders if not is_result(each)]
    if not runs and (not results or runs_in(home)):
        found = find_runs(home)
    if features is not None and found:
        found = with_cache(found, Path(features))
    entries, part = as_entries(found), common_part(found)
    if baselines:
        from xfeat.head.compare.baselines import fit_baselines

        entries += fit_baselines(entries, part)
    comparison = replace(compare_entries(entries, part, sort=sort), results=compared_results(results))
    if csv_file is not None:
        from xfeat.head.compare.table import as_csv

        _write(Path(csv_file), as_csv(comparison), option="--csv")
    if html_file is not None:
        from xfeat.head.compare.page import render_comparison

        _write(Path(html_file), render_comparison(comparison), option="--html")
    return comparison


def _named(named: Path, folder: Path) -> Path:
    """Return the folder of a run that is given by its folder, or by its name among all runs."""
    return named if named.exists() or not (folder / named).exists() else folder / named


def _write(file: Path, text: str, *, option: str) -> None:
    with replacing(file, elsewhere=f"choose another place with {option}") as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_figures(
    result: StrPath = f"{DEFAULT_RUNS}/latest", output: StrPath = "figures", *, features: StrPath | None = None
) -> PaperFiles:
    """Write the figures and the methods section of a paper: ``xhead report``.

    Args:
        result: folder of a run, a cross-validation or an external test.
        output: folder for the figures (SVG, PDF and PNG, 85 mm wide), methods.md and figures.json; other files in it
            stay.
        features: the cache that the run was trained on, if it has moved; it has the patients.

    Returns:
        The files with their captions, and what could not be drawn.

    Raises:
        RunError: if there is no result, or it is damaged, or of version 0.1.
        CacheError: if the patients of a run's images are needed, and its cache is missing.
        MismatchError: if it is another cache.
        OutputError: if a file cannot be written.
    """
    from xfeat.head.paper.writing import write_paper

    return write_paper(Path(result), Path(output), None if features is None else Path(features))


def open_run(folder: StrPath = f"{DEFAULT_RUNS}/latest") -> Run:
    """Read a run folder.

    Args:
        folder: of the run.

    Returns:
        Its settings, metrics, predictions and weights.

    Raises:
        RunError: if there is no run, or it is damaged or of another version.
        MismatchError: if its features are computed in a way that this version does not support.
    """
    from xfeat.head.runs.reader import open_run as read

    return read(folder)


def as_run(run: StrPath | Run) -> Run:
    """Return a run that is given, or read from its folder."""
    from xfeat.head.runs.reader import Run

    return run if isinstance(run, Run) else open_run(run)

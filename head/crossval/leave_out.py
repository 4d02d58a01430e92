"""Another hospital, simulated: heads trained without one value of a column, such as a hospital, and tested on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import DataError
from xfeat.featurize.text import listed
from xfeat.head.crossval.out_of_fold import OutOfFold
from xfeat.head.crossval.training import Fold
from xfeat.head.data.splits import fewest_groups
from xfeat.head.evaluation.clustered import difference
from xfeat.head.evaluation.study import Cases, figures_among
from xfeat.head.training.ensemble import shares_of

MOST_SOURCES = 30


@dataclass(frozen=True)
class Sources:
    """Where images come from, by a column.

    Attributes:
        column: its name.
        names: of the sources.
        codes: int64 (n,), index into ``names``; -1: unknown, which is neither trained on nor tested.
        problems: why a source cannot be left out, by its index.
        unanswerable: why no split of these data can say how a head does elsewhere, or empty.
    """

    column: str
    names: list[str]
    codes: NDArray[np.int64]
    problems: dict[int, str]
    unanswerable: str = ""


def sources_of(
    cache: FeatureCache,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    column: str,
    *,
    members: int = 1,
) -> Sources:
    """Divide rows by a column, and find which of its values can be left out.

    Args:
        cache: has the column.
        rows: int64 (n,), rows of the cache.
        labels: int64 (n,).
        groups: int64 (n,); patients of a source that is left out are not trained on, wherever their images are.
        column: its name.
        members: heads of an ensemble, each of which holds out other patients.

    Raises:
        DataError: if there is no such column, or it has one value, or too many.
    """
    if column not in cache.extra:
        raise DataError(
            f"there is no column {column}",
            path=cache.path,
            expected=listed(cache.extra) or "further columns",
            found=column,
            fix="choose one of these with --leave-out, or add it with xfeat featurize --metadata FILE",
        )
    texts = np.array(cache.extra[column].texts(), object)[rows].astype(str)
    names = sorted(set(texts.tolist()) - {""})
    if not 2 <= len(names) <= MOST_SOURCES or cache.extra[column].kind in ("text", "labels"):
        raise DataError(
            f"column {column} does not say where images come from",
            path=cache.path,
            expected=f"2 to {MOST_SOURCES} values, each with several images",
            found=f"{len(names)} values, kind {cache.extra[column].kind}",
            fix="choose a column such as a hospital or a scanner with --leave-out; if this is one, "
            f"xfeat featurize --columns {column}:category",
        )
    codes = np.array([names.index(text) if text else -1 for text in texts.tolist()], np.int64)
    found = Sources(column, names, codes, {})
    unanswerable = _one_source_only(found, labels, cache.class_names)
    problems = {code: _problem(found, code, labels, groups, cache.class_names, members) for code in range(len(names))}
    problems = {code: problem for code, problem in problems.items() if problem}
    if not unanswerable and len(problems) == len(names):
        unanswerable = f"no {column} can be left out: {problems[0]}"
    return replace(found, problems=problems, unanswerable=unanswerable)


def _one_source_only(sources: Sources, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> str:
    known = sources.codes >= 0
    homes = {name: np.unique(sources.codes[known & (labels == code)]).tolist() for code, name in enumerate(class_names)}
    alone = {name: sources.names[places[0]] for name, places in homes.items() if len(places) == 1}
    if not alone:
        return ""
    if len(alone) == sum(map(bool, homes.values())) and len(set(alone.values())) == len(alone):
        said = f"{sources.column} is the class: " + listed(f"{name} is {home}" for name, home in alone.items())
    else:
        said = listed(f"every image of class {name} has {sources.column} {home}" for name, home in alone.items())
    return f"{said}; no split of these data can tell how a model would do elsewhere"


def _training_rows(sources: Sources, code: int, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    tested = sources.codes == code
    return np.flatnonzero(~tested & (sources.codes >= 0) & ~np.isin(groups, groups[tested]))


def _problem(
    sources: Sources,
    code: int,
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    class_names: tuple[str, ...],
    members: int,
) -> str:
    rest = _training_rows(sources, code, groups)
    if absent := [name for number, name in enumerate(class_names) if number in labels and number not in labels[rest]]:
        return f"without {sources.names[code]}, no image of class {listed(absent)} is left to train on"
    if (fewest := fewest_groups(labels[rest], groups[rest])) < max(2, members):
        return f"without {sources.names[code]}, a class has images of {fewest} patients, too few to train on"
    return ""


def left_out_folds(
    sources: Sources, labels: NDArray[np.int64], groups: NDArray[np.int64], *, inner_folds: int, seed: int
) -> Iterator[tuple[int, Fold]]:
    """Yield the index of each source that can be left out, and the rows to train, validate and test on."""
    if sources.unanswerable:
        return
    for code in range(len(sources.names)):
        if code not in sources.problems:
            rest = _training_rows(sources, code, groups)
            inner = min(inner_folds, fewest_groups(labels[rest], groups[rest]))
            train, valid = shares_of(labels[rest], groups[rest], inner, seed=seed)[0]
            yield code, Fold(rest[train], rest[valid], np.flatnonzero(sources.codes == code))


def elsewhere(
    sources: Sources,
    cases: Cases,
    left_out: OutOfFold,
    temperature: float,
    same_as_class: Sequence[str] = (),
    *,
    folds: int,
) -> dict[str, Any]:
    """Compare predictions for each source by heads that never saw it with those of ordinary folds, on the same images.

    Args:
        sources: of the images.
        cases: all images, with the predictions of the ordinary folds.
        left_out: predictions of the heads trained without the source of each image; ``fold`` is the source, or -1.
        temperature: of the ordinary folds.
        same_as_class: columns of which each value has images of one class only.
        folds: number of the ordinary folds.

    Returns:
        ``column``, ``unanswerable``, ``unknown`` (images without a source), ``class`` (whose sensitivity it is),
        ``same_as_class``, ``remaining_images`` of the ordinary folds (to train and validate on, on average),
        ``sources`` (of each ``source``, ``images``, ``patients``, ``classes``, ``problem``, ``remaining_images`` and
        ``figures``) and ``overall`` (figures of all sources that could be left out; ``None`` if there are none). A
        figure has ``ordinary`` and ``elsewhere``, each a ``value`` and an ``interval``, and the ``drop``, paired by
        patient.
    """
    tested = np.asarray((left_out.fold >= 0).all(axis=0))
    probabilities = cases.probabilities.copy()
    probabilities[tested] = left_out.averaged(tested, temperature)
    away = replace(cases, probabilities=probabilities)
    rows = []
    for code, name in enumerate(sources.names):
        among = sources.codes == code
        figures = _figures(cases, away, among) if tested[among].all() else {}
        rows.append(
            {
                "source": name,
                "images": int(among.sum()),
                "patients": len(np.unique(cases.patients[among])),
                "classes": {c: int((cases.labels[among] == k).sum()) for k, c in enumerate(cases.class_names)},
                "remaining_images": len(_training_rows(sources, code, cases.patients)),
                "problem": "" if figures else sources.problems.get(code, ""),
                "figures": figures,
            }
        )
    return {
        "column": sources.column,
        "unanswerable": sources.unanswerable,
        "unknown": int((sources.codes < 0).sum()),
        "class": None if cases.studied is None else cases.class_names[cases.studied],
        "sources": rows,
        "same_as_class": list(same_as_class),
        "remaining_images": round(len(cases.labels) * (folds - 1) / folds),
        "overall": _figures(cases, away, tested) if tested.any() else None,
    }


def _figures(home: Cases, away: Cases, among: NDArray[np.bool_]) -> dict[str, Any]:
    measured, ordinary, elsewhere = {}, figures_among(home, among), figures_among(away, among)
    for name in dict.fromkeys(("accuracy", *home.measures)):
        first, second = ordinary[name], elsewhere[name]
        drop = None if first.value is None or second.value is None else first.value - second.value
        measured[name] = {
            "ordinary": first.to_dict(),
            "elsewhere": second.to_dict(),
            "drop": {"value": drop, "interval": difference(first, second)},
        }
    return measured

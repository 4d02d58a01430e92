"""Finds what a run was trained on, also after a move: its cache, its images, the weights of its backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.featurize.backbones.encoder_data import find_any_weights, weights_sha256
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.errors import CacheError, DataError, MismatchError, RunError, WeightsError, XfeatError
from xfeat.featurize.system.stored_paths import Search, StoredPath, find_stored
from xfeat.featurize.urls import Root, Url

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

LOADED = "loaded:"  # how backbones begin in caches of xfeat load
CACHE_SUFFIXES = (".h5", ".hdf5")


def search_cache(run: Run) -> Search:
    """Look for the cache of a run: the file with its content, wherever it is near the run."""
    from xfeat.featurize.cache.reader import stored_digest

    wanted = run.cache["content_sha256"]

    def refusal(path: Path) -> str:
        found = stored_digest(path)
        if found == wanted:
            return ""
        return "not a feature cache" if found is None else f"other features, of SHA-256 {found[:16]}…"

    return find_stored([_stored(run, run.cache["path"])], refusal, similar=lambda path: path.suffix in CACHE_SUFFIXES)


def open_cache_of(run: Run) -> FeatureCache:
    """Open the cache of a run; one with other features, if that is what is at its path now.

    Raises:
        CacheError: if there is none, or it is damaged.
    """
    from xfeat.featurize.cache.reader import FeatureCache

    search = search_cache(run)
    if (file := search.path or search.refused) is None:
        raise CacheError(
            "the features that the run was trained on are missing",
            path=run.cache["path"],
            expected=f"a feature cache with content of SHA-256 {run.cache['content_sha256'][:16]}…",
            found=search.report,
            fix="name it with --features PATH, or put it back",
        )
    return as_trained_on(FeatureCache.open(file), run)


def open_same_cache(run: Run, what: str = "the cache has changed since the run was trained on it") -> FeatureCache:
    """Open the cache of a run, with the features that it was trained on.

    Args:
        run: the run.
        what: the problem if they are others, for the message.

    Raises:
        CacheError: if there is none, or it is damaged.
        MismatchError: if it has other features.
    """
    cache = open_cache_of(run)
    if cache.content_sha256 != run.cache["content_sha256"]:
        raise MismatchError(
            what,
            path=cache.path,
            expected=f"content of SHA-256 {run.cache['content_sha256'][:16]}…",
            found=f"{cache.content_sha256[:16]}…",
            fix="name the cache of the run with --features PATH, or train the run again",
        )
    return cache


def as_trained_on(cache: FeatureCache, run: Run) -> FeatureCache:
    """Return the cache of a run with the corrections that it was trained with."""
    from xfeat.featurize.cache.columns import Correction
    from xfeat.featurize.cache.corrections import apply_corrections

    if cache.content_sha256 != run.cache["content_sha256"]:
        return cache
    return apply_corrections(cache, [Correction(*row) for row in run.cache["corrections"]])


def with_cache(runs: Sequence[Run], file: Path) -> list[Run]:
    """Let runs use a cache that the user names, where it is the one they were trained on.

    Raises:
        MismatchError: if none of them was trained on it.
    """
    from xfeat.featurize.cache.reader import FeatureCache

    digest = FeatureCache.open(file, check=False).content_sha256
    wanted = {run.cache["content_sha256"] for run in runs}
    if digest not in wanted:
        raise MismatchError(
            "no run was trained on these features" if len(runs) > 1 else f"run {runs[0].name} was trained on others",
            path=file,
            expected=" or ".join(f"content of SHA-256 {each[:16]}…" for each in sorted(wanted)),
            found=f"{digest[:16]}…",
            fix="name the cache of the run with --features PATH, or train on this one with xhead train",
        )
    named = str(file.absolute())
    return [
        replace(run, cache={**run.cache, "path": named}) if run.cache["content_sha256"] == digest else run
        for run in runs
    ]


def find_run(name: str, head_sha256: str, *, runs: Path, near: Path) -> Path:
    """Return the folder of a run: ``runs/NAME``, or one near a file, also under another name, with the same head.

    Args:
        name: of the run.
        head_sha256: of its head's weights.
        runs: the folder of all runs.
        near: a model of the run.

    Raises:
        RunError: if there is none.
    """
    from xfeat.head.runs.reader import RUN_FILE, open_run

    def refusal(folder: Path) -> str:
        try:
            found = open_run(folder).head_sha256
        except XfeatError as error:
            return error.what
        return "" if found == head_sha256 else f"another head, of SHA-256 {found[:16]}…"

    stored = StoredPath(now=str((runs / name).absolute()), folder=near.parent)
    search = find_stored([stored], refusal, similar=lambda folder: (folder / RUN_FILE).is_file())
    if (found := search.path or search.refused) is None:
        raise RunError(
            "the run of the model was not found",
            path=runs / name,
            expected=f"a run with a head of SHA-256 {head_sha256[:16]}…",
            found=search.report,
            fix="name its folder with --run",
        )
    return found


def image_digests(run: Run) -> dict[str, str]:
    """Return path to SHA-256 of each image that was featurized; empty if the cache of the run is not found."""
    from xfeat.featurize.cache.reader import FeatureCache

    file = search_cache(run).path
    if file is None:
        return {}
    columns = FeatureCache.open(file, check=False).columns
    return dict(zip(columns.path, columns.sha256, strict=True))


def find_images(run: Run, data: Root | None = None) -> Root:
    """Return the folder or archive of the images of a run: ``data``, or the one that was featurized.

    Raises:
        DataError: if it is not found, or has other images.
    """
    from xfeat.featurize.cache.images import other_images, search_images
    from xfeat.featurize.cache.reader import FeatureCache

    places = [_stored(run, run.cache["data_root"])]
    file = search_cache(run).path
    cache = None if file is None else FeatureCache.open(file, check=False)
    if data is not None:
        is_there = isinstance(data, Url) or data.exists()
        if cache is not None and is_there and (reason := other_images(cache.columns, data)):
            raise DataError(
                "these are not the images of the run",
                path=data,
                expected=f"images with the content that {cache.path} was computed from",
                found=reason,
                fix="name the folder that was featurized with --data DIR",
            )
        return data
    if cache is not None:
        search = search_images(cache.columns, [cache.stored_root, *places])
    else:
        search = find_stored(places, lambda root: _lacks_images(run, root), similar=None)
    if search.root is None:
        raise DataError(
            "the images of the run were not found",
            path=places[0].now,
            expected="the images that were featurized, with the same content",
            found=search.report,
            fix="name their folder with --data DIR",
        )
    if cache is None:
        logger.warning("%s: not compared with the images of the training, since the cache was not found", search.root)
    return search.root


def _lacks_images(run: Run, root: Root) -> str:
    from xfeat.featurize.sources.opening import open_source

    source = open_source(root, broken_ok=True)
    found = any(source.state(row["path"]) is not None for row in run.predictions())
    return "" if found else "none of the images of the run"


def weights_of(run: Run, file: Path | None = None) -> Weights:
    """Find the backbone weights of a run: in ``file``, else where they were or beside the run, else as ``xfeat`` does.

    Raises:
        WeightsError: if they cannot be found or downloaded, or ``file`` is missing.
        MismatchError: if the weights found are not those of the run, or its features were computed elsewhere.
    """
    name, wanted, used = run.feature_spec.backbone, run.feature_spec.weights_sha256, run.cache["weights_path"]
    if name.startswith(LOADED):
        cache = run.cache["path"]
        raise MismatchError(
            "the features of the run were computed elsewhere, by an encoder that xfeat does not know",
            path=cache,
            expected="features of an encoder that xfeat can run",
            found=name,
            fix=f"xfeat load TABLE -o {cache} --backbone ENCODER.onnx --size S --mean R,G,B --std R,G,B; xhead train",
        )
    if file is None and used:
        stored = _stored(run, used)
        search = find_stored(
            [stored], lambda path: _other_weights(name, path, wanted), similar=lambda path: _alike(path, used)
        )
        if search.path is not None:
            return Weights(name, search.path, wanted)
    try:
        found = find_any_weights(name, file=file)
    except WeightsError as error:
        if file is not None:
            raise
        raise WeightsError(
            f"the weights of {name} used by the run are missing", path=used, found=error.what, fix=error.fix
        ) from error
    if found.sha256 != wanted:
        raise MismatchError(
            "these are not the backbone weights of the run",
            path=found.path,
            expected=f"SHA-256 {wanted[:16]}…",
            found=f"{found.sha256[:16]}…",
            fix="give the right file with --weights FILE",
        )
    return found


def _other_weights(name: str, path: Path, wanted: str) -> str:
    try:
        return "" if path.is_file() and weights_sha256(name, path) == wanted else "other weights"
    except XfeatError as error:
        return error.what
    except OSError as error:
        return str(error.strerror)


def _alike(path: Path, used: str) -> bool:
    return path.suffix == Path(used).suffix and path.is_file()


def _stored(run: Run, path: str) -> StoredPath:
    return StoredPath(now=path, folder=run.folder, written_in=run.cache["written_in"], above=2)

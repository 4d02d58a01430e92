"""The public functions of this package: what ``import xfeat`` offers, and what its commands call."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.featurize.errors import SpecError
from xfeat.featurize.keyword_settings import keyword_settings
from xfeat.featurize.progress import Progress, StrPath, steps_of
from xfeat.featurize.specs import DEFAULT_CACHE, FeatureRequest

if TYPE_CHECKING:
    import pandas

    from xfeat.featurize.audit.findings import Audit
    from xfeat.featurize.cached_features import CachedFeatures
    from xfeat.featurize.datasets.split import SplitResult
    from xfeat.featurize.doctor.report import Line
    from xfeat.featurize.engines import BatchSize
    from xfeat.featurize.exchange.load import Loaded


@keyword_settings(request=FeatureRequest)
def extract(
    data: StrPath | pandas.DataFrame,
    output: StrPath = DEFAULT_CACHE,
    *,
    request: FeatureRequest,
    classes: Sequence[str] | None = None,
    groups: str | None = None,
    layout: str | None = None,
    metadata: StrPath | None = None,
    columns: str | None = None,
    device: str = "auto",
    engine: str = "auto",
    ray_address: str | None = None,
    batch_size: BatchSize = None,
    workers: int | None = None,
    decode_in: str = "auto",
    on_error: str = "skip",
    corrections: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CachedFeatures:
    """Compute the features of all images in ``data`` into a cache: ``xfeat featurize``.

    Unchanged images of an existing cache are not computed again. A stopped run resumes.

    Args:
        data: folder, archive (zip, tar), parquet table or manifest (CSV) of the images, here or at an address such as
            ``s3://…``; or a table of pandas with the columns of a manifest, whose paths are absolute or relative to the
            current folder.
        output: the cache to write or bring up to date.
        classes: keep these classes only.
        groups: CSV file or regular expression for the patients or series.
        layout: ``splits``, ``classes`` or ``flat``; by default what the folders allow.
        metadata: table (CSV or Excel) of further columns, joined by path, base name or group.
        columns: what the columns of tables are: ``path=filename,sex=Geschlecht,age:number``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``; several GPUs with commas.
        engine: ``auto``, ``torch``, ``onnxruntime``, ``openvino`` or ``ray``.
        ray_address: of the cluster, for ``ray``.
        batch_size: images per call of the network; ``auto`` measures which is fastest.
        workers: decoding threads or processes; by default one per core.
        decode_in: ``auto``, ``threads`` or ``processes``.
        on_error: ``skip`` unreadable images, or ``fail``.
        corrections: table of images to exclude, relabel or regroup; their features are kept.
        force: compute everything again, and replace a cache with other settings.
        progress: called while weights are downloaded, the range of 16-bit images is found, and images are featurized.

    Returns:
        The cache; its attribute ``extraction`` says what was computed, reused and skipped.

    Raises:
        XfeatError: as :func:`xfeat.featurize.pipeline.extract.extract_features`, ``open_dataset``, ``resolve_request``
            and ``open_engine`` say.
    """
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.featurize.cached_features import CachedFeatures
    from xfeat.featurize.cluster.engine import RayCluster
    from xfeat.featurize.datasets.column_choice import ColumnChoice
    from xfeat.featurize.datasets.dataframe import manifest_of
    from xfeat.featurize.datasets.layouts import open_dataset
    from xfeat.featurize.engines import check_precision, open_engine
    from xfeat.featurize.pipeline.compute import RunOptions
    from xfeat.featurize.pipeline.extract import extract_features
    from xfeat.featurize.pipeline.grey_range import with_grey_bits
    from xfeat.featurize.pipeline.request import resolve_request

    if ray_address is not None and engine != "ray":
        raise SpecError("--ray-address is for --engine ray")
    output, choice, content = Path(output), ColumnChoice.parse(columns), None
    if not isinstance(data, str | os.PathLike):
        data, content = manifest_of(data, choice)
    dataset = open_dataset(
        data,
        classes=None if classes is None else list(classes),
        groups=groups,
        layout=layout,
        metadata=metadata,
        columns=choice,
        content=content,
    )
    if corrections is not None:
        from xfeat.featurize.cache.corrections import correct_dataset

        dataset = correct_dataset(dataset, Path(corrections))
    check_precision(engine, request.precision)
    spec, weights = resolve_request(output, request, force=force, progress=steps_of(progress, "downloading weights"))
    finding = steps_of(progress, "finding the range of 16-bit images")
    spec = with_grey_bits(dataset, request, spec, output, force=force, workers=workers, progress=finding)
    cluster = None
    if engine == "ray":
        cluster = RayCluster(
            spec=spec, weights=weights, address=ray_address, cores=workers, device=device, batch_size=batch_size
        )
    options = RunOptions(
        open_engine=partial(open_engine, spec, weights, engine=engine, device=device, batch_size=batch_size),
        cluster=cluster,
        fail_on_error=on_error == "fail",
        force=force,
        workers=workers,
        decode_in=decode_in,
        progress=steps_of(progress, "featurizing"),
    )
    done = extract_features(dataset, spec, weights, output, options)
    # Its rows were checked when they were written or reused.
    return CachedFeatures.of(FeatureCache.open(output, check=False), done)


def open_cache(path: StrPath = DEFAULT_CACHE, *, check: bool = True) -> CachedFeatures:
    """Open a cache: ``xfeat info`` and ``xfeat verify``.

    Args:
        path: the file.
        check: read it once, and compare all rows with the digest that it was written with.

    Returns:
        The cache; its features stay on disk until they are used.

    Raises:
        CacheError: if the file is missing, damaged, of another schema version, or not a cache.
        MismatchError: if its features were computed in a way that this version does not support.
    """
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.featurize.cached_features import CachedFeatures

    return CachedFeatures.of(FeatureCache.open(Path(path), check=check))


def dump(cache: StrPath, table: StrPath) -> list[str]:
    """Write a cache as a table for other programs: ``xfeat dump``.

    Args:
        cache: the file.
        table: file to write: ``.parquet``, ``.npz`` or ``.csv``.

    Returns:
        The names of its columns besides the features.

    Raises:
        CacheError: if the cache cannot be read.
        SpecError: if the name of the table ends otherwise.
        OutputError: if the table cannot be written.
        MissingExtraError: if pyarrow is not installed.
    """
    from xfeat.featurize.exchange.dump import dump_cache

    return dump_cache(open_cache(cache), Path(table))


@keyword_settings(request=FeatureRequest)
def load(
    table: StrPath,
    output: StrPath = DEFAULT_CACHE,
    *,
    request: FeatureRequest,
    columns: str | None = None,
    name: str | None = None,
    data: StrPath | None = None,
    check: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """Make a cache of features that were computed elsewhere, or dumped: ``xfeat load``.

    Args:
        table: ``.parquet``, ``.npz`` or ``.csv``, with path, label and features.
        output: the cache to write.
        columns: names of its columns, as in ``path=filename,label=finding``.
        name: of the features, if no ``backbone`` is named.
        data: folder of the images; by default that of the table.
        check: compute the features of a few images with the ``backbone``, and compare them.
        force: replace an existing cache.
        progress: called while weights are downloaded, and images are read.

    Returns:
        The cache, and what was compared.

    Raises:
        XfeatError: as :func:`xfeat.featurize.exchange.load.load_table` and ``resolve_request`` say.
    """
    from xfeat.featurize.datasets.column_choice import ColumnChoice
    from xfeat.featurize.exchange.load import LoadOptions, load_table
    from xfeat.featurize.exchange.named_encoder import NamedEncoder
    from xfeat.featurize.pipeline.request import resolve_request
    from xfeat.featurize.urls import root_of

    output, encoder = Path(output), None
    if request.backbone != "auto":
        downloading = steps_of(progress, "downloading weights")
        spec, weights = resolve_request(output, request, force=force, progress=downloading)
        encoder = NamedEncoder(spec=spec, weights=weights, check=check, progress=steps_of(progress, "reading images"))
    elif request != FeatureRequest():
        raise SpecError("settings of an encoder, but no encoder", expected="its name with --backbone")
    options = LoadOptions(
        choice=ColumnChoice.parse(columns),
        name=name,
        data=None if data is None else root_of(data),
        encoder=encoder,
        force=force,
    )
    return load_table(Path(table), output, options)


def audit(cache: StrPath = DEFAULT_CACHE, page: StrPath | None = None, *, progress: Progress | None = None) -> Audit:
    """Check whether metrics measured on a cache can be trusted: ``xfeat audit``.

    Args:
        cache: the file; the result is written beside it as ``.audit.json``, which :func:`xfeat.train` reads.
        page: HTML page to write; by default beside the cache.
        progress: called as images are read.

    Returns:
        The findings, most severe first; ``verdicts`` says of leakage and of shortcuts whether any were found, and
        ``passed`` is false if an image or a group leaks from one split into another.

    Raises:
        CacheError: if the cache cannot be read.
        MissingExtraError: if scikit-learn, cleanlab or Jinja is not installed.
        OutputError: if a file cannot be written.
    """
    from xfeat.featurize.audit.report.page import render_page
    from xfeat.featurize.audit.run import audit_cache
    from xfeat.featurize.audit.stored import audit_path
    from xfeat.featurize.system.atomic import replacing
    from xfeat.featurize.typed_json import with_digest

    opened = open_cache(cache)
    page = opened.path.with_suffix(".audit.html") if page is None else Path(page)
    done = replace(audit_cache(opened, progress=steps_of(progress, "reading images")), page=page)
    facts = json.dumps(with_digest(done.to_dict()), indent=1) + "\n"
    for path, text in ((page, render_page(done)), (audit_path(opened.path), facts)):
        with replacing(path) as partial_file:
            partial_file.write_text(text, encoding="utf-8")
    return done


def split(
    src: StrPath,
    dst: StrPath,
    *,
    ratios: Sequence[float] = (60, 20, 20),
    seed: int = 0,
    link: bool = False,
    groups: str | None = None,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    metadata: StrPath | None = None,
    columns: str | None = None,
    progress: Progress | None = None,
) -> SplitResult:
    """Divide class folders into train, valid and test: ``xfeat split``.

    Args:
        src: folder or zip archive with one folder per class, or a manifest (CSV).
        dst: folder to write, new or empty.
        ratios: shares of train, valid and test; valid or test may be 0.
        seed: the same seed makes the same split.
        link: make hard links instead of copies, where the file system can.
        groups: CSV file or regular expression for the patients or series, which stay together.
        classes: take these classes only.
        layout: ``splits``, ``classes`` or ``flat``; by default what the folders allow.
        metadata: table (CSV or Excel) of further columns, joined by path, base name or group.
        columns: what the columns of tables are: ``path=filename,sex=Geschlecht``.
        progress: called as files are read and placed.

    Returns:
        What was written.

    Raises:
        SpecError: if the ratios cannot be used.
        DataError: if images have no class, or a class has too few groups.
        OutputError: if ``dst`` is not empty or cannot be written.
    """
    from xfeat.featurize.columns.gather import with_patients
    from xfeat.featurize.datasets.column_choice import ColumnChoice
    from xfeat.featurize.datasets.layouts import open_dataset
    from xfeat.featurize.datasets.split import SplitSpec, split_dataset
    from xfeat.featurize.keyword_settings import spec_from

    spec = spec_from(SplitSpec, {"ratios": [float(share) for share in ratios], "seed": seed, "link": link})
    dataset = open_dataset(
        src,
        classes=None if classes is None else list(classes),
        groups=groups,
        layout=layout,
        metadata=metadata,
        columns=ColumnChoice.parse(columns),
    )
    dataset = with_patients(dataset)
    return split_dataset(dataset, Path(dst), spec, progress=steps_of(progress, "dividing"))


def doctor(*, connect: bool = False) -> dict[str, list[Line]]:
    """Try what works on this machine: ``xfeat doctor``.

    Args:
        connect: also try to reach the server that weights are downloaded from.

    Returns:
        Topic to lines, each with a state and a text.
    """
    from xfeat.featurize.doctor import installed, machine
    from xfeat.featurize.doctor.gpus import gpu_checks
    from xfeat.featurize.doctor.report import run

    gpus, choices = gpu_checks()  # their processes work while the other checks run
    machine_checks = {"cores": machine.cores_and_memory, "folders": machine.folders, "file system": machine.file_system}
    return {
        "installed": run({"versions": installed.versions, "extras": installed.extras}),
        "reading": run({"decoders": installed.decoders, "weights": partial(installed.weights, connect=connect)}),
        "machine": run(machine_checks),
        "GPU": run(gpus),
        "auto chooses": run(choices),
    }

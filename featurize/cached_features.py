"""A cache as Python programs use it: as arrays for scikit-learn, and as a table for pandas and parquet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import read_rows
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.errors import DataError, MismatchError, needs_extra
from xfeat.featurize.specs import require

if TYPE_CHECKING:
    import pandas

    from xfeat.featurize.extractor import FeatureExtractor
    from xfeat.featurize.pipeline.extract import Extraction


class LabelledArrays(NamedTuple):
    """The labelled images of a split, in the order of the cache.

    Attributes:
        X: features, float32 (n, D); of several views the unchanged image's.
        y: class names, text (n,).
        groups: equal for images of one patient and for copies of one image, int64 (n,).
    """

    X: NDArray[np.float32]
    y: NDArray[np.str_]
    groups: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CachedFeatures(FeatureCache):
    """An opened ``features.h5``, with ways out of it.

    Attributes:
        extraction: what was computed, reused and skipped; ``None`` for a cache that was only opened.
    """

    extraction: Extraction | None = field(default=None, compare=False)

    @classmethod
    def of(cls, cache: FeatureCache, extraction: Extraction | None = None) -> Self:
        """Return an opened cache as one of these."""
        return cls(**{each.name: getattr(cache, each.name) for each in fields(FeatureCache)}, extraction=extraction)

    def arrays(self, split: str | None = None) -> LabelledArrays:
        """Return features, class names and groups of the labelled images of a split.

        Args:
            split: ``train``, ``valid`` or ``test``; ``None`` for all images.

        Raises:
            SpecError: if there is no such split.
            DataError: if it has no labelled image.
            CacheError: if the file cannot be read.
        """
        require(split is None or split in SPLITS, "unknown split", expected=", ".join(SPLITS), found=split)
        labels = np.asarray(self.columns.label)
        wanted = labels != NO_LABEL
        if split is not None:
            wanted &= np.asarray(self.columns.split) == SPLITS.index(split)
        rows = np.flatnonzero(wanted)
        if not len(rows):
            raise DataError(
                f"no labelled image in split {split}" if split else "no labelled image",
                path=self.path,
                found="; ".join(f"{name}: {sum(classes.values())} images" for name, classes in self.counts.items()),
                fix="arrays() takes the images of all splits" if split and (labels != NO_LABEL).any() else "label them",
            )
        views = 0 if self.features.ndim == 3 else None
        features = read_rows(self, rows, views=views).astype(np.float32, copy=False)
        return LabelledArrays(features, np.array(self.class_names)[labels[rows]], self.group_keys[rows])

    def extractor(self, **settings: Any) -> FeatureExtractor:
        """Return a transformer that computes the features of other images as those of this cache were computed.

        Args:
            settings: ``device``, ``engine``, ``batch_size`` and ``workers`` of the extractor, and ``weights``, where
                their file has moved.

        Raises:
            MismatchError: if it would compute other features, as from a file of weights that has changed.
            WeightsError, ModelError: if the weights cannot be found or used.
            MissingExtraError: if scikit-learn is not installed.
        """
        from xfeat.featurize.extractor import FeatureExtractor

        spec, weights = self.spec, self.weights_path
        preprocess = {each.name: getattr(spec.preprocess, each.name) for each in fields(spec.preprocess)}
        computed = {name: getattr(spec, name) for name in ("backbone", "pooling", "dtype", "precision")}
        found = weights if os.path.isfile(weights) else None
        extractor = FeatureExtractor(**{**computed, **preprocess, "weights": found, **settings})
        if extractor.spec != replace(spec, views=1):
            raise MismatchError(
                "the extractor would compute other features than those of the cache",
                path=self.path,
                expected=spec.describe(),
                found=extractor.spec.describe(),
                fix="cache.extractor(weights=FILE) with the file of those weights",
            )
        # Copies and pickles find the file again, which may be another one by then.
        extractor.weights_sha256 = spec.weights_sha256
        return extractor

    def to_pandas(self, *, features: bool = True) -> pandas.DataFrame:
        """Return the cache as a table, a row per image.

        Args:
            features: include the features as columns ``f0``, ``f1``, …; of several views the unchanged image's.

        Returns:
            Columns ``path``, ``label``, ``split``, ``group`` (missing where unknown), the further columns of the cache
            (numbers, categories, texts, dates; of several labels per image one column each), and the features.

        Raises:
            MissingExtraError: if pandas is not installed.
            CacheError: if the file cannot be read.
        """
        with needs_extra("tables", "a table needs pandas"):
            import pandas
        own = self.columns
        table = {
            "path": list(own.path),
            "label": [None if code == NO_LABEL else self.class_names[code] for code in own.label.tolist()],
            "split": [None if code == NO_SPLIT else SPLITS[code] for code in own.split.tolist()],
            "group": [group or None for group in own.group],
        }
        further: dict[str, Any] = {}
        for name, column in self.extra.items():
            name = f"{name}_" if name in table else name
            if column.kind == "category":
                further[name] = pandas.Categorical.from_codes(column.values, list(column.names))
            elif column.kind == "labels":
                for at, label in enumerate(column.names):
                    values = column.values[:, at].astype("int64")
                    further[f"{name}/{label}"] = pandas.array(values, "Int8").copy()
                    further[f"{name}/{label}"][values < 0] = pandas.NA
            elif column.kind == "text":
                further[name] = [text or None for text in column.texts()]
            else:
                further[name] = column.values
        parts = [pandas.DataFrame(table, dtype="str"), pandas.DataFrame(further, index=range(len(self)))]
        if features:
            rows = read_rows(self, np.arange(len(self)), views=0 if self.features.ndim == 3 else None)
            parts.append(pandas.DataFrame(rows, columns=[f"f{at}" for at in range(rows.shape[1])]))
        return pandas.concat(parts, axis=1)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the cache as a parquet file, as ``xfeat dump`` does; ``xfeat load`` reads it back.

        Args:
            path: the file, whose name ends in ``.parquet``.

        Raises:
            SpecError: if its name ends otherwise.
            MissingExtraError: if pyarrow is not installed.
            OutputError: if it cannot be written.
        """
        from xfeat.featurize.exchange.dump import dump_cache

        target = Path(path)
        require(
            target.suffix.lower() == ".parquet", "not a name of a parquet file", expected=".parquet", found=str(path)
        )
        dump_cache(self, target)

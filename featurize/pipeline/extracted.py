"""The cache that a run has written, with what the run did."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.pipeline.extract import Extraction


@dataclass(frozen=True, kw_only=True)
class ExtractedCache(FeatureCache):
    """An opened ``features.h5`` that was just written or found up to date.

    Attributes:
        extraction: what was computed, reused and skipped.
    """

    extraction: Extraction = field(compare=False)

    @classmethod
    def of(cls, extraction: Extraction) -> Self:
        """Open the cache of a run; its rows were checked when they were written or reused."""
        cache = FeatureCache.open(extraction.output, check=False)
        return cls(**{each.name: getattr(cache, each.name) for each in fields(cache)}, extraction=extraction)

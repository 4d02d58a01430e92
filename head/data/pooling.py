"""Which features of a cache a head uses: all of them, or, of a multilevel cache, those of the last layer only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xfeat.featurize.backbones.registry import BACKBONES, backbone_info, is_foreign
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError
from xfeat.featurize.pipeline.request import featurize_command
from xfeat.featurize.specs import TOKEN_POOLINGS

FINAL, MULTILEVEL = "final", "multilevel"


def pooled(cache: FeatureCache, pooling: str) -> FeatureCache:
    """Return a view of a cache as if it had been featurized with ``pooling``, if it holds these features.

    The first columns of a ``multilevel`` cache are the features of ``final``. Any other cache is returned unchanged.
    """
    if (cache.spec.pooling, pooling) != (MULTILEVEL, FINAL):
        return cache
    columns = backbone_info(cache.spec.backbone).final_dim
    return replace(cache, spec=replace(cache.spec, pooling=pooling), features=cache.features[..., :columns])


def chosen_pooling(cache: FeatureCache, pooling: str) -> FeatureCache:
    """Return :func:`pooled`'s view of a cache, or raise.

    Raises:
        MismatchError: if the cache does not hold these features.
    """
    chosen = pooled(cache, pooling)
    if chosen.spec.pooling != pooling:
        backbone = cache.spec.backbone
        poolings = TOKEN_POOLINGS if is_foreign(backbone) else (FINAL, MULTILEVEL) if backbone in BACKBONES else ()
        possible = {pooling, cache.spec.pooling} <= {*poolings}
        wanted, other = replace(cache.spec, pooling=pooling), Path(f"{cache.path.stem}-{pooling}.h5")
        again = (wanted, cache.data_root, other, cache.class_names, cache.weights_path)
        raise MismatchError(
            f"the cache does not hold the features of pooling {pooling}",
            path=cache.path,
            expected=pooling,
            found=cache.spec.pooling,
            fix=featurize_command(*again) if possible else "leave out --pooling",
        )
    return chosen

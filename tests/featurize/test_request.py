"""From options to a spec: what is chosen, and what is refused before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurize import request
from featurize.backbones import PREFERRED
from featurize.errors import CacheError, SpecError
from featurize.request import resolve_request
from featurize.specs import FeatureRequest


@pytest.mark.parametrize(
    "setting",
    [
        {"size": 0},
        {"size": 8},
        {"size": 5000},
        {"views": 0},
        {"dtype": "int8"},
        {"pooling": "max"},
        {"normalize": "x"},
        {"precision": "int8"},
    ],
    ids=str,
)
def test_settings_are_checked_before_weights_are_looked_for(setting: dict[str, Any]) -> None:
    """A request that is out of range cannot be made, and only one that was made is resolved."""
    with pytest.raises(SpecError, match=next(iter(setting.values())).__repr__()):
        FeatureRequest(**setting)


def test_what_force_may_not_replace_is_told_before_weights_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "find_preferred_weights", lambda *_a, **_k: pytest.fail("looked for weights"))
    (tmp_path / "features.h5").write_text("precious notes")
    with pytest.raises(CacheError, match="--force replaces only feature caches"):
        resolve_request(tmp_path / "features.h5", FeatureRequest(), force=True)


def test_weights_without_a_backbone_are_those_of_the_preferred_one(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"weights")
    spec, found = resolve_request(tmp_path / "features.h5", FeatureRequest(weights=tmp_path / "mine.pth"))
    assert (spec.backbone, found.path) == (PREFERRED, tmp_path / "mine.pth")
    assert spec.preprocess.size == 224

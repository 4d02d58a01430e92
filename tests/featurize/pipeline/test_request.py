"""From options to a spec: what is chosen, and what is refused before anything is fetched."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from xfeat.featurize.backbones.registry import PREFERRED
from xfeat.featurize.cli import main
from xfeat.featurize.errors import CacheError, SpecError
from xfeat.featurize.pipeline import request
from xfeat.featurize.pipeline.request import backbone_defaults, featurize_command, resolve_request
from xfeat.featurize.specs import FeatureRequest


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
        {"resize": "pad"},
        {"crop": 0.5},
        {"crop": -0.01},
        {"crop": math.nan},
        {"crop": math.inf},
        {"interpolation": "lanczos"},
        {"mean": (123.675, 116.28, 103.53)},
        {"std": (0.2, 0.0, 0.2)},
    ],
    ids=str,
)
def test_settings_are_checked_before_weights_are_looked_for(setting: dict[str, Any]) -> None:
    """A request that is out of range cannot be made, and only one that was made is resolved."""
    with pytest.raises(SpecError, match=re.escape(repr(next(iter(setting.values()))))):
        FeatureRequest(**setting)


def test_a_file_that_force_may_not_replace_is_reported_before_weights_are_searched(
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backbone": "efficientnet-b3", "size": 260, "normalize": "imagenet", "dtype": "float16"},
        {"pooling": "multilevel", "views": 3, "precision": "bfloat16"},
        {"size": 224, "backbone": "efficientnet-b3"},
        {"grey_bits": 12, "frames": "first"},
        {"crop": 0.12},
        {"crop": (1 - 0.9) / 2, "resize": "crop", "interpolation": "bicubic"},
        {"mean": (0.1, 0.2, 0.3), "std": (1 / 3, 1e-3, 1.0)},
        {"normalize": "imagenet", "std": (0.5, 0.5, 0.5)},
        {"normalize": "half"},
    ],
    ids=str,
)
def test_the_command_line_of_a_spec_asks_for_it(settings: dict[str, Any], tmp_path: Path) -> None:
    asked = FeatureRequest(**{"backbone": "efficientnet-lite0", **settings})
    found = {
        "backbone": asked.backbone,
        "weights_sha256": "0" * 64,
        "defaults": backbone_defaults(asked.backbone),
    }
    line = featurize_command(asked.spec_of(**found), "some images", tmp_path / "a b.h5", ["covid", "no finding"])
    name, command, *options = shlex.split(line)
    program = click.Context(main, **main.context_settings)  # click keeps the help option of the first context
    given = main.commands[command].make_context(name, options, parent=program).params
    assert (str(given["data"]), given["output"], given["classes"]) == (
        "some images",
        tmp_path / "a b.h5",
        "covid,no finding",
    )
    wanted = FeatureRequest(**{name: given[name] for name in vars(asked)})
    assert wanted.spec_of(**found) == asked.spec_of(**found)

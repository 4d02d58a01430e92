"""Specs: validated, frozen, and with fingerprints that differ exactly when a setting does."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfeat.featurize.errors import MismatchError, SpecError
from xfeat.featurize.specs import (
    DTYPES,
    FRAMES,
    GREY_BITS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    MAX_VIEWS,
    POOLINGS,
    PRECISIONS,
    RESIZES,
    FeatureSpec,
    PreprocessSpec,
)

unit = st.floats(0, 1, allow_nan=False)
positive = st.floats(0.01, 1, allow_nan=False)
preprocess_specs = st.builds(
    PreprocessSpec,
    size=st.integers(32, 1024),
    resize=st.sampled_from(RESIZES),
    crop=st.integers(0, 499_999).map(lambda parts: parts / 1e6),
    interpolation=st.sampled_from(INTERPOLATIONS),
    mean=st.tuples(unit, unit, unit),
    std=st.tuples(positive, positive, positive),
    grey_bits=st.sampled_from(GREY_BITS),
    frames=st.sampled_from(FRAMES),
)
feature_specs = st.builds(
    FeatureSpec,
    backbone=st.sampled_from(["efficientnet-b0", "efficientnet-lite0"]),
    weights_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    preprocess=preprocess_specs,
    pooling=st.sampled_from(POOLINGS),
    views=st.integers(1, MAX_VIEWS),
    dtype=st.sampled_from(DTYPES),
    precision=st.sampled_from(PRECISIONS),
)


@given(feature_specs)
def test_a_spec_survives_json(spec: FeatureSpec) -> None:
    again = FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.fingerprint == spec.fingerprint


@given(feature_specs, feature_specs)
def test_fingerprints_are_equal_exactly_when_specs_are(one: FeatureSpec, other: FeatureSpec) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "efficientnet-b1"},
        {"weights_sha256": "1" * 64},
        {"preprocess": PreprocessSpec(size=225)},
        {"preprocess": PreprocessSpec(mean=(0.5, 0.5, 0.4))},
        {"preprocess": PreprocessSpec(resize="crop")},
        {"preprocess": PreprocessSpec(crop=0.000001)},
        {"preprocess": PreprocessSpec(interpolation="bicubic")},
        {"preprocess": PreprocessSpec(grey_bits=12)},
        {"preprocess": PreprocessSpec(frames="first")},
        {"pooling": "multilevel"},
        {"views": 2},
        {"dtype": "float16"},
        {"precision": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_fingerprint(change: dict[str, object]) -> None:
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64)
    assert dataclasses.replace(spec, **change).fingerprint != spec.fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"size": 225},
        {"resize": "crop"},
        {"crop": 0.05},
        {"interpolation": "bicubic"},
        {"mean": (0.5, 0.5, 0.4)},
        {"std": (0.4, 0.5, 0.4)},
        {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        {"grey_bits": 12},
        {"frames": "first"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_of_the_preprocessing_shows_in_the_description(change: dict[str, object]) -> None:
    """Messages about caches with other settings show the descriptions of both."""
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64)
    other = dataclasses.replace(spec, preprocess=PreprocessSpec(**change))  # type: ignore[arg-type]
    assert other.describe() != spec.describe()


def test_the_fingerprint_of_the_defaults_never_changes() -> None:
    """Caches that people have would be refused otherwise; a new setting must keep this value for its default."""
    assert FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64).fingerprint == "49cb2e32d3de4e10"


def test_only_what_is_read_differently_needs_another_network() -> None:
    """A network is converted once for all ways to read files."""
    spec = PreprocessSpec(size=300, resize="crop", crop=0.1, interpolation="bicubic", grey_bits=12, frames="middle")
    assert spec.of_pixels.fingerprint == PreprocessSpec(size=300).fingerprint
    assert spec.to_dict()["grey_bits"] == 12


def test_a_spec_that_names_pillow_reads_as_one_without_a_decoder() -> None:
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64)
    read = FeatureSpec.from_dict({**spec.to_dict(), "decoder": "pillow"})
    assert (read, read.fingerprint) == (spec, spec.fingerprint)


def test_a_spec_of_files_decoded_on_a_gpu_is_refused() -> None:
    settings = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64).to_dict()
    with pytest.raises(MismatchError, match=r"no GPU JPEG decoder(.|\n)*decoder nvjpeg(.|\n)*xfeat featurize"):
        FeatureSpec.from_dict({**settings, "decoder": "nvjpeg"})


def test_the_defaults_are_the_tutorials() -> None:
    spec = PreprocessSpec()
    assert (spec.size, spec.resize, spec.interpolation) == (224, "squash", "bilinear")
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"size": 31}, "size"),
        ({"size": 1025}, "size"),
        ({"resize": "pad"}, "resize"),
        ({"crop": 0.5}, "crop"),
        ({"crop": 0.4999999}, "crop"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"grey_bits": 7}, "grey bits"),
        ({"frames": "last"}, "frames"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, object], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        PreprocessSpec(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"dtype": "float64"}, "dtype"),
        ({"precision": "int8"}, "precision"),
        ({"views": 0}, "views"),
        ({"views": MAX_VIEWS + 1}, "views"),
        ({"weights_sha256": "abc"}, "SHA-256"),
    ],
)
def test_a_feature_setting_out_of_range_is_named(settings: dict[str, object], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        FeatureSpec(**{"backbone": "efficientnet-b0", "weights_sha256": "0" * 64, **settings})  # type: ignore[arg-type]


def test_unknown_and_missing_keys_are_named() -> None:
    settings = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64).to_dict()
    with pytest.raises(SpecError, match="colour"):
        FeatureSpec.from_dict({**settings, "colour": 1})
    with pytest.raises(SpecError, match="backbone"):
        FeatureSpec.from_dict({key: value for key, value in settings.items() if key != "backbone"})


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PreprocessSpec().size = 300  # type: ignore[misc]


def test_a_row_has_a_dimension_for_views_only_if_there_are_some() -> None:
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64)
    assert spec.row_shape(1280) == (1280,)
    assert dataclasses.replace(spec, views=3).row_shape(1280) == (3, 1280)

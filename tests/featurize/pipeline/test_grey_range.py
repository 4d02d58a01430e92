"""The range of 16-bit images: found once for a data set, kept by its cache, and never changed in silence."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.inputs.image_bytes import png_16, tiff
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import MismatchError, SpecError
from xfeat.featurize.pipeline.grey_range import GreyRange, measure, warn_of_other_range, with_grey_bits
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.specs import FeatureRequest, FeatureSpec, PreprocessSpec

LEVELS = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) % 256  # 0 to 255


def put(folder: Path, **files: bytes) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def found(folder: Path, *names: str, **settings: Any) -> GreyRange | None:
    return measure(FolderSource(folder), names, PreprocessSpec(**settings))


@pytest.mark.parametrize(
    ("content", "bits", "stated"),
    [
        (png_16(LEVELS), 8, False),
        (png_16(LEVELS * 3), 10, False),
        (png_16(LEVELS * 16), 12, False),
        (png_16(LEVELS * 17), 14, False),
        (png_16(LEVELS * 257), 16, False),
        (png_16(LEVELS * 3, significant=12), 12, True),
        (png_16(LEVELS * 256, significant=12), 16, True),
        (png_16(np.dstack([LEVELS * 4, LEVELS * 0 + 65535])), 10, False),
        (png_16(np.dstack([LEVELS * 4] * 3)), 10, False),
        (png_16(LEVELS * 0), 16, False),
        (tiff(LEVELS * 4), 10, False),
        (tiff(LEVELS * 4, tags=[[(281, 4095)]]), 12, True),
        (tiff(LEVELS.astype(np.int16) * 16), 12, False),
        (tiff(np.dstack([LEVELS * 16] * 3), photometric=2, order=">"), 12, False),
    ],
)
def test_the_bits_are_those_that_the_levels_need(tmp_path: Path, content: bytes, bits: int, stated: bool) -> None:
    measured = found(tmp_path, *put(tmp_path, a=content))
    assert measured is not None
    assert (measured.bits, measured.all_state) == (bits, stated)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "content",
    [
        b"P5 32 32 1023\n" + (LEVELS * 4).astype(">u2").tobytes(),
        tiff(LEVELS.astype(np.float32) / 255),
        tiff(LEVELS.astype(np.uint8)),
        tiff((LEVELS % 16 * 16).astype(np.uint8), bits=12),
        b"II*\0 damaged",
    ],
    ids=["PGM", "floating-point", "8 bits", "12 bits packed", "damaged"],
)
def test_files_that_state_their_white_have_no_say(tmp_path: Path, content: bytes) -> None:
    assert found(tmp_path, *put(tmp_path, a=content)) is None


def test_the_range_is_that_of_all_images_together(tmp_path: Path) -> None:
    names = put(tmp_path, a=png_16(LEVELS), b=png_16(LEVELS * 15), c=tiff(LEVELS * 2), d=b"no image")
    assert found(tmp_path, *names) == GreyRange(255 * 15, 0, False)


class Project:
    """A folder of 16-bit images and the cache of the bench."""

    def __init__(self, bench: Any, folder: Path) -> None:
        self.bench, self.data = bench, folder
        for number in range(4):
            put(
                folder / ("covid" if number % 2 else "normal"),
                **{f"{number}.png": png_16(np.maximum(LEVELS * 4, number))},
            )

    def spec(self, **request: Any) -> FeatureSpec:
        settings = {name: request.pop(name) for name in ("force",) if name in request}
        asked = FeatureRequest(**request)
        spec = replace(self.bench.spec, preprocess=replace(self.bench.spec.preprocess, grey_bits=asked.grey_bits or 16))
        return with_grey_bits(open_dataset(self.data), asked, spec, self.bench.output, **{"force": False, **settings})

    def run(self, **request: Any) -> FeatureCache:
        self.bench.run(data=self.data, spec=self.spec(**request))
        return FeatureCache.open(self.bench.output)


@pytest.fixture
def project(bench: Any, tmp_path: Path) -> Project:
    return Project(bench, tmp_path / "deep")


def test_the_range_is_stored_with_the_features_and_said(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert project.run().spec.preprocess.grey_bits == 10
    assert "16-bit images hold levels up to 1020: read as 10-bit, 1023 is white; this is a guess" in caplog.text
    assert "16-bit images read as 10-bit" in project.run().spec.describe()


def test_a_zip_has_the_range_of_its_folder(project: Project, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(project.data.rglob("*.png")):
            archive.write(file, file.relative_to(project.data))
    folder, project.data = project.spec(), tmp_path / "a.zip"
    assert project.spec() == folder


def test_a_number_of_bits_that_is_given_is_taken(project: Project) -> None:
    assert project.spec(grey_bits=14).preprocess.grey_bits == 14


def test_images_of_8_bits_beside_those_of_16_do_not_change_the_range(project: Project, art: SimpleNamespace) -> None:
    put(project.data / "covid", **{"eight.png": art.encoded(art.pixels_of(1))})
    assert project.spec().preprocess.grey_bits == 10


def test_a_data_set_of_8_bits_has_the_settings_of_earlier_versions(bench: Any) -> None:
    dataset = open_dataset(bench.data)
    assert with_grey_bits(dataset, FeatureRequest(), bench.spec, bench.output, force=False) == bench.spec


def test_images_that_fit_are_added_to_a_cache(project: Project) -> None:
    project.run()
    put(project.data / "covid", **{"new.png": png_16(LEVELS)})
    assert len(project.run()) == 5
    for file in sorted(project.data.rglob("*.png"))[1:]:
        file.unlink()  # what is left needs fewer bits
    assert project.spec().preprocess.grey_bits == 10


@pytest.mark.parametrize("factor", [5, 257])
def test_images_beyond_the_range_of_a_cache_are_refused_with_both_ways_out(project: Project, factor: int) -> None:
    project.run()
    put(project.data / "covid", **{"bright.png": png_16(LEVELS * factor)})
    with pytest.raises(MismatchError, match=r"up to 1023(.|\n)*--force(.|\n)*--grey-bits 10"):
        project.run()
    assert len(project.run(grey_bits=10)) == 5
    assert len(project.run()) == 5  # decided once
    assert project.spec(force=True).preprocess.grey_bits == (12 if factor == 5 else 16)


def test_dark_images_are_not_added_in_silence_to_a_cache_of_the_full_range(
    project: Project, art: SimpleNamespace
) -> None:
    """A cache of 8-bit images, or of version 0.1, has 16 bits: ten would be nearly black."""
    deep, project.data = project.data, art.draw_folder(project.data.with_name("eight"))
    project.run()
    (deep / "covid" / "1.png").rename(next(project.data.rglob("*.png")).with_name("ten.png"))
    with pytest.raises(MismatchError, match=r"levels up to 1020, which need 10 bits(.|\n)*--grey-bits 16"):
        project.run()


@pytest.mark.parametrize(("bits", "warned"), [(16, True), (12, False), (10, False), (8, True)])
def test_images_for_a_model_of_another_range_are_warned_about(
    project: Project, caplog: pytest.LogCaptureFixture, bits: int, warned: bool
) -> None:
    warn_of_other_range(open_dataset(project.data), project.spec(grey_bits=bits))
    assert ("hold levels up to 1020, which need 10 bits; the model was trained on" in caplog.text) == warned


def test_several_pages_are_measured_as_they_are_read(tmp_path: Path) -> None:
    names = put(tmp_path, a=tiff(LEVELS * 4, LEVELS * 16))
    assert found(tmp_path, *names) is None  # refused
    assert found(tmp_path, *names, frames="first") == GreyRange(1020, 0, False)
    assert found(tmp_path, *names, frames="middle") == GreyRange(4080, 0, False)


@pytest.mark.parametrize("bits", [7, 17, 0, -1])
def test_a_number_of_bits_that_no_image_has_is_refused(bits: int) -> None:
    with pytest.raises(SpecError, match="grey bits"):
        FeatureRequest(grey_bits=bits)

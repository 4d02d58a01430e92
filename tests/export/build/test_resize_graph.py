"""Box and resize in the graph against Pillow's, on drawn images of many sizes and on real X-rays."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xfeat.export.build.resize_graph import resize_graph
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import FILTERS
from xfeat.featurize.specs import INTERPOLATIONS, RESIZES, PreprocessSpec

XRAYS = Path(__file__).parents[3].parent / "shared"
SIDES = st.sampled_from([32, 224])


@cache
def graph_of(spec: PreprocessSpec) -> bytes:
    model = onnx.helper.make_model(resize_graph(spec), opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@cache
def session(spec: PreprocessSpec) -> ort.InferenceSession:
    return ort.InferenceSession(graph_of(spec), providers=["CPUExecutionProvider"])


def in_graph(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    planes = session(spec).run(None, {"image": pixels})[0]
    assert planes.dtype == np.float32
    assert planes.shape == (len(pixels), 3, spec.size, spec.size)
    return planes.transpose(0, 2, 3, 1).astype(int)


def by_pillow(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    side, (height, width) = (spec.size, spec.size), pixels.shape[1:3]
    boxes = [Image.fromarray(each).crop(spec.box(width, height)) for each in pixels]
    return np.stack([np.asarray(each.resize(side, FILTERS[spec.interpolation])) for each in boxes]).astype(int)


def noise(height: int, width: int, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


SIZES = [(1, 1), (1, 90), (90, 1), (31, 33), (64, 64), (100, 37), (37, 100), (640, 500), (500, 640), (900, 300)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_noise_of_any_size_is_resized_as_by_pillow(size: tuple[int, int], side: int, interpolation: str) -> None:
    pixels, spec = noise(*size), PreprocessSpec(size=side, interpolation=interpolation)
    off = np.abs(in_graph(pixels, spec) - by_pillow(pixels, spec))
    assert (off <= 1).mean() >= 0.9999
    # when enlarging by a simple ratio, many values are ties between two grey levels; float32 rounds some differently
    assert (off == 0).mean() >= (0.98 if max(size) > side else 0.94)


@given(
    side=SIDES,
    interpolation=st.sampled_from(INTERPOLATIONS),
    resize=st.sampled_from(RESIZES),
    crop=st.sampled_from([0, 0.07, 1 / 3, 0.499]),
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_size_and_box_is_within_one_grey_level_except_for_ties_in_both_passes(
    side: int, interpolation: str, resize: str, crop: float, height: int, width: int, seed: int
) -> None:
    spec = PreprocessSpec(size=side, interpolation=interpolation, resize=resize, crop=crop)
    pixels = noise(height, width, seed=seed)
    off = np.abs(in_graph(pixels, spec) - by_pillow(pixels, spec))
    assert off.max() <= 2
    assert (off <= 1).mean() >= 0.99
    assert (off == 0).mean() >= 0.9


BOXES = [{"crop": 0.12}, {"crop": 0.49}, {"resize": "crop"}, {"resize": "crop", "crop": 0.0625}]


@pytest.mark.parametrize("box", BOXES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (1, 90), (32, 32), (33, 47), (5, 2000), (640, 500)])
def test_the_box_is_cut_to_the_pixel(box: dict[str, object], size: tuple[int, int]) -> None:
    """Of an image that names each of its pixels, enlarged so that every pixel of the box is in the result."""
    height, width = size
    places = np.stack(np.broadcast_arrays(*np.ogrid[:height, :width], 0), axis=-1)
    pixels = np.stack([places[..., 0] % 256, places[..., 1] % 256, places[..., 1] // 256], -1).astype(np.uint8)[None]
    spec = PreprocessSpec(size=32, **box)  # type: ignore[arg-type]
    off = np.abs(in_graph(pixels, spec) - by_pillow(pixels, spec))
    assert off.max() <= 1


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_pixels_that_were_cut_and_resized_are_passed_as_one_row_and_unchanged(box: dict[str, object]) -> None:
    spec, pixels = PreprocessSpec(size=32, **box), noise(32, 32, count=3)  # type: ignore[arg-type]
    assert (in_graph(pixels.reshape(3, 1, 32 * 32, 3), spec) == pixels).all()


@pytest.mark.parametrize("side", [32, 224, 300])
def test_an_image_of_the_models_size_is_unchanged(side: int) -> None:
    pixels = noise(side, side, count=2)
    assert (in_graph(pixels, PreprocessSpec(size=side)) == pixels).all()


@pytest.mark.parametrize("size", [(20_000, 20), (20, 20_000)])
def test_a_strip_of_20000_pixels_is_resized_as_by_pillow(size: tuple[int, int]) -> None:
    pixels, spec = noise(*size), PreprocessSpec()
    off = np.abs(in_graph(pixels, spec) - by_pillow(pixels, spec))
    assert off.max() <= 1
    assert (off == 0).mean() >= 0.99


@pytest.mark.parametrize("size", [(90, 70), (200, 70)])
@pytest.mark.parametrize("box", [{}, {"crop": 0.1, "interpolation": "bicubic"}], ids=str)
def test_the_images_of_a_batch_are_independent(size: tuple[int, int], box: dict[str, object]) -> None:
    pixels, spec = noise(*size, count=5), PreprocessSpec(size=32, **box)  # type: ignore[arg-type]
    batched = in_graph(pixels, spec)
    for one, alone in zip(batched, pixels, strict=True):
        assert (one == in_graph(alone[None], spec)[0]).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", RESIZES)
def test_no_operator_of_the_graph_is_a_resize_or_a_branch(interpolation: str, resize: str) -> None:
    spec = PreprocessSpec(interpolation=interpolation, resize=resize, crop=0.1)
    kinds = {node.op_type for node in resize_graph(spec).node}
    assert not kinds & {"Resize", "Upsample", "GridSample", "If", "Loop", "Scan"}


@pytest.mark.slow
@pytest.mark.parametrize("spec", [PreprocessSpec(crop=0.12, interpolation="bicubic"), PreprocessSpec(resize="crop")])
@pytest.mark.parametrize("size", [(1, 1), (300, 401), (224, 224), (1, 224 * 224)])
def test_openvino_computes_the_graph_as_onnxruntime_does(
    spec: PreprocessSpec, size: tuple[int, int], tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    (tmp_path / "resize.onnx").write_bytes(graph_of(spec))
    compiled = openvino.Core().compile_model(tmp_path / "resize.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = noise(*size)
    found = next(iter(compiled({"image": pixels}).values())).transpose(0, 2, 3, 1)
    off = np.abs(found - in_graph(pixels, spec))
    assert off.max() <= 1
    assert (off == 0).mean() >= 0.99


@pytest.mark.xray
@pytest.mark.slow
@pytest.mark.skipif(not XRAYS.is_dir(), reason="needs the X-rays in ../shared")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_seventh_real_xray_is_cut_and_resized_as_by_pillow(interpolation: str) -> None:
    files = sorted(file for file in XRAYS.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png"})[::7]
    assert files
    spec = PreprocessSpec(interpolation=interpolation, crop=0.05)
    for file in files:
        pixels = np.asarray(decode(file.read_bytes()).convert("RGB"))[None]
        off = np.abs(in_graph(pixels, spec) - by_pillow(pixels, spec))
        assert off.max() <= 1, file
        assert (off == 0).mean() >= 0.99, file

"""Image files to predictions: probabilities, decision, order, and images without a prediction."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.errors import DataError, ImageError, SpecError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.cores import cores
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction, SkippedImage
from xfeat.serve.models.batching import Batcher

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 60, 200), (10, 20, 30), (255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("graph", [{}, {"variant": "core"}, {"free_sides": True}], ids=["full", "core", "free sides"])
def test_probabilities_equal_the_arithmetic_by_hand(write_model, tiny, graph):
    predictor = Predictor.open(write_model(**graph))
    answers = predictor.predict_bytes([tiny.draw(colour) for colour in COLOURS])
    found = np.array([list(answer.probabilities.values()) for answer in answers])
    expected = np.array([tiny.reference(colour) for colour in COLOURS])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [answer.label for answer in answers] == [tiny.classes[best] for best in expected.argmax(axis=1)]
    assert [list(answer.probabilities) for answer in answers] == [list(tiny.classes)] * len(COLOURS)


def test_images_of_different_sizes_are_classified_in_one_batch(predictor, tiny):
    sizes = [(32, 32), (500, 20), (7, 300), (64, 48)]
    answers = Predictor(predictor.model, batch_size=4).predict_bytes(
        [tiny.draw((120, 60, 200), size) for size in sizes]
    )
    for answer in answers:
        np.testing.assert_allclose(list(answer.probabilities.values()), tiny.reference((120, 60, 200)), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_batches_of_any_size_give_the_same_predictions(predictor, tiny, batch_size):
    images = [tiny.draw(colour) for colour in COLOURS]
    images.insert(2, b"not an image")
    names = [f"picture {number}" for number in range(len(images))]
    together = Predictor(predictor.model, batch_size=batch_size).predict_bytes(images, names=names)
    one_by_one = [predictor.predict_bytes([image], names=[name])[0] for image, name in zip(images, names, strict=True)]
    assert [result.path for result in together] == names
    for ours, theirs in zip(together, one_by_one, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, Prediction):
            assert ours.label == theirs.label
            assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)


def test_the_threshold_decides_even_if_another_class_is_more_probable(write_model, tiny):
    colour = (0, 255, 0)
    covid = tiny.reference(colour)[0]
    assert tiny.reference(colour).argmax() != 0
    below = Predictor.open(write_model("below.onnx", positive="covid", threshold=float(covid) - 0.001))
    above = Predictor.open(write_model("above.onnx", positive="covid", threshold=float(covid) + 0.001))
    assert below.predict_bytes([tiny.draw(colour)])[0].label == "covid"
    assert above.predict_bytes([tiny.draw(colour)])[0].label == "normal"


def test_a_positive_class_below_its_threshold_is_not_chosen_even_if_it_is_most_probable(write_model, tiny):
    assert tiny.reference((255, 0, 0)).argmax() == 0
    predictor = Predictor.open(write_model(positive="covid", threshold=0.99))
    assert predictor.predict_bytes([tiny.draw((255, 0, 0))])[0].label == "pneumonia"


def test_the_ood_score_is_none_if_the_model_has_none(write_model, tiny):
    measuring = Predictor.open(write_model("ood.onnx", ood=True))
    assert measuring.predict_bytes([tiny.draw((30, 60, 90))])[0].ood == pytest.approx(60 / 255)
    assert Predictor.open(write_model()).predict_bytes([tiny.draw((30, 60, 90))])[0].ood is None


def test_an_image_that_the_model_fails_on_affects_no_other(write_model, tiny):
    predictor = Predictor.open(write_model(fails_above=True))
    images = [tiny.draw((100, 100, 100)), tiny.draw((255, 255, 255)), tiny.draw((50, 0, 0))]
    first, faulty, last = Predictor(predictor.model, batch_size=3).predict_bytes(images, names=["a", "b", "c"])
    assert faulty == SkippedImage(path="b", reason="the model failed on it", by_model=True)
    np.testing.assert_allclose(list(first.probabilities.values()), tiny.reference((100, 100, 100)), atol=1e-6)
    np.testing.assert_allclose(list(last.probabilities.values()), tiny.reference((50, 0, 0)), atol=1e-6)


def test_an_unreadable_image_is_skipped_with_its_reason(predictor, tiny):
    whole = tiny.draw((1, 2, 3))
    results = predictor.predict_bytes([b"", b"text", whole[:40], whole])
    assert [type(result) for result in results] == [SkippedImage, SkippedImage, SkippedImage, Prediction]
    assert results[0].reason == "the file is empty"
    assert "not a JPEG" in results[1].reason
    assert results[2].reason


def test_folders_are_searched_and_files_keep_the_order_given(predictor, tiny, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("b.png", "a.PNG", "deep/er/c.jpg", ".hidden/d.png", ".e.png", "notes.txt"):
        (folder / name).write_bytes(tiny.draw((9, 9, 9)))
    (folder / "deep" / "round").symlink_to(folder)
    (tmp_path / "beside").mkdir()
    (folder / "deep" / "beside").symlink_to(tmp_path / "beside")
    (tmp_path / "beside" / "back").symlink_to(folder / "deep")
    odd_name = tmp_path / "no suffix"
    odd_name.write_bytes(tiny.draw((9, 9, 9)))
    results = predictor.predict_paths([odd_name, folder])
    expected = [odd_name, folder / "a.PNG", folder / "b.png", folder / "deep/er/c.jpg"]
    assert [result.path for result in results] == [str(path) for path in expected]
    assert all(isinstance(result, Prediction) for result in results)


def test_a_path_that_does_not_exist_is_an_error_before_anything_runs(predictor, tiny, tmp_path):
    there = tmp_path / "there.png"
    there.write_bytes(tiny.draw((9, 9, 9)))
    seen = []
    with pytest.raises(DataError, match=r"gone\.png: file or folder not found"):
        predictor.predict_paths([there, tmp_path / "gone.png"], progress=lambda done, total: seen.append(done))
    assert seen == []


def test_names_are_asked_for_as_they_are_needed_and_a_pause_ends_a_batch(predictor, tiny, tmp_path):
    red = str(tmp_path / "red.png")
    Path(red).write_bytes(tiny.draw((255, 0, 0)))
    seen, asked = [], 0

    def names():
        nonlocal asked
        yield red
        yield None
        assert len(seen) == 1  # before anything else is asked for
        for asked in range(1, 1001):  # noqa: B007
            yield red

    most_ahead = 0
    for result in predictor.stream([], names()):
        most_ahead = max(most_ahead, asked - len(seen))
        seen.append(result)
    assert len(seen) == 1001
    assert most_ahead <= 3 * max(predictor.batch_size, cores())


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_stream_skips_what_cannot_be_read_or_raises_when_it_comes_to_it(predictor, tiny, tmp_path, on_error):
    (tmp_path / "a.png").write_bytes(tiny.draw((255, 0, 0)))
    (tmp_path / "b.png").write_bytes(b"text")
    stream = predictor.stream(tmp_path, on_error=on_error)
    assert next(stream).label == "covid"
    if on_error == "raise":
        with pytest.raises(ImageError, match=r"b\.png: text"):
            next(stream)
    else:
        assert [type(each) for each in stream] == [SkippedImage]
    with pytest.raises(SpecError, match="on_error"):
        predictor.stream(tmp_path, on_error="ignore")


def test_a_folder_without_images_is_an_error(predictor, tmp_path: Path):
    with pytest.raises(DataError, match="no images found"):
        predictor.predict_paths([tmp_path])


def test_progress_ends_at_the_number_of_images(predictor, tiny, tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(tiny.draw((number, 0, 0)))
    seen = []
    Predictor(predictor.model, batch_size=2).predict_paths(
        [tmp_path], progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(number, 5) for number in range(1, 6)]


def test_a_batch_size_below_one_is_rejected(predictor):
    with pytest.raises(SpecError, match="batch size"):
        Predictor(predictor.model, batch_size=0)


@pytest.mark.parametrize(
    ("stored_bits", "model_bits", "warned"),
    [
        (16, 16, False),
        (12, 16, True),
        (10, 12, False),  # darker images of the same detector
        (12, 12, False),
        (14, 12, True),
        (16, 12, True),
        (8, 16, True),
    ],
)
def test_16_bit_images_of_another_range_than_the_model_s_are_warned_about(
    write_model, tmp_path, caplog, stored_bits, model_bits, warned
):
    preprocess = PreprocessSpec(size=32, grey_bits=model_bits)
    spec = FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64, preprocess=preprocess)
    predictor = Predictor.open(write_model(feature_spec=spec))
    levels = np.linspace(0, 2**stored_bits - 1, 48 * 40).reshape(48, 40).astype(np.uint16)
    for name, share in (("dark.png", 8), ("bright.png", 1)):
        Image.fromarray(levels // share).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "dark.png").read_bytes()[:200])
    assert len(predictor.predict_paths([tmp_path / name for name in ("dark.png", "bright.png", "broken.png")])) == 3
    said = f"hold levels up to {2**stored_bits - 1}, which need {stored_bits} bits"
    assert (said in caplog.text) == warned
    caplog.clear()
    with contextlib.closing(Batcher(predictor, max_queue=1000)) as batcher:
        contents = [(tmp_path / name).read_bytes() for name in ("dark.png", "bright.png", "broken.png")]
        futures = [batcher.submit([(str(number), content)])[0] for number in range(20) for content in contents]
        for future in futures:
            future.result(30)
    assert caplog.text.count("hold levels up to") == warned

"""``Predictor.predict``: images of every kind, the numbers of ``xserve predict``, and what happens to broken ones."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.errors import ArgumentError, ImageError, ModelError, SpecError, XfeatError
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import SkippedImage

KINDS = {
    "path": lambda path: path,
    "text": str,
    "content": Path.read_bytes,
    "Pillow": Image.open,
    "array": lambda path: np.asarray(Image.open(path)),
    "levels 0 to 1": lambda path: np.asarray(Image.open(path)) / 255,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_has_the_numbers_of_its_file(predictor: Any, tiny: Any, tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, colour in zip(paths, [(255, 0, 0), (9, 200, 30), (120, 60, 200)], strict=True):
        path.write_bytes(tiny.draw(colour, (40, 50)))
    expected = [each.probabilities for each in predictor.predict_paths(paths)]
    seen: list[tuple[str, int, int]] = []
    found = predictor.predict([KINDS[kind](path) for path in paths], progress=lambda *step: seen.append(step))
    assert [each.probabilities for each in found] == expected
    assert seen[-1] == ("predicting", 3, 3)
    names = [str(path) for path in paths] if kind in ("path", "text") else [f"images[{n}]" for n in range(3)]
    assert [each.path for each in found] == names


def test_a_broken_image_raises_or_is_skipped(predictor: Any, tiny: Any) -> None:
    whole = tiny.draw((1, 2, 3))
    with pytest.raises(ImageError, match=r"images\[1\]: the file is empty"):
        predictor.predict([whole, b"", whole])
    first, broken, last = predictor.predict([whole, b"", whole], on_error="skip")
    assert isinstance(broken, SkippedImage)
    assert first.probabilities == last.probabilities
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("images", "settings", "error"),
    [
        ("a.png", {}, ArgumentError),
        ([None], {}, ArgumentError),
        ([b""], {"on_error": "ignore"}, SpecError),
        ([np.zeros((4, 4), int)], {}, ImageError),
        ([], {"heatmap": True}, ModelError),
    ],
    ids=["one path", "None", "another choice", "int64", "no heatmap"],
)
def test_wrong_arguments_are_one_error(
    write_model: Any, images: Any, settings: dict[str, Any], error: type[XfeatError]
) -> None:
    with pytest.raises(error):
        Predictor(write_model()).predict(images, **settings)


def test_a_heatmap_is_there_on_request(write_model: Any, tiny: Any) -> None:
    predictor = Predictor(write_model(heatmap=True))
    assert predictor.predict([tiny.draw((1, 2, 3))])[0].heatmap is None
    shown = predictor.predict([tiny.draw((1, 2, 3))], heatmap=True)[0].heatmap
    assert shown is not None
    assert shown.shape[0] == len(tiny.classes)


def test_a_pickle_opens_the_file_again(write_model: Any, tiny: Any) -> None:
    predictor = Predictor(write_model(), "cpu", 1, batch_size=3)
    again = pickle.loads(pickle.dumps(predictor))
    assert (again.batch_size, again.path) == (3, predictor.path)
    assert again.predict([tiny.draw((1, 2, 3))]) == predictor.predict([tiny.draw((1, 2, 3))])


def test_a_turned_image_of_pillow_is_turned_like_its_file(predictor: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture = Image.new("RGB", (60, 30), "red")
    picture.paste("blue", (0, 0, 20, 30))
    picture.save(file, "JPEG", exif=exif)
    of_file = predictor.predict([file.getvalue()])
    assert [each.probabilities for each in predictor.predict([Image.open(file)])] == [of_file[0].probabilities]

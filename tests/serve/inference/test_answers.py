"""Predictions beyond the class: out-of-distribution score and heatmap."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from xfeat.serve.inference.heatmap_png import draw_heatmap
from xfeat.serve.inference.predictor import Predictor

AUDIT = {"audited": True, "passed": False, "failures": ["patients are in two splits"], "warnings": []}


def ask(client, content, **query):
    reply = client.post("/predict", params=query, files={"files": ("a.png", content)})
    assert reply.status_code == 200
    return reply.json()["predictions"][0]


def quarters_picture(*greys):
    """Return a PNG of four grey quarters, in reading order."""
    pixels = np.repeat(np.repeat(np.reshape(greys, (2, 2)), 16, axis=0), 16, axis=1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture_of(answer):
    image = Image.open(io.BytesIO(base64.b64decode(answer["heatmap"])))
    assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (32, 32))
    return np.asarray(image)


def test_an_image_is_out_of_distribution_above_the_threshold(write_model, serve_model, tiny):
    """The out-of-distribution score of the tiny model is the mean of the colour, divided by 255."""
    predictor = Predictor.open(write_model(ood=True, ood_threshold=0.5))
    with serve_model(predictor) as client:
        near, far = ask(client, tiny.draw((60, 60, 60))), ask(client, tiny.draw((200, 200, 200)))
    assert near["ood"] == pytest.approx(60 / 255)
    assert near["ood_threshold"] == 0.5
    assert (near["in_distribution"], far["in_distribution"]) == (True, False)


def test_without_an_ood_score_or_threshold_in_distribution_is_null(write_model, serve_model, tiny):
    for name, changes in (("none.onnx", {"ood_threshold": 0.5}), ("open.onnx", {"ood": True})):
        with serve_model(Predictor.open(write_model(name, **changes))) as client:
            answer = ask(client, tiny.draw((60, 60, 60)))
        assert answer["in_distribution"] is None
        assert answer["ood_threshold"] is None
        assert (answer["ood"] is None) == (name == "none.onnx")


def test_the_heatmap_is_that_of_the_predicted_class(write_model, serve_model, tiny):
    """The tiny model's map of class 1 (normal) is the brightness of the upper right quarter."""
    with serve_model(Predictor.open(write_model(heatmap=True, positive="normal", threshold=0.0))) as client:
        answer = ask(client, quarters_picture(90, 200, 90, 90), heatmap=1)
    assert answer["label"] == "normal"
    alpha = picture_of(answer)[..., 3]
    assert alpha[4, 28] > 240
    assert alpha[28, 4] < 15
    assert np.unravel_index(alpha.argmax(), alpha.shape)[0] < 16


def test_a_heatmap_is_returned_only_if_requested_and_available(write_model, serve_model, client, tiny):
    assert "heatmap" not in ask(client, tiny.draw((9, 9, 9)))
    assert ask(client, tiny.draw((9, 9, 9)), heatmap=1)["heatmap"] is None
    assert client.get("/model").json()["heatmaps"] is False
    with serve_model(Predictor.open(write_model("looking.onnx", heatmap=True))) as looking:
        assert "heatmap" not in ask(looking, tiny.draw((9, 9, 9)))
        assert looking.get("/model").json()["heatmaps"] is True


@pytest.mark.parametrize("word", ["perhaps", "", "2"])
def test_a_parameter_that_is_not_boolean_is_422_with_a_message(client, tiny, word):
    reply = client.post("/predict", params={"heatmap": word}, files={"files": ("a.png", tiny.draw((9, 9, 9)))})
    assert reply.status_code == 422
    assert "heatmap" in reply.json()["error"]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_heatmap_without_a_positive_value_is_transparent(value):
    picture = np.asarray(Image.open(io.BytesIO(draw_heatmap(np.full((7, 7), value, np.float32), 32))))
    assert not picture[..., 3].any()


def test_the_maximum_of_a_heatmap_is_opaque_yellow_at_any_scale():
    levels = np.zeros((4, 4), np.float32)
    levels[1, 2] = 1e-6
    small, large = (np.asarray(Image.open(io.BytesIO(draw_heatmap(levels * by, 4)))) for by in (1, 1e9))
    np.testing.assert_array_equal(small, large)
    assert small[1, 2, 3] == 255
    assert tuple(small[1, 2, :3]) == (253, 231, 37)


def test_the_model_description_holds_the_test_results_and_the_audit(write_model, serve_model, tiny):
    metrics = {"test": {"accuracy": 0.5, "accuracy_interval": [0.2, 0.8], "confusion_matrix": [[1, 1], [1, 1]]}}
    with serve_model(Predictor.open(write_model(metrics=metrics, ood=True, ood_threshold=0.5, audit=AUDIT))) as client:
        facts = client.get("/model").json()
    assert (facts["test_accuracy"], facts["test_accuracy_interval"], facts["test_images"]) == (0.5, [0.2, 0.8], 4)
    assert facts["ood_threshold"] == 0.5
    assert facts["audit"] == AUDIT
    assert facts["test_sensitivity"] is None


def test_with_a_threshold_the_model_description_has_the_figures_at_the_threshold(write_model, serve_model, tiny):
    rate = {"value": 0.75, "interval": [0.3, 0.95]}
    test = {"accuracy": 0.5, "accuracy_interval": [0.2, 0.8], "confusion_matrix": [[1, 1], [1, 1]]}
    test["at_threshold"] = {"accuracy": rate, "sensitivity": rate, "specificity": rate}
    decided = {"positive": tiny.classes[0], "threshold": 0.25}
    with serve_model(Predictor.open(write_model(metrics={"test": test}, **decided))) as client:
        facts = client.get("/model").json()
    assert (facts["test_accuracy"], facts["test_accuracy_interval"]) == (0.75, [0.3, 0.95])
    assert facts["test_accuracy_most_probable"] == 0.5
    assert facts["test_sensitivity"] == facts["test_specificity"] == rate
    json.dumps(facts, allow_nan=False)

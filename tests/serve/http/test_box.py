"""A model that cuts images gives one answer, however an image comes; reference: the image cut beforehand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from xfeat.serve.inference.predictor import Predictor


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (1, 1024)], ids=str)
@pytest.mark.parametrize("settings", [{"crop": 0.12}, {"resize": "crop", "crop": 0.05}], ids=str)
def test_files_and_tensors_are_cut_once(write_pixel_model, serve_model, size, settings):
    """Sizes: that of the network; another; and one row of as many pixels as the network takes."""
    cuts = Predictor.open(write_pixel_model("cuts.onnx", preprocess=settings), device="cpu")
    plain = Predictor.open(write_pixel_model("plain.onnx"), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    left, top, right, bottom = cuts.metadata.feature_spec.preprocess.box(size[1], size[0])
    [expected] = plain.predict_bytes([png(image[top:bottom, left:right])])
    with serve_model(cuts) as client:
        by_file = client.post("/predict", files={"files": ("a.png", png(image))}).json()["predictions"][0]
        by_body = client.post("/predict", content=png(image)).json()["predictions"][0]
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "data": image.ravel().tolist()}
        [by_tensor] = [
            output["data"]
            for output in client.post("/v2/models/cuts/infer", json={"inputs": [tensor]}).json()["outputs"]
            if output["name"] == "probabilities"
        ]
        about = client.get("/model").json()
    for found in (list(by_file["probabilities"].values()), list(by_body["probabilities"].values()), by_tensor):
        np.testing.assert_allclose(found, list(expected.probabilities.values()), atol=1e-6)
    assert {"crop": about["crop"], "resize": about["resize"]} == {"crop": 0.0, "resize": "squash", **settings}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()

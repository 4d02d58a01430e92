"""Batch sizes that the device has been warmed up with, and several sessions of one model."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from xfeat.serve.http.server import open_sessions
from xfeat.serve.inference.batch_sizes import bucket_of, bucket_sizes
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.batching import Batcher
from xfeat.serve.specs import ServerOptions, ServeSpec


@pytest.fixture
def noted(model, monkeypatch):
    """Return the tiny model with padding, as on a GPU, and the sizes of the batches that reach onnxruntime."""
    predictor = Predictor.open(model, device="cpu", batch_size=12)
    predictor.pads_batches, sizes = True, []
    original = predictor.model.run

    def run(pixels, **wanted):
        sizes.append(len(pixels))
        return original(pixels, **wanted)

    monkeypatch.setattr(predictor.model, "run", run)
    return predictor, sizes


def pixels_of(number, side=32):
    return [np.full((side, side, 3), (7 * index, 90, 255 - index), np.uint8) for index in range(number)]


@pytest.mark.parametrize("largest", [1, 2, 3, 4, 8, 12, 16, 64, 256])
def test_every_batch_fits_into_a_bucket_less_than_four_times_its_size(largest):
    sizes = bucket_sizes(largest)
    assert sizes == sorted(set(sizes))
    assert len(sizes) <= 5, "each is a session"
    for images in range(1, largest + 1):
        bucket = bucket_of(images, largest)
        assert bucket == min(size for size in sizes if size >= images)
        assert images <= bucket < 4 * images


def test_a_gpu_gets_only_batch_sizes_that_were_warmed_up(noted):
    predictor, sizes = noted
    predictor.warm_up()
    warmed = set(sizes)
    assert warmed == {1, 4, 12}
    for number in range(1, 13):
        predictor.infer([str(index) for index in range(number)], pixels_of(number))
    assert set(sizes) == warmed


@pytest.mark.parametrize("number", [1, 3, 5, 12])
def test_padding_a_batch_changes_no_prediction(noted, model, number):
    names = [str(index) for index in range(number)]
    padded = noted[0].infer(names, pixels_of(number))
    exact = Predictor.open(model, device="cpu").infer(names, pixels_of(number))
    assert [each.path for each in padded] == names
    for one, other in zip(padded, exact, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_batches_are_not_padded_on_a_cpu(noted):
    predictor, sizes = noted
    predictor.pads_batches = False
    predictor.infer(["a", "b", "c"], pixels_of(3))
    assert sizes == [3]


class MeetingPredictor(Predictor):
    """Computes only when as many sessions compute as the barrier requires."""

    barrier: threading.Barrier

    def infer(self, names, pixels, **wanted):
        self.barrier.wait(30)
        return super().infer(names, pixels, **wanted)


def test_sessions_compute_in_parallel_and_each_image_once(model):
    sessions = [MeetingPredictor.open(model, device="cpu") for _ in range(3)]
    MeetingPredictor.barrier = threading.Barrier(3)
    batcher = Batcher(*sessions, max_queue=20, max_batch=2)
    futures = batcher.submit([(str(index), pixels) for index, pixels in enumerate(pixels_of(6))])
    assert [future.result(30).path for future in futures] == list("012345")
    batcher.close()
    assert batcher.pending == 0


def test_pixels_of_the_right_size_bypass_the_decoding_threads(predictor):
    batcher = Batcher(predictor, max_queue=20)
    gate = threading.Event()
    for _ in range(64):  # keeps all decoding threads busy
        batcher._decoders.submit(gate.wait, 30)
    try:
        assert batcher.submit([("a", pixels_of(1)[0])])[0].result(30).path == "a"
    finally:
        gate.set()
        batcher.close()


@pytest.mark.parametrize(
    ("asked", "cores", "sessions", "threads"),
    [
        ({}, 8, 2, 8),
        ({}, 1, 1, 1),
        ({"threads": 6}, 8, 2, 6),
        ({"threads": 2}, 8, 4, 2),
        ({"threads": 1}, 2, 2, 1),
        ({"threads": 1, "device": "cpu,cpu"}, 8, 8, 1),
        ({"threads": 1, "sessions": 1}, 8, 1, 1),
        ({"sessions": 1}, 8, 1, 8),
        ({"sessions": 4}, 2, 4, 2),
        ({"device": "cpu, cpu", "sessions": 2}, 8, 4, 8),
    ],
)
def test_sessions_occupy_all_cores_unless_their_number_is_given(model, monkeypatch, asked, cores, sessions, threads):
    given = []
    original = Predictor.open

    def note(path, device, threads, **more):
        given.append(threads)
        return original(path, device, threads, **more)

    monkeypatch.setattr(Predictor, "open", note)
    monkeypatch.setattr("xfeat.serve.http.server.cores", lambda: cores)
    options = ServerOptions(host="127.0.0.1", port=0, **{"device": "cpu", **asked})
    opened = open_sessions(ServeSpec(max_batch=3), options, model)
    assert given == [threads] * sessions
    assert [predictor.batch_size for predictor in opened] == [3] * sessions

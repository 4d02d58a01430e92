"""The queue: shared batches, limited length, no accepted image is lost. A gate delays the real network."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import wait

import numpy as np
import pytest

from tests.serve.sharing import HeldPredictor
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction, SkippedImage
from xfeat.serve.models.batching import Batcher, QueueFullError


@pytest.fixture
def gated(model):
    return HeldPredictor.open(model, device="cpu")


def pictures(tiny, *names):
    return [(name, tiny.draw((len(name), 50, 100))) for name in names]


def test_images_of_several_requests_share_a_batch(gated, tiny):
    batcher = Batcher(gated, max_queue=20, max_batch=8, batch_wait_s=30)
    first = batcher.submit(pictures(tiny, "blocker"))
    assert gated.entered.wait(30)
    rest = [batcher.submit(pictures(tiny, *names)) for names in (("a", "bb"), ("ccc",), ("dddd", "eeeee", "ffffff"))]
    gated.gate.set()
    results = [[future.result(30).path for future in futures] for futures in rest]
    batcher.close()
    assert first[0].result().path == "blocker"
    assert results == [["a", "bb"], ["ccc"], ["dddd", "eeeee", "ffffff"]]
    assert gated.batches[0] == ["blocker"]
    assert sorted(gated.batches[1]) == ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


def test_no_batch_is_larger_than_its_limit(gated, tiny):
    batcher = Batcher(gated, max_queue=20, max_batch=3, batch_wait_s=30)
    gated.gate.set()
    futures = batcher.submit(pictures(tiny, *"abcdefgh"))
    batcher.close()
    assert [future.result().path for future in futures] == list("abcdefgh")
    sizes = [len(batch) for batch in gated.batches]
    assert max(sizes) <= 3
    assert sum(sizes) == 8


def test_a_prediction_does_not_depend_on_the_batch(predictor, tiny):
    images = pictures(tiny, *(f"{'x' * number}" for number in range(1, 12)))
    batcher = Batcher(predictor, max_queue=20, batch_wait_s=0.05)
    together = [future.result(30) for future in batcher.submit(images)]
    batcher.close()
    for (name, content), result in zip(images, together, strict=True):
        alone = predictor.predict_bytes([content], names=[name])[0]
        assert result.path == name
        assert result.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_a_full_queue_rejects_a_whole_request_and_accepts_it_later(gated, tiny):
    batcher = Batcher(gated, max_queue=3, max_batch=1)
    accepted = batcher.submit(pictures(tiny, "a", "b"))
    with pytest.raises(QueueFullError):
        batcher.submit(pictures(tiny, "c", "d"))
    assert batcher.pending == 2
    gated.gate.set()
    wait(accepted, 30)
    assert [future.result(30).path for future in batcher.submit(pictures(tiny, "c", "d"))] == ["c", "d"]
    batcher.close()
    assert batcher.pending == 0


def test_unreadable_and_failing_images_do_not_affect_others(write_model, tiny):
    predictor = Predictor.open(write_model(fails_above=True))
    batcher = Batcher(predictor, max_queue=20, max_batch=8, batch_wait_s=0.2)
    images = [("fine", tiny.draw((9, 9, 9))), ("text", b"text"), ("white", tiny.draw((255, 255, 255)))]
    fine, text, white = (future.result(30) for future in batcher.submit(images))
    after = batcher.submit([("after", tiny.draw((1, 1, 1)))])[0].result(30)
    batcher.close()
    assert isinstance(fine, Prediction)
    assert isinstance(after, Prediction)
    assert isinstance(text, SkippedImage)
    assert not text.by_model
    assert white == SkippedImage(path="white", reason="the model failed on it", by_model=True)
    assert batcher.pending == 0


def test_an_internal_error_is_set_on_the_future_and_the_queue_continues(predictor, tiny, monkeypatch):
    def defect(names, pixels, **wanted):
        raise ZeroDivisionError("an internal error")

    batcher = Batcher(predictor, max_queue=20)
    with monkeypatch.context() as patched:
        patched.setattr(predictor, "infer", defect)
        assert isinstance(batcher.submit(pictures(tiny, "a"))[0].exception(30), ZeroDivisionError)
    assert batcher.submit(pictures(tiny, "b"))[0].result(30).path == "b"
    batcher.close()
    assert batcher.pending == 0


def test_closing_computes_all_accepted_images_and_rejects_new_ones(gated, tiny):
    batcher = Batcher(gated, max_queue=20, max_batch=2)
    futures = batcher.submit(pictures(tiny, *"abcdefg"))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher.closed:
        time.sleep(0.001)
    with pytest.raises(QueueFullError, match="stopping"):
        batcher.submit(pictures(tiny, "late"))
    gated.gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert [future.result(0).path for future in futures] == list("abcdefg")


def test_an_image_cancelled_in_the_queue_is_not_computed(gated, tiny):
    batcher = Batcher(gated, max_queue=20, max_batch=1)
    batcher._decoders.submit(gated.gate.wait, 30)  # keeps all decoding threads busy
    for _ in range(64):
        batcher._decoders.submit(gated.gate.wait, 30)
    given_up, kept = batcher.submit(pictures(tiny, "given up", "kept"))
    assert given_up.cancel()
    gated.gate.set()
    assert kept.result(30).path == "kept"
    batcher.close()
    assert gated.batches == [["kept"]]
    assert batcher.pending == 0


@pytest.mark.parametrize("side", [32, 33], ids=["of the model's size", "waiting to be decoded"])
def test_cancelled_images_are_freed_before_their_turn(gated, tiny, side):
    batcher = Batcher(gated, max_queue=20, max_batch=1)
    [blocker] = batcher.submit([("blocker", np.zeros((32, 32, 3), np.uint8))])
    assert gated.entered.wait(30)
    for _ in range(64):  # keeps all decoding threads busy
        batcher._decoders.submit(gated.gate.wait, 30)
    pixels = np.zeros((side, side, 3), np.uint8)
    there = weakref.ref(pixels)
    [future] = batcher.submit([("gone", pixels)])
    del pixels
    assert there() is not None
    assert future.cancel()
    assert there() is None
    gated.gate.set()
    assert blocker.result(30).path == "blocker"
    batcher.close()
    assert (batcher.pending, gated.batches) == (0, [["blocker"]])

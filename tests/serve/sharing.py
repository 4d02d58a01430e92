"""What tests of the server share."""

from __future__ import annotations

import threading

from xfeat.serve.inference.predictor import Predictor


class HeldPredictor(Predictor):
    """The real predictor, except that the network waits for the gate; it records its batches."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches = []

    def infer(self, names, pixels, **wanted):
        self.entered.set()
        assert self.gate.wait(30)
        self.batches.append(list(names))
        return super().infer(names, pixels, **wanted)


def upload(*files):
    return [("files", file) for file in files]

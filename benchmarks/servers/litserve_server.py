"""The same model file behind LitServe, for ``serve_throughput.py``, which starts this with an interpreter that has it.

Batches are formed as in LitServe's documentation; image files are decoded with this project's own code, so that both
servers do the same work. Annotations stay objects here: LitServe looks at them to see that a form comes in.
"""

import sys

import litserve
import numpy as np
import onnxruntime
from fastapi import UploadFile

from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.specs import PreprocessSpec

MODEL, PORT, BATCH, THREADS, SIDE = sys.argv[1], *map(int, sys.argv[2:6])
BATCH_TIMEOUT_S = 0.004


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.spec = PreprocessSpec(size=SIDE)

    def decode_request(self, request: UploadFile) -> np.ndarray:
        return load_pixels(request.file.read(), self.spec)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        return self.session.run(["probabilities"], {"image": pixels})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False
    )

"""Settings of export, verify, bench, quantize and triton, as frozen dataclasses. No heavy imports."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.featurize.specs import require
from xfeat.featurize.urls import Root

if TYPE_CHECKING:
    from minisign import PublicKey

DEFAULT_MODEL = "model.onnx"
OPSETS = (13, 18)
PROVIDERS = ("cpu", "cuda")
MAX_THREADS = 1024  # a machine can have some tens of thousands of threads in all
MAX_COUNT = 2**31 - 1  # Triton's counts are int32
MAX_WAIT_MS = 3_600_000.0  # an hour
CUDA_GRAPHS = ("auto", "on", "off")
SNIPPET_LANGUAGES = ("python", "js", "cpp")
TRITON_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """How to export a run.

    Attributes:
        weights_file: the backbone's weights; by default the file that was used, or where ``xfeat`` finds them.
        features: the run's feature cache; by default where it was, or found near the run by its content.
        data: folder of the images; by default the one that was featurized.
        max_check_images: largest number of test images in the parity check.
        allow_changed_cache: export although the feature cache has changed since the run, without the ood score.
        opset: of the core model, 18 or 13.
        ood: add the out-of-distribution score, for which the feature cache is needed.
        tolerance: largest difference between a probability of the full model and the one in predictions.csv. Only for
            runs whose features were computed in a precision other than float32.
    """

    weights_file: Path | None = None
    features: Path | None = None
    data: Root | None = None
    max_check_images: int = 512
    allow_changed_cache: bool = False
    opset: int = 18
    ood: bool = True
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        require(self.opset in OPSETS, "unsupported opset", expected=" or ".join(map(str, OPSETS)), found=self.opset)
        require(0 < self.tolerance <= 1, "tolerance out of range", expected="above 0, at most 1", found=self.tolerance)


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    """What to compare a model with.

    Attributes:
        data: folder of the images; without it (and without a run) no predictions are compared.
        weights_file: the backbone's weights; by default those of the run.
        certificate: by default the one beside the model.
        require_signature: the key that must have signed the certificate; ``None`` if none has to.
        gate: largest loss of accuracy, sensitivity or AUC on the validation images against torch, in percentage
            points. Only for models of lower precision that are compared with a run.
        require_cuda: fail without a GPU, or if part of the network would run on the CPU.
    """

    data: Root | None = None
    weights_file: Path | None = None
    certificate: Path | None = None
    require_signature: PublicKey | None = None
    gate: float = 0.5
    require_cuda: bool = False

    def __post_init__(self) -> None:
        require(self.gate >= 0, "gate out of range", expected="0 or more percentage points", found=self.gate)


@dataclass(frozen=True, kw_only=True)
class BenchSpec:
    """What to benchmark.

    Attributes:
        batches: images per call.
        threads: of the network on the CPU.
        seconds: duration of each measurement.
        providers: ``cpu``, ``cuda`` or both, each of which has to work; by default all that are available.
        cuda_graphs: on a GPU: ``auto`` records them if possible, ``on`` or ``off``.
        spin: let threads on the CPU spin while they wait for one another during a call, as onnxruntime does by default
            and torch does; ``xserve`` does not, since it decodes images on the same cores.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    threads: tuple[int, ...] = (1,)
    seconds: float = 2.0
    providers: tuple[str, ...] = ()
    cuda_graphs: str = "auto"
    spin: bool = True

    def __post_init__(self) -> None:
        for name in ("batches", "threads"):
            numbers = getattr(self, name)
            fits = bool(numbers) and min(numbers) >= 1
            require(fits, f"{name} out of range", expected="whole numbers from 1", found=list(numbers))
        most = max(self.threads)
        require(most <= MAX_THREADS, "threads out of range", expected=f"at most {MAX_THREADS}", found=most)
        require(0 <= self.seconds < math.inf, "seconds out of range", expected="0 or more", found=self.seconds)
        known = set(self.providers) <= set(PROVIDERS)
        require(known, "unknown provider", expected=" or ".join(PROVIDERS), found=self.providers)


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """How to quantise a model, and how much accuracy it may lose.

    Attributes:
        precision: ``int8`` or ``float16``.
        gate: largest loss of accuracy, sensitivity or AUC on the validation images, in percentage points.
        calibration_images: training images on which channels are equalised and the mean of the features is corrected.
            Layers are quantised on a part of them: 32 at 224 pixels, more of smaller images, fewer of larger ones.
        data: folder of the images; by default the one that was featurized.
    """

    precision: str = "int8"
    gate: float = 0.5
    calibration_images: int = 300
    data: Root | None = None

    def __post_init__(self) -> None:
        known = self.precision in ("int8", "float16")
        require(known, "unknown precision", expected="int8 or float16", found=self.precision)
        require(self.gate >= 0, "gate out of range", expected="0 or more percentage points", found=self.gate)
        images = self.calibration_images
        require(images > 0, "calibration_images out of range", expected="1 or more", found=images)
        if self.precision == "float16":
            default = type(self).calibration_images
            require(images == default, "calibration_images is for int8 only", expected="none", found=images)


@dataclass(frozen=True, kw_only=True)
class TritonSpec:
    """How Triton serves a model.

    Attributes:
        name: of the model in Triton; by default the file's name without the suffix.
        model_version: name of the folder with the model file; Triton serves the highest version.
        max_batch: largest number of images per call of the network.
        batch_wait_ms: how long the first image of a batch waits for others of its size.
        instances: copies of the model, per GPU if there are any.
        device: ``auto`` uses GPUs if Triton finds any; ``cpu``; or ``gpu``: without one Triton refuses the model.
        storage_uri: where KServe finds the repository; by default a volume claim with the name of its folder.
    """

    name: str | None = None
    model_version: int = 1
    max_batch: int = 8
    batch_wait_ms: float = 4.0
    instances: int = 1
    device: str = "auto"
    storage_uri: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            require_model_name(self.name)
        for name in ("model_version", "max_batch", "instances"):
            value = getattr(self, name)
            require(0 < value <= MAX_COUNT, f"{name} out of range", expected=f"1 to {MAX_COUNT}", found=value)
        wait, longest = self.batch_wait_ms, MAX_WAIT_MS
        require(0 <= wait <= longest, "batch_wait_ms out of range", expected=f"0 to {longest:.0f}", found=wait)
        require(self.device in TRITON_KINDS, "unknown device", expected="auto, cpu or gpu", found=self.device)


def require_model_name(name: str) -> str:
    """Return the name of a model in Triton, which is also the name of its folder, if it is valid.

    Raises:
        SpecError: if it has characters other than letters, digits, hyphens, dots and underscores.
    """
    valid = re.fullmatch(r"\w[\w.-]*", name) is not None
    require(valid, "not a valid name for a model", expected="letters, digits, - . _, as in --name m", found=name)
    return name

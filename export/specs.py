"""How to export and to quantise, as frozen dataclasses. No heavy imports: the command line reads its defaults."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from xfeat.featurize.specs import require

DEFAULT_MODEL = "model.onnx"
OPSETS = (13, 18)
PROVIDERS = ("cpu", "cuda")
MAX_THREADS = 1024  # each is a thread of the operating system, of which a machine has some tens of thousands
MAX_COUNT = 2**31 - 1  # Triton's counts are int32
MAX_WAIT_MS = 3_600_000.0  # an hour: nobody waits longer for an answer
CUDA_GRAPHS = ("auto", "on", "off")
TRITON_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """How to export.

    Attributes:
        weights_file: the backbone's weights; by default the file that was used, or where ``xfeat`` finds them.
        data: the folder of the images; by default the one that was featurized.
        max_check_images: at most so many test images are compared.
        allow_changed_cache: export although the cache has been made anew since; the distance is then left out.
        opset: of the core model, 18 or 13.
        ood: measure the distance from the training features, for which the cache is needed.
        tolerance: largest difference of a probability from those that the training noted.
    """

    weights_file: Path | None = None
    data: Path | None = None
    max_check_images: int = 512
    allow_changed_cache: bool = False
    opset: int = 18
    ood: bool = True
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        require(self.opset in OPSETS, "no such opset", expected=" or ".join(map(str, OPSETS)), found=self.opset)
        require(0 < self.tolerance <= 1, "tolerance out of range", expected="over 0, at most 1", found=self.tolerance)


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    """What to hold a model against.

    Attributes:
        data: the folder of the images; without it (and without a run) no answers are compared.
        weights_file: of the backbone, if they are not where the run found them.
        certificate: by default the one beside the model.
        gate: of models in fewer bits that are held against a run: largest loss of accuracy, sensitivity or AUC on the
            validation images, in points (hundredths), against torch.
        require_cuda: do not go on without a GPU, or with one that leaves part of the network to the CPU.
    """

    data: Path | None = None
    weights_file: Path | None = None
    certificate: Path | None = None
    gate: float = 0.5
    require_cuda: bool = False

    def __post_init__(self) -> None:
        require(self.gate >= 0, "negative gate", expected="0 or more points", found=self.gate)


@dataclass(frozen=True, kw_only=True)
class BenchSpec:
    """What to measure.

    Attributes:
        batches: images a call.
        threads: of the network on the CPU.
        seconds: of measurement per line.
        providers: of ``cpu`` and ``cuda`` those to measure, which are never replaced; by default all that are there.
        cuda_graphs: of models on a GPU: ``auto`` where they can be, ``on`` or ``off``.
        spin: let threads on the CPU spin while they wait for one another during a call, as onnxruntime does by default
            and torch's do; ``xserve`` does not, since its images are decoded on the same cores.
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
    """How to quantise, and what may be lost.

    Attributes:
        precision: ``int8`` or ``float16``.
        gate: largest loss of accuracy, sensitivity or AUC on the validation images, in points (hundredths).
        calibration_images: training images on which channels are equalised and the features' mean is put right; 32 of
            them at 224 pixels, more of smaller and fewer of larger images, are followed through the layers to round
            each; other ones each of three times, if they are no more than half.
        float_layers: exactly so many convolutions stay in float32, those that rounding hurts most; by default none,
            and where the gate refuses that, those of the first block and as few others as it needs.
        data: the folder of the images; by default the one that was featurized.
    """

    precision: str = "int8"
    gate: float = 0.5
    calibration_images: int = 300
    float_layers: int | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        require(self.precision in ("int8", "float16"), "unknown precision", expected="int8", found=self.precision)
        require(self.gate >= 0, "negative gate", expected="0 or more points", found=self.gate)
        require(self.calibration_images > 0, "nothing to calibrate on", expected="1", found=self.calibration_images)
        layers = self.float_layers
        require(layers is None or layers >= 0, "negative number of layers", expected="0 or more", found=layers)
        if self.precision == "float16":
            require(layers is None, "half precision keeps no layers in float32", expected="no number", found=layers)
            images, default = self.calibration_images, type(self).calibration_images
            require(images == default, "half precision is not calibrated", expected="no number of images", found=images)


@dataclass(frozen=True, kw_only=True)
class TritonSpec:
    """How Triton is to serve a model.

    Attributes:
        name: under which it answers; by default the file's name without the suffix.
        model_version: number of the folder that the file goes into; Triton serves the highest.
        max_batch: images a call of the network, at most.
        batch_wait_ms: how long the first image of a batch waits for others of its size.
        instances: copies of the model, on each GPU if there are any.
        device: ``auto`` takes GPUs if Triton sees any, ``cpu``, or ``gpu``: without one Triton refuses the model.
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
    """Return the name of a model in Triton, which is that of its folder, or refuse what would make another path.

    Raises:
        SpecError: if there is more in it than letters, digits, hyphens, dots and underscores.
    """
    plain = re.fullmatch(r"\w[\w.-]*", name) is not None
    require(plain, "not a name for a model", expected="letters, digits, - . _, as in --name m", found=name)
    return name

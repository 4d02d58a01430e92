"""The public names of xfeat. Written by `make docs`: a change here is a change of the interface."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from minisign import PublicKey

from xfeat.export.bench import Speed
from xfeat.export.card.write import WrittenCard
from xfeat.export.explain import Explanation
from xfeat.export.export import Export
from xfeat.export.quantization.quantize import Quantized
from xfeat.export.triton import Repository
from xfeat.export.verify import Verification
from xfeat.featurize.audit.findings import Audit
from xfeat.featurize.cached_features import CachedFeatures
from xfeat.featurize.datasets.split import SplitResult
from xfeat.featurize.doctor.report import Line
from xfeat.featurize.encoders.plugins import EncoderPlugin as EncoderPlugin
from xfeat.featurize.engines import BatchSize
from xfeat.featurize.errors import XfeatError as XfeatError
from xfeat.featurize.exchange.load import Loaded
from xfeat.featurize.extractor import FeatureExtractor as _FeatureExtractor
from xfeat.featurize.progress import Progress, StrPath
from xfeat.featurize.specs import Triple
from xfeat.featurize.urls import Root
from xfeat.head.classifier import HeadClassifier as HeadClassifier
from xfeat.head.compare.comparison import Comparison
from xfeat.head.crossval.run import SavedCrossval
from xfeat.head.evaluate import Evaluation
from xfeat.head.evaluation.subgroups import Bins
from xfeat.head.paper.writing import PaperFiles
from xfeat.head.public import Features
from xfeat.head.runs.reader import Run
from xfeat.head.sweep.ranking import SweepResult
from xfeat.serve.evaluation.evaluate import ModelEvaluation
from xfeat.serve.inference.predictor import Predictor as Predictor
from xfeat.serve.models.registry import ModelRegistry

class FeatureExtractor(_FeatureExtractor):
    def __init__(
        self,
        backbone: str = "auto",
        *,
        weights: StrPath | None = None,
        size: int | None = None,
        resize: str | None = None,
        crop: float | None = None,
        interpolation: str | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        normalize: str | None = None,
        pooling: str = "final",
        dtype: str = "float32",
        precision: str = "float32",
        grey_bits: int | None = None,
        frames: str = "refuse",
        weights_sha256: str | None = None,
        device: str = "auto",
        engine: str = "auto",
        batch_size: BatchSize = None,
        workers: int | None = None,
    ) -> None: ...

def audit(cache: StrPath = "features.h5", page: StrPath | None = None, *, progress: Progress | None = None) -> Audit:
    """Check whether metrics measured on a cache can be trusted: ``xfeat audit``."""

def bench(
    models: Sequence[StrPath] = ("model.onnx",),
    run: StrPath | Run | None = None,
    *,
    progress: Progress | None = None,
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    seconds: float = 2.0,
    providers: Sequence[str] = (),
    cuda_graphs: str = "auto",
    spin: bool = True,
) -> list[Speed]:
    """Measure latency and images per second of models: ``xexport bench``."""

def compare(
    runs: Sequence[StrPath | Run] = (),
    folder: StrPath = "runs",
    *,
    sort: str = "accuracy",
    baselines: bool = False,
    features: StrPath | None = None,
    csv_file: StrPath | None = None,
    html_file: StrPath | None = None,
) -> Comparison:
    """Compare runs: settings, metrics, and whether a difference is larger than chance: ``xhead compare``."""

def cross_validate(
    features: Features = "features.h5",
    runs: StrPath = "runs",
    *,
    name: str | None = None,
    positive: str | None = None,
    target_sensitivity: float | None = None,
    bins: Bins | None = None,
    baselines: bool = False,
    corrections: StrPath | None = None,
    pooling: str | None = None,
    mlflow: str | None = None,
    tensorboard: StrPath | None = None,
    progress: Progress | None = None,
    hidden: Sequence[int] = (512, 128),
    dropout: float = 0.4,
    feature_dropout: float = 0.0,
    epochs: int = 10,
    lr: float = 0.0005,
    batch_size: int = 32,
    weight_decay: float = 0.0,
    class_weight: str = "none",
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    schedule: str = "constant",
    patience: int = 0,
    average: float = 0.0,
    seed: int = 0,
    folds: int = 5,
    seeds: int = 1,
    by_image: bool = True,
    members: int = 1,
    leave_out: str | None = None,
    memory_mb: float = 1000.0,
) -> SavedCrossval:
    """Test every image once, by a head trained on neither it nor its patient: ``xhead crossval``."""

def describe(model: StrPath = "model.onnx") -> dict[str, Any]:
    """Describe a model file: classes, settings, fingerprints, threshold, size, operators: ``xexport info``."""

def doctor(*, connect: bool = False) -> dict[str, list[Line]]:
    """Try what works on this machine: ``xfeat doctor``."""

def dump(cache: StrPath, table: StrPath) -> list[str]:
    """Write a cache as a table for other programs: ``xfeat dump``."""

def evaluate(
    run: StrPath | Run,
    data: Features,
    *,
    features: StrPath | None = None,
    groups: str | None = None,
    layout: str | None = None,
    metadata: StrPath | None = None,
    columns: str | None = None,
    weights: StrPath | None = None,
    device: str = "auto",
    bins: Bins | None = None,
    name: str | None = None,
    runs: StrPath | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Test a run on an external data set and show the drop from its own test images: ``xhead eval``."""

def evaluate_model(
    model: StrPath,
    data: StrPath,
    *,
    positive: str | None = None,
    threshold: float | None = None,
    groups: str | None = None,
    layout: str | None = None,
    described: Mapping[str, Any] | None = None,
    metadata: StrPath | None = None,
    progress: Progress | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    allow_unverified: bool = False,
    require_signature: PublicKey | None = None,
) -> ModelEvaluation:
    """Measure an ONNX classifier on labelled images, without torch: ``xserve eval``."""

def explain(
    model: StrPath,
    images: Sequence[StrPath],
    *,
    output: StrPath = "explained",
    shown: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[Explanation], list[tuple[str, str]]]:
    """Write each image with the model's heatmap (Grad-CAM) over it: ``xexport explain``."""

def export_onnx(
    classifier: Any,
    extractor: FeatureExtractor,
    output: StrPath = "model.onnx",
    *,
    check: Any,
    ood: Any = None,
    positive: str | None = None,
    threshold: float | None = None,
    opset: int = 18,
    max_check_images: int = 512,
    tolerance: float = 0.0001,
    progress: Progress | None = None,
) -> Export:
    """Export a fitted classifier, with the network of its features, to one ONNX model that is checked."""

def export_run(
    run: StrPath | Run | None = None,
    output: StrPath = "model.onnx",
    *,
    progress: Progress | None = None,
    weights_file: StrPath | None = None,
    features: StrPath | None = None,
    data: Root | None = None,
    max_check_images: int = 512,
    allow_changed_cache: bool = False,
    opset: int = 18,
    ood: bool = True,
    tolerance: float = 0.0001,
) -> Export:
    """Export a run to one ONNX model that is checked against the trained model: ``xexport onnx``."""

def extract(
    data: StrPath | pandas.DataFrame,
    output: StrPath = "features.h5",
    *,
    classes: Sequence[str] | None = None,
    groups: str | None = None,
    layout: str | None = None,
    metadata: StrPath | None = None,
    columns: str | None = None,
    device: str = "auto",
    engine: str = "auto",
    ray_address: str | None = None,
    batch_size: BatchSize = None,
    workers: int | None = None,
    decode_in: str = "auto",
    on_error: str = "skip",
    corrections: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    backbone: str = "auto",
    weights: StrPath | None = None,
    size: int | None = None,
    resize: str | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    normalize: str | None = None,
    pooling: str = "final",
    views: int = 1,
    dtype: str = "float32",
    precision: str = "float32",
    grey_bits: int | None = None,
    frames: str = "refuse",
) -> CachedFeatures:
    """Compute the features of all images in ``data`` into a cache: ``xfeat featurize``."""

def load(
    table: StrPath,
    output: StrPath = "features.h5",
    *,
    columns: str | None = None,
    name: str | None = None,
    data: StrPath | None = None,
    check: bool = True,
    force: bool = False,
    progress: Progress | None = None,
    backbone: str = "auto",
    weights: StrPath | None = None,
    size: int | None = None,
    resize: str | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    normalize: str | None = None,
    pooling: str = "final",
    views: int = 1,
    dtype: str = "float32",
    precision: str = "float32",
    grey_bits: int | None = None,
    frames: str = "refuse",
) -> Loaded:
    """Make a cache of features that were computed elsewhere, or dumped: ``xfeat load``."""

def open_cache(path: StrPath = "features.h5", *, check: bool = True) -> CachedFeatures:
    """Open a cache: ``xfeat info`` and ``xfeat verify``."""

def open_run(folder: StrPath = "runs/latest") -> Run:
    """Read a run folder."""

def quantize(
    model: StrPath = "model.onnx",
    output: StrPath | None = None,
    *,
    run: StrPath | Run | None = None,
    progress: Progress | None = None,
    precision: str = "int8",
    gate: float = 0.5,
    calibration_images: int = 300,
    data: Root | None = None,
) -> Quantized:
    """Write a model in 8 bits or half precision, if it passes the accuracy gate: ``xexport quantize``."""

def sign(model: StrPath, key: StrPath) -> Path:
    """Sign the certificate of a model, in minisign's format, after comparing the two: ``xexport sign``."""

def split(
    src: StrPath,
    dst: StrPath,
    *,
    ratios: Sequence[float] = (60, 20, 20),
    seed: int = 0,
    link: bool = False,
    groups: str | None = None,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    metadata: StrPath | None = None,
    columns: str | None = None,
    progress: Progress | None = None,
) -> SplitResult:
    """Divide class folders into train, valid and test: ``xfeat split``."""

def start_server(
    model: StrPath = "model.onnx",
    on_ready: Callable[[str, ModelRegistry], None] | None = None,
    *,
    max_body_bytes: int = 33554432,
    max_memory_bytes: int = 536870912,
    max_files: int = 64,
    max_queue: int = 256,
    max_batch: int | None = None,
    batch_wait_ms: float = 4.0,
    header_timeout_s: float = 10.0,
    body_timeout_s: float = 60.0,
    answer_timeout_s: float = 60.0,
    drain_timeout_s: float = 30.0,
    retry_after_s: int = 1,
    drift_window: int = 1000,
    api_key: str | None = None,
    root_path: str = "",
    trust_forwarded_prefix: bool = False,
    trusted_proxy: Sequence[str] = (),
    cors_origin: Sequence[str] = (),
    allowed_host: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    default_model: str | None = None,
    device: str = "auto",
    cuda_graphs: str = "auto",
    sessions: int | None = None,
    threads: int | None = None,
    log_format: str = "off",
    log_client: bool = True,
    allow_unverified: bool = False,
    require_signature: PublicKey | None = None,
    watch_s: float | None = None,
) -> None:
    """Serve a model over HTTP, with a web page, until Ctrl-C or SIGTERM: ``xserve start``."""

def sweep(
    features: Features = "features.h5",
    runs: StrPath = "runs",
    *,
    name: str | None = None,
    seeds: int = 1,
    first_seed: int = 0,
    trials: int | None = None,
    sampler: str = "spread",
    rank: str = "loss",
    time_limit: float | None = None,
    device: str = "cpu",
    memory_mb: float = 1000.0,
    corrections: StrPath | None = None,
    mlflow: str | None = None,
    tensorboard: StrPath | None = None,
    progress: Progress | None = None,
    **axes: Any,
) -> SweepResult:
    """Train many heads at once and write the best one as a run: ``xhead sweep``."""

def train(
    features: Features = "features.h5",
    runs: StrPath = "runs",
    *,
    name: str | None = None,
    positive: str | None = None,
    target_sensitivity: float | None = None,
    threshold_from: StrPath | float | None = None,
    bins: Bins | None = None,
    calibrate: bool = True,
    members: int = 1,
    corrections: StrPath | None = None,
    pooling: str | None = None,
    mlflow: str | None = None,
    tensorboard: StrPath | None = None,
    progress: Progress | None = None,
    hidden: Sequence[int] = (512, 128),
    dropout: float = 0.4,
    feature_dropout: float = 0.0,
    epochs: int = 10,
    lr: float = 0.0005,
    batch_size: int = 32,
    weight_decay: float = 0.0,
    class_weight: str = "none",
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    schedule: str = "constant",
    patience: int = 0,
    average: float = 0.0,
    seed: int = 0,
    memory_mb: float = 1000.0,
) -> Run:
    """Train one head and write its run folder with metrics, predictions and a report: ``xhead train``."""

def verify(
    model: StrPath = "model.onnx",
    data: StrPath | None = None,
    *,
    run: StrPath | Run | None = None,
    weights_file: StrPath | None = None,
    certificate: StrPath | None = None,
    require_signature: StrPath | PublicKey | None = None,
    gate: float = 0.5,
    require_cuda: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Check that a model is the file that was exported, and still gives its predictions: ``xexport verify``."""

def write_card(
    model: StrPath = "model.onnx",
    output: StrPath = "card",
    *,
    run: StrPath | None = None,
    evaluations: Sequence[StrPath] = (),
    license: str | None = None,
) -> WrittenCard:
    """Write the card of a model, checklists of reporting guidelines and an ML-BOM: ``xexport card``."""

def write_figures(
    result: StrPath = "runs/latest", output: StrPath = "figures", *, features: StrPath | None = None
) -> PaperFiles:
    """Write the figures and the methods section of a paper: ``xhead report``."""

def write_page(
    model: StrPath,
    output: StrPath,
    *,
    single: bool = False,
    runtime: StrPath | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write a web page that runs a model in the browser, as a folder of files or as one file: ``xserve page``."""

def write_snippet(model: StrPath = "model.onnx", language: str = "python") -> str:
    """Return a program that classifies image files with a model, without xfeat: ``xexport snippet``."""

def write_triton(
    model: StrPath = "model.onnx",
    output: StrPath = "triton",
    *,
    name: str | None = None,
    model_version: int = 1,
    max_batch: int = 8,
    batch_wait_ms: float = 4.0,
    instances: int = 1,
    device: str = "auto",
    storage_uri: str | None = None,
) -> Repository:
    """Write a model into a model repository for NVIDIA Triton: ``xexport triton``."""

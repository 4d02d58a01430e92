"""Writes a model repository for NVIDIA Triton, and a manifest with which KServe serves it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.model.interface import PROBABILITIES, Tensor
from xfeat.export.parity.certificate import matching_certificate
from xfeat.export.specs import TRITON_KINDS, TritonSpec, require_model_name
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.cuda import cuda_provider

MANIFEST = "kserve.json"
# Source: Triton's docs/introduction/compatibility.md: 25.12 has onnxruntime 1.23.2. Before 24.05 (1.18.0) it could not
# read files of IR version 10, and the version that KServe chooses by default has been older than that.
TRITON_VERSION = "25.12-py3"

_LABELS = "labels.txt"
_MODEL = "model.onnx"
_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}

# Dynamic batching combines requests of one shape; each image size forms batches of its own.
_CONFIG = """\
name: {name}
backend: "onnxruntime"
max_batch_size: {max_batch}
input [{inputs}
]
output [{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
instance_group [ {{ count: {instances} kind: {kind} }} ]
optimization {{ execution_accelerators {{ gpu_execution_accelerator [ {{ name: "cuda"{cuda}
}} ] }} }}
model_warmup [ {{
  name: "black image"
  batch_size: 1
  inputs {{ key: "image" value {{ data_type: {type} dims: {warm_up} zero_data: true }} }}
}} ]
{parameters}
"""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """The files that were written.

    Attributes:
        folder: for ``tritonserver --model-repository``.
        name: of the model in Triton.
        model: the copy of the model file.
        config: Triton's description of the model.
        labels: class names, one per line.
        manifest: KServe's InferenceService.
        storage_uri: where the manifest expects the repository.
    """

    folder: Path
    name: str
    model: Path
    config: Path
    labels: Path
    manifest: Path
    storage_uri: str


def write_repository(model: Path, folder: Path, spec: TritonSpec | None = None) -> Repository:
    """Write a model into a Triton model repository, and a manifest for KServe beside it.

    Other models in the repository are not changed. The model file is written last: a Triton that watches the folder
    sees no model before its configuration.

    Args:
        model: a full or core model written by ``xexport onnx``.
        folder: the repository.
        spec: how Triton serves it.

    Raises:
        ModelError: if the file was not written by this project.
        MismatchError: if it does not match the certificate beside it.
        SpecError: if the file's name is not valid for a model in Triton.
        OutputError: if something cannot be written.
    """
    spec = spec or TritonSpec()
    opened = open_model(model)
    matching_certificate(opened)
    name = require_model_name(spec.name or model.stem)
    home = folder / name
    written = Repository(
        folder=folder,
        name=name,
        model=home / str(spec.model_version) / _MODEL,
        config=home / "config.pbtxt",
        labels=home / _LABELS,
        manifest=folder / MANIFEST,
        storage_uri=spec.storage_uri or f"pvc://{_service_name(folder)}",
    )
    texts = {
        written.labels: "".join(f"{' '.join(label.splitlines())}\n" for label in opened.metadata.class_names),
        written.config: config_text(opened, name, spec),
        written.manifest: _manifest(written, spec),
    }
    for path, text in texts.items():
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="surrogateescape")
    with replacing(written.model) as partial:
        partial.write_bytes(opened.read())
    return written


def config_text(opened: ModelFile, name: str, spec: TritonSpec) -> str:
    """Return ``config.pbtxt``: Triton's ModelConfig in protobuf's text format.

    CUDA has the options of the parity check. The metadata are among the parameters, where clients find classes and
    threshold. The input ``threshold`` is left out, since every input of a batch has the batch axis: ``decision`` is by
    the model's own.
    """
    size = opened.metadata.feature_spec.preprocess.size
    [image] = opened.inputs
    cuda = {key: value for key, value in cuda_provider(0)[1].items() if key != "device_id"}
    props = opened.metadata.to_props()
    return _CONFIG.format(
        name=_quoted(name),
        max_batch=spec.max_batch,
        inputs=_tensor(image),
        outputs=",".join(map(_tensor, opened.outputs)),
        delay=round(spec.batch_wait_ms * 1000),
        instances=spec.instances,
        kind=TRITON_KINDS[spec.device],
        cuda="".join(f"\n  parameters {{ key: {_quoted(key)} value: {_quoted(cuda[key])} }}" for key in cuda),
        type=_TYPES[image.kind],
        warm_up=[size if axis == -1 else axis for axis in image.shape[1:]],
        parameters="\n".join(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(props[key])} }} }}" for key in props
        ),
    )


def _tensor(tensor: Tensor) -> str:
    # Triton adds the batch axis itself. It requires at least one other, which `reshape` removes before the model.
    dims = list(tensor.shape[1:])
    extra = "" if dims else " reshape { shape: [ ] }"
    if tensor.name == PROBABILITIES:
        extra += f' label_filename: "{_LABELS}"'
    return f"\n  {{ name: {_quoted(tensor.name)} data_type: {_TYPES[tensor.kind]} dims: {dims or [1]}{extra} }}"


def _manifest(written: Repository, spec: TritonSpec) -> str:
    # Source: KServe's API reference, v1beta1 ModelSpec; the runtime is part of its installation.
    model: dict[str, Any] = {
        "modelFormat": {"name": "triton"},
        "runtime": "kserve-tritonserver",
        "runtimeVersion": TRITON_VERSION,
        "protocolVersion": "v2",
        "storageUri": written.storage_uri,
    }
    if spec.device == "gpu":
        model["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _service_name(written.folder)},
        "spec": {"predictor": {"model": model}},
    }
    return json.dumps(service, indent=1) + "\n"


def _service_name(folder: Path) -> str:
    """Return the folder's name in the form of Kubernetes: lower-case letters, digits, hyphens; a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).lstrip("-0123456789")
    return name[:40].rstrip("-") or "models"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

"""``timm:NAME``: a pretrained model of timm, converted to ONNX once."""

from __future__ import annotations

import difflib
import logging
import math
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import huggingface_hub as hub
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model, list_models
from torch import nn

from xfeat.featurize.backbones.encoder_file import token_grid
from xfeat.featurize.backbones.weights import check_connection, sha256_of
from xfeat.featurize.encoders.convert import convert_module
from xfeat.featurize.engines.feature_graph import converted_once
from xfeat.featurize.errors import SpecError, WeightsError
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.onnx_session import first_line
from xfeat.featurize.system.user_cache import ANOTHER_CACHE

logger = logging.getLogger(__name__)

_FILE = "model.safetensors"
# Raised whenever the conversion changes.
_VERSION = 1


def convert_timm_model(name: str, *, checkpoint: Path | None, size: int | None) -> Path:
    """Return the ONNX file of a timm model, converting it if that has not been done yet.

    Args:
        name: as ``timm.create_model`` takes it, such as ``resnet18.a1_in1k``.
        checkpoint: file of its weights; by default those of timm's hub, downloaded if they are not there.
        size: side of the images in pixels; by default the model's own.

    Raises:
        SpecError: if timm has no such model.
        WeightsError: if its weights cannot be downloaded or loaded.
        ModelError: if it cannot be converted.
    """
    config = _config(name)
    if checkpoint is not None and not checkpoint.is_file():
        raise WeightsError("weights file not found", path=checkpoint, fix="check the path given to --weights")
    weights = checkpoint or _hub_file(name, config)

    def convert(path: Path) -> None:
        model = _model(name, config, weights, size)
        own = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        preprocess = _preprocess(name, own, size)
        module, pooling = _encoder(model, preprocess.size)
        content = convert_module(module, f"timm:{name}", preprocess.size, preprocess, pooling)
        with replacing(path, elsewhere=ANOTHER_CACHE) as partial:
            partial.write_bytes(content)

    recipe = f"{_VERSION} {name} {size} {sha256_of(weights)} {timm.__version__} {torch.__version__}"
    return converted_once(f"timm-{name}", recipe, convert)


def _config(name: str) -> Any:
    """Return what timm says of a model."""
    try:
        config = get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # no weights of that tag
        config = None
    if config is None:
        # Its weights are named after a dot; either may be wrong.
        model = name.partition(".")[0]
        near = list_models(f"{model}.*", pretrained=True) or difflib.get_close_matches(model, list_models(), n=5)
        raise SpecError(
            "timm has no such model", expected=", ".join(near) or "a name of timm.list_models()", found=name
        )
    return config


def _hub_file(name: str, config: Any) -> Path:
    """Return the weights file in the cache of timm's hub; download it if it is not there."""
    if not config.hf_hub_id:
        fix = (
            f"download {config.url} and give it with --weights FILE"
            if config.url
            else "give a file with --weights FILE"
        )
        raise WeightsError(f"the weights of timm:{name} are not on timm's hub", fix=fix)

    found = hub.try_to_load_from_cache(config.hf_hub_id, _FILE)
    if isinstance(found, str):
        return Path(found)
    endpoint = hub.constants.ENDPOINT
    url = f"{endpoint}/{config.hf_hub_id}/resolve/main/{_FILE}"
    try:
        if not hub.constants.HF_HUB_OFFLINE:
            _check_connection(endpoint)
        # The newest file is asked for; its digest becomes part of the spec.
        return Path(hub.hf_hub_download(config.hf_hub_id, _FILE, etag_timeout=6))  # nosec B615
    except Exception as error:
        raise WeightsError(
            f"the weights of timm:{name} cannot be downloaded",
            expected=url,
            found=first_line(error),
            fix=f"download {url} on a machine with internet access, and give it with --weights {_FILE}",
        ) from error


def _check_connection(endpoint: str) -> None:
    """Raise within seconds if there is no answer: the hub would try for minutes."""
    try:
        check_connection(endpoint)
    except WeightsError as error:
        if not isinstance(error.__cause__, HTTPError):  # a mirror need not have a page at its root
            raise


def _model(name: str, config: Any, weights: Path, size: int | None) -> Any:
    """Return the model without its classifier."""
    # Transformers have weights per position; timm interpolates them for another size.
    sized: dict[str, Any] = {"img_size": size} if size is not None and config.fixed_input_size else {}
    try:
        # With its own number of classes, or timm would accept a file in which weights are missing.
        model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **sized)
    except Exception as error:
        raise WeightsError(
            f"not the weights of timm:{name}",
            path=weights,
            expected=f"a checkpoint of {name}, as timm saves it",
            found=" ".join(str(error).split())[:200],
            fix="choose the model of this file with --backbone timm:NAME, or another file with --weights",
        ) from error
    model.reset_classifier(0)
    return model.eval()


def _preprocess(name: str, config: dict[str, Any], size: int | None) -> PreprocessSpec:
    """Return how timm prepares images for a model.

    Source: ``timm.data.transforms_factory.transforms_imagenet_eval``: resized to the size divided by ``crop_pct``, of
    which the centre is taken.
    """
    own = config["input_size"][-1]
    if config["crop_mode"] == "border":
        logger.warning("timm:%s pads images to a square; here their aspect ratio is changed instead", name)
    return PreprocessSpec(
        size=own if size is None else size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize="crop" if config["crop_mode"] == "center" else "squash",
        crop=max(0.0, (1 - config["crop_pct"]) / 2),
        interpolation=config["interpolation"],
    )


class LastGrid(nn.Module):
    """The last map of a timm model with the channels first, or its last tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.channels_last = str(getattr(model, "output_fmt", "")).endswith("NHWC")

    def forward(self, images: torch.Tensor) -> Any:
        grid = self.model.forward_features(images)
        return grid.permute(0, 3, 1, 2) if self.channels_last else grid


def _encoder(model: Any, size: int) -> tuple[nn.Module, str]:
    """Return a module for the features of a model, and the pooling of its output.

    Where timm's features are a mean of the last map or tokens, or the class token, the module returns the map or the
    tokens, so that heatmaps are possible; else it returns the features.
    """
    images = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pooled, grid = model(images), LastGrid(model)(images)
    candidates: dict[str, torch.Tensor] = {}
    if isinstance(grid, torch.Tensor) and grid.ndim == 4:
        candidates[""] = grid.mean((2, 3))
    elif isinstance(grid, torch.Tensor) and grid.ndim == 3:
        count = math.prod(token_grid(grid.shape[1]) or (grid.shape[1],))
        candidates = {"cls": grid[:, 0], "mean": grid[:, -count:].mean(1)}
    for pooling, candidate in candidates.items():
        if candidate.shape == pooled.shape and torch.allclose(candidate, pooled, 1e-4, 1e-4):
            return LastGrid(model), pooling
    return model, ""

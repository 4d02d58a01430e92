"""The fused torch module against its parts, and its heatmap against Grad-CAM by autograd."""

from __future__ import annotations

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from xfeat.export.build.fused_model import FusedModel, ReferenceModel
from xfeat.featurize.backbones.network import Backbone
from xfeat.featurize.specs import PreprocessSpec
from xfeat.head.specs import HeadSpec
from xfeat.head.training.ensemble import average_of
from xfeat.head.training.network import build_head

SPEC = PreprocessSpec(size=64)


@pytest.fixture(scope="module", params=["final", "multilevel"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    model = EfficientNet.from_name("efficientnet-lite0", image_size=64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    return Backbone(model, request.param)


def head_for(backbone: Backbone, spec: HeadSpec, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    head = build_head(spec, dim=backbone.dim, classes=3)
    head.train()
    with torch.no_grad():
        for _ in range(20):
            head(torch.rand(16, backbone.dim))
    return head.eval()


def pixels(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def grad_cam_by_autograd(backbone: Backbone, head: nn.Module, images: Tensor) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, for every class, at the backbone's last layer."""
    maps = [m.requires_grad_() if i == 0 else m for i, m in enumerate(backbone.maps(images))]
    logits = head(torch.cat([m.mean((2, 3)) for m in maps], dim=1))
    cams = []
    for c in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, c].sum(), maps[0], retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)
        cams.append(torch.relu((weights * maps[0]).sum(1)))
    return torch.stack(cams, dim=1).detach()


@pytest.mark.parametrize("members", [1, 3], ids=["one head", "ensemble"])
@pytest.mark.parametrize("feature_dropout", [0.0, 0.2])
@pytest.mark.parametrize("hidden", [(), (16,), (32, 8)], ids=str)
def test_the_heatmap_is_the_grad_cam_of_autograd_for_every_class(
    backbone: Backbone, hidden: tuple[int, ...], feature_dropout: float, members: int
) -> None:
    spec = HeadSpec(hidden=hidden, feature_dropout=feature_dropout)
    heads = [head_for(backbone, spec, seed) for seed in range(members)]
    head = heads[0] if members == 1 else average_of(heads, spec, dim=backbone.dim, classes=3)
    model = FusedModel(ReferenceModel(backbone, head, SPEC, 1.0))
    with torch.no_grad():
        _, _, heatmap = model(pixels())
    expected = grad_cam_by_autograd(backbone, head, model.normalize(pixels()))
    assert heatmap.shape == (3, 3, 2, 2)
    assert expected.max() > 0
    torch.testing.assert_close(heatmap, expected, atol=1e-5, rtol=1e-5)


def test_probabilities_are_those_of_backbone_then_head_then_temperature(backbone: Backbone) -> None:
    head = head_for(backbone, HeadSpec(hidden=(16,)))
    with torch.no_grad():
        logits = head(backbone(ReferenceModel(backbone, head, SPEC, 1.0).normalize(pixels())))
        probabilities, found_logits, _ = FusedModel(ReferenceModel(backbone, head, SPEC, 2.5))(pixels())
        plain = ReferenceModel(backbone, head, SPEC, 2.5)(pixels())
    torch.testing.assert_close(found_logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probabilities, torch.softmax(logits / 2.5, 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(plain, torch.softmax(logits / 2.5, 1))


def test_both_input_layouts_give_the_same_outputs(backbone: Backbone) -> None:
    model = FusedModel(ReferenceModel(backbone, head_for(backbone, HeadSpec(hidden=())), SPEC, 1.0))
    with torch.no_grad():
        as_bytes = model(pixels())
        as_floats = model(pixels().permute(0, 3, 1, 2).float())
    torch.testing.assert_close(as_bytes, as_floats)

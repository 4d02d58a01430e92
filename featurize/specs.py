"""What a cache holds, as frozen dataclasses: two caches with the same fingerprint are interchangeable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from xfeat.featurize.errors import MismatchError, SpecError, XfeatError
from xfeat.featurize.typed_json import check_types

Triple = tuple[float, float, float]

# Source: means and standard deviations of ImageNet as torchvision's classification references use them.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {"half": (HALF, HALF), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}
DEFAULT_CACHE = "features.h5"
# Start of the name of a backbone that nobody has named: features that were loaded from a table.
LOADED = "loaded:"
TOKEN_POOLINGS = ("cls", "mean")
POOLINGS = ("final", "multilevel", *TOKEN_POOLINGS)
DTYPES = ("float32", "float16")
PRECISIONS = ("float32", "bfloat16", "float16")
ENGINES = ("auto", "torch", "onnxruntime", "openvino", "ray")
MAX_VIEWS = 64
RESIZES = ("squash", "crop")
INTERPOLATIONS = ("bilinear", "bicubic")
GREY_BITS = range(8, 17)
SIDES = range(32, 1025)
FRAMES = ("first", "middle", "refuse")
# Shares of a side are whole millionths, so that Python, JavaScript and an ONNX graph cut off the same pixels.
CROP_PARTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A set of validated settings that converts to and from JSON."""

    nested: ClassVar[dict[str, type[Spec]]] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types (tuples become lists)."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """Build a spec from :meth:`to_dict`'s form.

        Raises:
            SpecError: if a key is unknown, or a value is of another type or out of range.
        """
        if not isinstance(settings, dict):
            raise SpecError(f"settings of {cls.__name__} are not an object", found=repr(settings)[:80])
        settings = cls._upgraded(settings)
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise SpecError(
                f"unknown setting of {cls.__name__}: {', '.join(unknown)}",
                expected=", ".join(sorted(known)),
                fix="the file was written by another version of xfeat: install that version, or create the file again",
            )
        values = {
            key: cls.nested[key].from_dict(value) if key in cls.nested else _tuples(value)
            for key, value in settings.items()
        }
        try:
            check_types(values, cls)
            return cls(**values)
        except ValueError as error:
            if isinstance(error, XfeatError):
                raise
            raise SpecError(f"a setting of {cls.__name__} has another type: {error}") from error
        except TypeError as error:
            raise SpecError(f"settings of {cls.__name__} are incomplete: {error}") from error

    @classmethod
    def _upgraded(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that an earlier version stored, as this version stores them."""
        return settings

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that differ when any setting does."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def require(condition: bool, what: str, *, expected: str, found: object) -> None:
    """Raise :class:`SpecError` unless ``condition`` holds."""
    if not condition:
        raise SpecError(what, expected=expected, found=repr(found))


def check_decision(
    class_names: tuple[str, ...], temperature: float, positive: str | None, threshold: float | None
) -> None:
    """Check what turns the logits of a head into a class.

    Args:
        class_names: in the order of the logits.
        temperature: that the logits are divided by.
        positive: the class with a threshold, or ``None``: the most probable class is predicted.
        threshold: probability of ``positive`` from which it is predicted, 0 to 1.

    Raises:
        SpecError: if a value is out of range, or contradicts another.
    """
    require(len(class_names) >= 2, "too few classes", expected="two or more", found=class_names)
    distinct = len(set(class_names)) == len(class_names)
    require(distinct, "a class name stands twice", expected="distinct names", found=class_names)
    require(temperature > 0, "temperature must be positive", expected="> 0", found=temperature)
    both = (positive is None) == (threshold is None)
    found = (positive, threshold)
    require(both, "a threshold and a positive class need each other", expected="both or neither", found=found)
    if positive is not None and threshold is not None:
        require(positive in class_names, "unknown class", expected=", ".join(class_names), found=positive)
        require(0 <= threshold <= 1, "threshold out of range", expected="0 to 1", found=threshold)


def _without(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if (name, value) not in defaults.items()}


_OF_LEVELS = {
    "mean": "0 to 1: pixels are scaled to 0..1 first, so divide a mean of 0..255 by 255",
    "std": "more than 0, at most 1: pixels are scaled to 0..1 first, so divide one of 0..255 by 255",
}


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec(Spec):
    """From an image file to the network's input.

    Attributes:
        size: side of the square input, pixels.
        resize: ``squash`` changes the aspect ratio, as ``torchvision.transforms.Resize((size, size))`` does; ``crop``
            keeps it: only the centred square is resized.
        crop: share of the width that is cut off at the left and at the right, and of the height at the top and at the
            bottom, before anything else: 0 to less than 0.5; stored in whole millionths. See :meth:`box`.
        interpolation: ``bilinear`` or ``bicubic``, antialiased, as Pillow does it.
        mean: subtracted per channel after scaling to 0..1; 0 to 1.
        std: divided by per channel afterwards; more than 0, at most 1.
        grey_bits: white is 2 to this power, less 1, in files of 16 bits per channel that do not state another range.
        frames: which picture of a file with several is read: ``first``, ``middle``, or none: ``refuse``.
    """

    size: int = 224
    resize: str = "squash"
    crop: float = 0.0
    interpolation: str = "bilinear"
    mean: Triple = HALF
    std: Triple = HALF
    grey_bits: int = 16
    frames: str = "refuse"

    def __post_init__(self) -> None:
        fits = self.size in SIDES
        require(fits, "image size out of range", expected=f"{SIDES[0]} to {SIDES[-1]} pixels", found=self.size)
        require(self.resize in RESIZES, "unknown resize mode", expected=" or ".join(RESIZES), found=self.resize)
        known = self.interpolation in INTERPOLATIONS
        require(known, "unknown interpolation", expected=" or ".join(INTERPOLATIONS), found=self.interpolation)
        share = self.crop
        fits = 0 <= share < 0.5 and round(share, 6) < 0.5
        require(fits, "crop out of range", expected="0 to less than 0.5, such as 0.12: of each side", found=share)
        object.__setattr__(self, "crop", round(share, 6))
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == 3, f"{name} needs one value per channel", expected="3 values", found=values)
            fits = all(0 <= value <= 1 and (value > 0 or name == "mean") for value in values)
            require(fits, f"{name} out of range", expected=_OF_LEVELS[name], found=values)
        bits = self.grey_bits
        require(bits in GREY_BITS, "number of grey bits out of range", expected="8 to 16", found=bits)
        require(self.frames in FRAMES, "unknown choice of frames", expected=", ".join(FRAMES), found=self.frames)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, without those that version 0.1 did not have, at their defaults."""
        return _without(super().to_dict(), {"crop": 0.0, "grey_bits": 16, "frames": "refuse"})

    @property
    def of_pixels(self) -> PreprocessSpec:
        """The settings that matter once a file has become pixels of the network's size."""
        return PreprocessSpec(size=self.size, mean=self.mean, std=self.std)

    @property
    def cuts(self) -> bool:
        """Whether parts of an image are cut off before it is resized."""
        return self.crop > 0 or self.resize == "crop"

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the part of an image that the network is given, in whole pixels.

        Of each side, ``crop`` times its length is cut off, rounded to the nearest pixel and half up, but so little that
        one pixel is left. With ``resize="crop"`` the centred square of the rest is taken; where it cannot be centred,
        it lies half a pixel to the left or to the top.

        Args:
            width: of the upright image, pixels, 1 or more.
            height: likewise.

        Returns:
            left, top, right and bottom; right and bottom are the first pixels outside.
        """
        lengths = (width, height)
        cut = [min((length * self.crop_parts + CROP_PARTS // 2) // CROP_PARTS, (length - 1) // 2) for length in lengths]
        left_over = [length - 2 * off for length, off in zip(lengths, cut, strict=True)]
        if self.resize == "crop":
            side = min(left_over)
            cut = [off + (length - side) // 2 for off, length in zip(cut, left_over, strict=True)]
            left_over = [side, side]
        left, top = cut
        return left, top, left + left_over[0], top + left_over[1]

    @property
    def crop_parts(self) -> int:
        """``crop`` in millionths."""
        return round(self.crop * CROP_PARTS)

    def describe(self, *, levels: bool = True) -> str:
        """Return what differs from the usual way, for people: empty, or each part after a comma and a space.

        Args:
            levels: with mean and std.
        """
        cut = f", {100 * self.crop:.4g} % cut off at each side" if self.crop else ""
        square = ", centred square" if self.resize == "crop" else ""
        bicubic = ", bicubic" if self.interpolation == "bicubic" else ""
        grey = f", 16-bit images read as {self.grey_bits}-bit" if self.grey_bits != 16 else ""
        chosen = f", {self.frames} frame of several" if self.frames != "refuse" else ""
        return f"{cut}{square}{bicubic}{self._describe_levels() if levels else ''}{grey}{chosen}"

    def _describe_levels(self) -> str:
        pair = (self.mean, self.std)
        if short := next((name for name, values in NORMALIZATIONS.items() if values == pair), None):
            return f", mean and std of {short}" if short != "half" else ""
        mean, std = (
            ",".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values)) for values in pair
        )
        return f", mean {mean}, std {std}"


@dataclass(frozen=True, kw_only=True)
class FeatureSpec(Spec):
    """What a row of features is.

    Attributes:
        backbone: name of the network: a key of :data:`xfeat.featurize.backbones.registry.BACKBONES`, or of an encoder:
            ``onnx:STEM``, ``timm:NAME``, ``torch:MODULE:FUNCTION`` or ``plugin:NAME``.
        weights_sha256: SHA-256 of the weights file, 64 hexadecimal digits.
        preprocess: how an image becomes the network's input.
        pooling: ``final`` (pooled last layer) or ``multilevel`` (stages 3 to 7 appended); of tokens ``cls`` (the first)
            or ``mean`` (of those of the image).
        views: number of views per image, V: the unchanged image first, then augmented ones; 1 means no augmented ones.
        dtype: ``float32`` or ``float16``, as stored.
        precision: of the network's arithmetic: ``float32``, ``bfloat16`` or ``float16``.
    """

    nested: ClassVar[dict[str, type[Spec]]] = {"preprocess": PreprocessSpec}

    backbone: str
    weights_sha256: str
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    pooling: str = "final"
    views: int = 1
    dtype: str = "float32"
    precision: str = "float32"

    def __post_init__(self) -> None:
        require(self.pooling in POOLINGS, "unknown pooling", expected=" or ".join(POOLINGS), found=self.pooling)
        require(self.dtype in DTYPES, "unknown dtype", expected=" or ".join(DTYPES), found=self.dtype)
        require(self.precision in PRECISIONS, "unknown precision", expected=", ".join(PRECISIONS), found=self.precision)
        require(1 <= self.views <= MAX_VIEWS, "views out of range", expected=f"1 to {MAX_VIEWS}", found=self.views)
        digits = self.weights_sha256
        require(len(digits) == 64, "not a SHA-256", expected="64 hex digits", found=digits)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types; a precision of float32 is left out, as in the first version."""
        settings = {**super().to_dict(), "preprocess": self.preprocess.to_dict()}
        return _without(settings, {"precision": "float32"})

    @classmethod
    def _upgraded(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Leave out the decoder.

        Raises:
            MismatchError: if the JPEG files were decoded on a GPU, which version 0.1 could do.
        """
        decoder = settings.get("decoder", "pillow")
        if decoder != "pillow":
            raise MismatchError(
                "JPEG files were decoded on a GPU, and this version of xfeat has no GPU JPEG decoder",
                expected="features of JPEG files decoded by Pillow",
                found=f"decoder {decoder}",
                fix="xfeat featurize DATA --force",
            )
        return _without(settings, {"decoder": decoder})

    @property
    def export_differences(self) -> dict[str, str]:
        """How the features differ from what an exported model computes (it computes in float32).

        Keys are the options that compute the features as the model does.
        """
        if self.precision == "float32":
            return {}
        return {"--precision float32": f"computed in {self.precision} and not in float32"}

    def describe(self, *, levels: bool = True) -> str:
        """Return one line for people, with mean and std if ``levels`` is true."""
        side = self.preprocess.size
        if self.backbone.startswith(LOADED):
            return f"{self.backbone} ({self.weights_sha256[:8]}), {self.dtype}, of an encoder that is not named"
        views = f", {self.views} views" if self.views > 1 else ""
        computed = f", computed in {self.precision}" if self.precision != "float32" else ""
        kind = f"{self.pooling}, {self.dtype}{views}{computed}{self.preprocess.describe(levels=levels)}"
        return f"{self.backbone} ({self.weights_sha256[:8]}), {side}×{side}, {kind}"

    def row_shape(self, dim: int) -> tuple[int, ...]:
        """Return the shape of an image's features: (D,), or (V, D) with views."""
        return (dim,) if self.views == 1 else (self.views, dim)


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """The settings that a user gives; :func:`xfeat.featurize.pipeline.request.resolve_request` fills in the others.

    Where a setting of the preprocessing is ``None``, that of the backbone is used.

    Attributes:
        backbone: a name, or ``auto``.
        weights: a file of weights; with ``auto`` those of the backbone of an existing cache, or else of
            :data:`xfeat.featurize.backbones.registry.PREFERRED`.
        size: as in :class:`PreprocessSpec`, like the next five.
        resize: ``squash`` or ``crop``.
        crop: share of each side that is cut off.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: per channel; overrides that of ``normalize``.
        std: likewise.
        normalize: a key of :data:`NORMALIZATIONS`, a short form of ``mean`` and ``std``.
        pooling: as in :class:`FeatureSpec`, like the others.
        views: number of views per image, the unchanged one included.
        dtype: of the stored features.
        precision: of the network's arithmetic.
        grey_bits: as in :class:`PreprocessSpec`; ``None``: those that the images need.
        frames: as in :class:`PreprocessSpec`.
    """

    backbone: str = "auto"
    weights: Path | None = None
    size: int | None = None
    resize: str | None = None
    crop: float | None = None
    interpolation: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    normalize: str | None = None
    pooling: str = "final"
    views: int = 1
    dtype: str = "float32"
    precision: str = "float32"
    grey_bits: int | None = None
    frames: str = PreprocessSpec.frames

    def __post_init__(self) -> None:
        known = self.normalize is None or self.normalize in NORMALIZATIONS
        names = " or ".join(NORMALIZATIONS)
        require(known, "unknown normalization", expected=names, found=self.normalize)
        # Ranges are checked before weights are downloaded, which can take a minute.
        self.spec_of(backbone="any", weights_sha256="0" * 64, defaults=PreprocessSpec())

    def spec_of(self, *, backbone: str, weights_sha256: str, defaults: PreprocessSpec) -> FeatureSpec:
        """Return the full spec for a backbone; ``defaults`` are its own, used where the request says nothing.

        Raises:
            SpecError: if a setting is out of range.
        """
        names = ("size", "resize", "crop", "interpolation", "mean", "std", "grey_bits", "frames")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        short = dict(zip(("mean", "std"), NORMALIZATIONS[self.normalize], strict=True)) if self.normalize else {}
        return FeatureSpec(
            backbone=backbone,
            weights_sha256=weights_sha256,
            preprocess=dataclasses.replace(defaults, **short | given),
            **{name: getattr(self, name) for name in ("pooling", "views", "dtype", "precision")},
        )

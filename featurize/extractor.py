"""The frozen network as a scikit-learn transformer: images in, features out."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.engines import BatchSize as BatchSize
from xfeat.featurize.engines import Engine, check_precision, open_engine
from xfeat.featurize.errors import DataError, ImageError, MismatchError
from xfeat.featurize.images.given import as_images, decode_given, named, range_of_given, read_given
from xfeat.featurize.images.grey_range import GreyRange, warn_if_other
from xfeat.featurize.images.preprocess import resize
from xfeat.featurize.keyword_settings import argument_kind, bound_arguments, spec_from
from xfeat.featurize.pipeline.inference import infer
from xfeat.featurize.pipeline.reading import ReadImage
from xfeat.featurize.pipeline.request import resolve_request
from xfeat.featurize.specs import FeatureRequest, FeatureSpec
from xfeat.featurize.system.cores import cores, in_threads

if TYPE_CHECKING:
    from xfeat.featurize.backbones.weights import Weights

logger = logging.getLogger(__name__)

# Several views of an image are rows of a cache, not of a transformer's result.
_REQUEST = [field for field in dataclasses.fields(FeatureRequest) if field.name != "views"]
# A request names a file, whatever is in it.
_DIGEST = {"weights_sha256": ("str | None", None)}
_ENGINE = {"device": ("str", "auto"), "engine": ("str", "auto"), "batch_size": ("BatchSize", None)}


def _parameters() -> Iterator[inspect.Parameter]:
    yield inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    settings = {field.name: (argument_kind(field), field.default) for field in _REQUEST}
    for name, (kind, default) in {**settings, **_DIGEST, **_ENGINE, "workers": ("int | None", None)}.items():
        first = inspect.Parameter.POSITIONAL_OR_KEYWORD if name == "backbone" else inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(name, first, default=default, annotation=kind)


_SIGNATURE = inspect.Signature(list(_parameters()))


class _Resolved(NamedTuple):
    request: FeatureRequest
    spec: FeatureSpec
    weights: Weights


class _Opened(NamedTuple):
    settings: tuple[Any, ...]
    engine: Engine
    lock: threading.Lock


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Computes the features of images with a frozen network: the same bits as ``xfeat featurize`` for the same files.

    The network is opened by the first call that needs it. Copies and pickles of an extractor have its settings only,
    and open their own; so does a forked process.

    Args:
        backbone: as in :class:`xfeat.featurize.specs.FeatureRequest`, like every other setting of it except ``views``.
        grey_bits: range of images with 16 bits per channel. ``None``: ``fit`` finds it; without ``fit`` each call finds
            that of its own images.
        weights_sha256: the digest that the weights must have, as ``cache.extractor()`` sets it; ``None``: any.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``; several GPUs with commas.
        engine: ``auto``, ``torch``, ``onnxruntime`` or ``openvino``.
        batch_size: images per call of the network; ``auto`` measures which is fastest.
        workers: decoding threads; by default one per core.

    Attributes:
        grey_bits_: the range that ``fit`` found.
        weights_sha256_: the digest of the weights that ``fit`` found: a pickled extractor takes no others.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        given = bound_arguments(_SIGNATURE, type(self).__name__, (self, *arguments), settings)
        defaults = {name: each.default for name, each in _SIGNATURE.parameters.items()}
        self.__dict__.update({**defaults, **given})
        del self.__dict__["self"]

    __init__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]

    def fit(self, X: Any, y: Any = None) -> Self:
        """Remember the weights, and the range of 16-bit images if ``grey_bits`` is not given.

        Args:
            X: images, as for :meth:`transform`.
            y: ignored.

        Raises:
            XfeatError: as :meth:`transform` says.
        """
        images = as_images(X)
        self.__dict__.pop("weights_sha256_", None)
        spec = self._resolve().spec
        self.weights_sha256_, preprocess = spec.weights_sha256, spec.preprocess
        if self.grey_bits is None:
            self.grey_bits_ = self._measured(images, preprocess) or preprocess.grey_bits
        return self

    def transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """Compute features.

        Args:
            X: list, array (N, H, W[, C]) or column of images: paths, contents of image files, images of Pillow, arrays
                (H, W), (H, W, 3) or with transparency, of uint8, uint16, bool, or floating point from 0 to 1.

        Returns:
            float32 (N, D), or of ``dtype``.

        Raises:
            ImageError: if an image cannot be read; the message names it.
            ArgumentError: if something is no image.
            DataError: if there are no images.
            SpecError: if a setting is out of range.
            MismatchError: if the weights have another digest than ``weights_sha256``.
            WeightsError, ModelError: if the network cannot be found or used, or its file has changed.
            DeviceError: if the device is not available.
        """
        images = as_images(X)
        if not images:
            raise DataError("no images", expected="one or more", found="an empty list")
        opened = self._open()
        spec = self._with_range(images)
        with opened.lock, closing(self._read(images, spec)) as read:
            batches = infer(read, spec, open_engine=lambda: opened.engine, is_known=lambda sha256: False)
            rows: list[NDArray[np.floating[Any]]] = []
            for outcome in (each for batch in batches for each in batch):
                if outcome.features is None:
                    raise ImageError(f"{named(len(rows), images[len(rows)])}: {outcome.reason}")
                rows.append(outcome.features)
        return np.stack(rows)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the columns: ``f0``, ``f1``, … The network is opened to count them.

        Args:
            input_features: ignored.
        """
        opened, side = self._open(), self.spec.preprocess.size
        with opened.lock:
            dim = opened.engine.features(np.zeros((1, side, side, 3), np.uint8)).shape[1]
        return np.array([f"f{number}" for number in range(dim)], object)

    @property
    def spec(self) -> FeatureSpec:
        """What a row of features is, as a cache and an exported model state it."""
        spec = self._resolve().spec
        bits = getattr(self, "grey_bits_", None) if self.grey_bits is None else None
        return spec if bits is None else _with_bits(spec, bits)

    @property
    def weights_found(self) -> Weights:
        """The file of the network's weights."""
        return self._resolve().weights

    def unknown_range(self, images: Sequence[Any]) -> int | None:
        """Return the bits of 16-bit images, if neither ``fit`` nor ``grey_bits`` has said them; ``None`` otherwise.

        Args:
            images: as a list.
        """
        known = self.grey_bits is not None or hasattr(self, "grey_bits_")
        return None if known else self._measured(images, self.spec.preprocess)

    def _resolve(self) -> _Resolved:
        """Find the weights once: a module is converted for it, and what is unclear of a file is said."""
        request = spec_from(FeatureRequest, {field.name: getattr(self, field.name) for field in _REQUEST})
        check_precision(self.engine, request.precision)
        resolved: _Resolved | None = vars(self).get("_resolved")
        if resolved is None or resolved.request != request:
            resolved = self._resolved = _Resolved(request, *resolve_request(None, request))
        expected = self.weights_sha256 or vars(self).get("weights_sha256_")
        if expected not in (None, resolved.spec.weights_sha256):
            del self._resolved  # the next call looks at the file again
            raise MismatchError(
                "these are not the weights of the extractor",
                path=resolved.weights.path,
                expected=f"SHA-256 {expected}",
                found=resolved.spec.weights_sha256,
                fix="extractor.set_params(weights=FILE) with their file, or weights_sha256=None and fit again for any",
            )
        return resolved

    def _open(self) -> _Opened:
        resolved = self._resolve()
        engine = {name: getattr(self, name) for name in _ENGINE}
        settings = (resolved, engine, os.getpid())
        opened: _Opened | None = vars(self).get("_opened")
        if opened is None or opened.settings != settings:
            network = open_engine(resolved.spec, resolved.weights, **engine)
            opened = self._opened = _Opened(settings, network, threading.Lock())
        return opened

    def _with_range(self, images: Sequence[Any]) -> FeatureSpec:
        bits = self.unknown_range(images)
        if bits is None:
            return self.spec
        if bits < 16:
            logger.warning(
                "16-bit images are read as %d-bit, the range of these %d images; fit or grey_bits=%d keeps it the same "
                "in every call",
                *(bits, len(images), bits),
            )
        return _with_bits(self.spec, bits)

    def _measured(self, images: Sequence[Any], preprocess: Any) -> int | None:
        def look(numbered: tuple[int, Any]) -> GreyRange | None:
            number, image = numbered
            try:
                return range_of_given(read_given(image, named(number, image)), preprocess)
            except ImageError:  # reported where its features are computed
                return None

        found = GreyRange.of_all(in_threads(look, enumerate(images), self.workers or cores(), "range"))
        return None if found is None else found.bits

    def _read(self, images: Sequence[Any], spec: FeatureSpec) -> Generator[ReadImage, None, None]:
        """Read ahead in threads, in order; at the end, say if 16-bit images have another range than the spec's."""
        ranges: list[GreyRange | None] = []

        def read(numbered: tuple[int, Any]) -> ReadImage:
            number, image = numbered
            try:
                content = read_given(image, named(number, image))
                pixels = resize(decode_given(content, spec.preprocess), spec.preprocess)
                ranges.append(range_of_given(content, spec.preprocess))
            except ImageError as error:
                return ReadImage(str(number), None, None, error.what)
            return ReadImage(str(number), FileIdentity(0, 0, 0, f"{number:064x}", False), pixels[None])

        yield from in_threads(read, enumerate(images), self.workers or cores(), "decode")
        warn_if_other(GreyRange.of_all(ranges), spec.preprocess)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("_resolved", "_opened")}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return True


def _with_bits(spec: FeatureSpec, bits: int) -> FeatureSpec:
    return dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, grey_bits=bits))

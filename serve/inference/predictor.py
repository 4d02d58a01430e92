"""Image files to predictions. No HTTP and no printing here: the command line and the server both use it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.model.interface import HEATMAP, OOD, Outputs
from xfeat.export.model.progress import Progress
from xfeat.export.parity.ood_kinds import OodKind
from xfeat.export.parity.signature import as_public_key
from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.datasets.unlabelled import open_images
from xfeat.featurize.errors import ModelError
from xfeat.featurize.images.given import as_images, decode_given, named, read_given
from xfeat.featurize.images.grey_range import GreyRange, warn_if_other
from xfeat.featurize.images.preprocess import Pixels, load_pixels, resize
from xfeat.featurize.specs import require
from xfeat.serve.inference.batch_sizes import bucket_of, bucket_sizes, stack
from xfeat.serve.inference.certificate import open_certified
from xfeat.serve.inference.isolate import run_isolated
from xfeat.serve.inference.reading import (
    ImageContent,
    OnError,
    ReadAgain,
    ReadImage,
    Source,
    content_of,
    decoding,
    raising,
    read_ahead,
    with_content,
)
from xfeat.serve.inference.results import Prediction, Result, SkippedImage

if TYPE_CHECKING:
    from minisign import PublicKey

logger = logging.getLogger(__name__)

# Measured on 2 cores: batches of 8 are faster than 32, because they fit into the CPU cache. A GPU needs larger ones.
_BATCH_ON_CPU = 8
_BATCH_ON_GPU = 64


class Predictor:
    """A model that classifies images. Its file is compared with the certificate beside it, if there is one.

    Args:
        model: the file, or one that is open already.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: on the CPU; by default the number of cores.
        batch_size: most images per call of the network; the default depends on the device.
        cuda_graphs: on a GPU: ``auto``, ``on`` or ``off``.
        allow_unverified: warn, instead of raising, if the certificate does not belong to the file.
        require_signature: minisign's public key that must have signed the certificate, or its file.

    Raises:
        MismatchError: if the certificate does not belong to the file, or its signature is not valid.
        ModelError: if the model or its certificate cannot be read, or there is no signature.
        DeviceError: if the device is not available.

    Attributes:
        model: the open file.
        path: of the model file.
        metadata: of the model file.
        device: ``cpu`` or ``cuda:N``, where the model actually runs.
        batch_size: most images per call of the network; the default depends on the device.
        pads_batches: whether batches are padded to a size that the device has been warmed up with.
        ood_threshold: an image with a higher score counts as out of distribution; or ``None``.
        certificate: see :func:`xfeat.serve.inference.certificate.open_certified`.
        ood_kinds: see :class:`xfeat.export.parity.certificate.Certificate`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelFile,
        device: str = "auto",
        threads: int | None = None,
        *,
        batch_size: int | None = None,
        cuda_graphs: str = "auto",
        allow_unverified: bool = False,
        require_signature: str | os.PathLike[str] | PublicKey | None = None,
    ) -> None:
        self._opened_with: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "batch_size": batch_size,
            "cuda_graphs": cuda_graphs,
            "allow_unverified": allow_unverified,
            "require_signature": require_signature,
        }
        self.certificate = "none"
        self.ood_kinds: dict[str, OodKind] = {}
        if not isinstance(model, ModelFile):
            opener = partial(open_model, threads=threads, device=device, cuda_graphs=cuda_graphs)
            model, self.certificate, self.ood_kinds = open_certified(
                Path(model), opener, allow_unverified=allow_unverified, public_key=as_public_key(require_signature)
            )
        self.model = model
        self.path, self.metadata, self.device = model.path, model.metadata, model.device
        # Without the model's output there is nothing to compare with the threshold.
        self.ood_threshold = self.metadata.ood_threshold if OOD in model.known_outputs else None
        # On a CPU a new shape costs nothing, but a padding image costs as much as any other.
        self.pads_batches = model.device != "cpu"
        default = _BATCH_ON_GPU if self.pads_batches else _BATCH_ON_CPU
        self.batch_size = default if batch_size is None else batch_size
        require(self.batch_size >= 1, "batch size out of range", expected="1 or more", found=self.batch_size)

    @classmethod
    def open(cls, *arguments: Any, **settings: Any) -> Self:
        """Open a model as the constructor does; version 0.1 had this name for it."""
        return cls(*arguments, **settings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the settings: another process opens the file itself."""
        return partial(type(self), **self._opened_with), (str(self.path),)

    @overload
    def predict(
        self,
        images: Any,
        *,
        heatmap: bool = False,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: Any,
        *,
        heatmap: bool = False,
        on_error: Literal["skip"],
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Result]: ...

    def predict(
        self,
        images: Any,
        *,
        heatmap: bool = False,
        on_error: OnError = "raise",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Result] | list[Prediction]:
        """Classify images, with the same numbers as ``xserve predict`` for the same files.

        Args:
            images: list, array (N, H, W[, C]) or column of images: paths, contents of image files, images of Pillow,
                arrays (H, W), (H, W, 3) or with transparency, of uint8, uint16, bool, or floating point from 0 to 1.
            heatmap: include heatmaps in the predictions.
            on_error: ``raise`` the reason if an image cannot be read or predicted, or ``skip`` it.
            progress: called with ``predicting``, the number of images done and of all.

        Returns:
            One :class:`xfeat.serve.inference.results.Prediction` per image, in the order given; with ``skip``, a
            ``SkippedImage`` with the reason stands for an image without one.

        Raises:
            ImageError: if an image cannot be read or predicted; the message names it.
            ArgumentError: if something is no image.
            ModelError: if the model has no heatmap, and one is asked for.
        """
        if heatmap and HEATMAP not in self.model.known_outputs:
            raise ModelError("the model has no heatmap output", path=self.path, fix="open the full model, model.onnx")
        given = as_images(images)
        names = [named(number, image) for number, image in enumerate(given)]
        sources = [(name, partial(read_given, image, name)) for name, image in zip(names, given, strict=True)]
        steps = None if progress is None else partial(progress, "predicting")
        return list(raising(self.predict_sources(sources, steps, total=len(sources), heatmap=heatmap), on_error))

    def predict_paths(
        self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **settings: Any
    ) -> list[Result]:
        """Classify what ``paths`` names: the list of what :meth:`stream` yields.

        Args:
            paths: as for :meth:`stream`.
            settings: the other arguments of :meth:`stream`.

        Raises:
            XfeatError: as :meth:`stream` says.
        """
        return list(self.stream(paths, **settings))

    def stream(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        listed: Iterable[str | None] | None = None,
        *,
        recursive: bool = True,
        columns: str | None = None,
        on_error: OnError = "skip",
        each: Callable[[Result, ReadAgain], None] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """Classify files, and the images in folders, archives and tables, one after the other: ``xserve predict``.

        Memory does not grow with the number of images, but for their names.

        Args:
            paths: what :func:`xfeat.featurize.datasets.unlabelled.open_images` takes, or a list of it.
            listed: further image files, asked for as they are needed; a missing one is one that cannot be read.
                ``None`` stands for a pause: the images so far are classified without waiting for more.
            recursive: search the folders in folders and archives, too.
            columns: names the column of paths in tables: ``path=filename``.
            on_error: ``raise`` the reason if an image cannot be read or predicted, or ``skip`` it.
            each: called with each result before it is yielded, and with a function that returns the content of its
                file; predictions then have heatmaps, if the model has them.
            progress: called with the number of images done and the total number; 0 if it is not known.

        Returns:
            An iterator of one result per image, in the order of ``paths``, then that of ``listed``. In a folder images
            are sorted by name; in an archive or table they are in its own order. What is named twice has two results.

        Raises:
            DataError: at once, if one of ``paths`` does not exist, cannot be listed, or holds no image.
            ImageError: later, if an image cannot be read or predicted; the message names it.
            SpecError: if ``columns`` names no column, or ``on_error`` is unknown.
        """
        choice = ColumnChoice.parse(columns)
        given = [paths] if isinstance(paths, str | os.PathLike) else paths
        opened = [open_images(path, recursive=recursive, columns=choice) for path in given]
        choice.check_used([], [name for images in opened for name in images.header])
        total = 0 if listed is not None else sum(len(images.names) for images in opened)
        sources: Iterator[Source | None] = (
            (str(images.root / name), partial(content_of, images.source, name))
            for images in opened
            for name in images.names
        )
        if listed is not None:
            more = (None if name is None else (name, partial(read_given, name, name)) for name in listed)
            sources = chain(sources, more)
        if each is None:
            return raising(self.predict_sources(sources, progress, total=total), on_error)
        sources, again = tee(sources)
        results = self.predict_sources(sources, progress, total=total, heatmap=True)
        return raising(with_content(results, again, each), on_error)

    def predict_bytes(self, images: Sequence[bytes], *, names: Sequence[str] | None = None) -> list[Result]:
        """Classify images given as the contents of their files.

        Args:
            images: contents of image files.
            names: of the images in the results; by default their numbers from 0.

        Returns:
            One result per image, in the order given.
        """
        names = names if names is not None else [str(number) for number in range(len(images))]
        sources: list[Source] = [(name, partial(bytes, content)) for name, content in zip(names, images, strict=True)]
        return list(self.predict_sources(sources))

    def ready_pixels(self, content: ImageContent) -> Pixels | None:
        """Return the content if it is the network input already, or ``None`` if it must be decoded, cut or resized."""
        spec = self.metadata.feature_spec.preprocess
        if isinstance(content, bytes) or spec.cuts or content.shape[:2] != (spec.size, spec.size):
            return None
        return content

    def decode(self, content: ImageContent) -> Pixels:
        """Return uint8 (S, S, 3) RGB for an image.

        Args:
            content: of an image file, or pixels, such as uint8 (H, W, 3) RGB, which are cut and resized like those of
                a file; see :func:`xfeat.featurize.images.given.decode_given`.

        Raises:
            ImageError: if it is not a readable image.
        """
        preprocess = self.metadata.feature_spec.preprocess
        if isinstance(content, bytes):
            with decoding():
                return load_pixels(content, preprocess)
        return resize(decode_given(content, preprocess), preprocess)

    def infer(self, names: Sequence[str], pixels: Sequence[Pixels], *, heatmap: bool = False) -> list[Result]:
        """Run the network on one batch; if it fails, image by image, so that only the images at fault are skipped.

        Args:
            names: of the images.
            pixels: uint8 (S, S, 3) RGB each, as many as names.
            heatmap: include heatmaps in the predictions, if the model has them.
        """
        batch = list(zip(names, pixels, strict=True))
        outcomes = run_isolated(partial(self._run, heatmap=heatmap), batch, ModelError)
        results: list[Result] = []
        for name, found in zip(names, outcomes, strict=True):
            if isinstance(found, ModelError):
                logger.warning("the model failed on an image: %s", found)
                found = SkippedImage(path=name, reason="the model failed on it", by_model=True)
            results.append(found)
        return results

    def _run(self, batch: Sequence[tuple[str, Pixels]], *, heatmap: bool) -> list[Result]:
        size = bucket_of(len(batch), self.batch_size) if self.pads_batches else len(batch)
        outputs = self.model.run(stack([pixels for _, pixels in batch], size), heatmap=heatmap)
        return [self._result(name, outputs, row) for row, (name, _) in enumerate(batch)]

    def warm_up(self) -> None:
        """Run the network on a batch of each bucket size, so that memory, kernels and graphs are ready for requests.

        Raises:
            ModelError: if the model cannot be run.
            DeviceError: if CUDA graphs are required and cannot be recorded.
        """
        side = self.metadata.feature_spec.preprocess.size
        # Noise: outputs of equal images would agree even if a graph mixed them up.
        pixels = np.random.default_rng(0).integers(0, 256, (self.batch_size, side, side, 3), np.uint8)
        self.model.bind([pixels[:size] for size in bucket_sizes(self.batch_size)])

    def _result(self, name: str, outputs: Outputs, row: int) -> Result:
        probabilities = outputs.probabilities[row].tolist()
        # JSON has no NaN, and no class can be chosen by it.
        if not np.isfinite(probabilities).all():
            return SkippedImage(path=name, reason="the model returned NaN or infinity", by_model=True)
        ood = None if outputs.ood is None else float(outputs.ood[row])
        return Prediction(
            path=name,
            label=self.metadata.decide(probabilities),
            probabilities=dict(zip(self.metadata.class_names, probabilities, strict=True)),
            ood=ood if ood is not None and np.isfinite(ood) else None,
            ood_threshold=self.ood_threshold,
            logits=None if outputs.logits is None else outputs.logits[row],
            heatmap=None if outputs.heatmap is None else outputs.heatmap[row],
        )

    def predict_sources(
        self,
        sources: Iterable[Source | None],
        progress: Progress | None = None,
        *,
        total: int = 0,
        heatmap: bool = False,
    ) -> Iterator[Result]:
        """Yield the results of images one after the other, so that memory does not grow with their number.

        Args:
            sources: name of each image, and a function that returns the content of its file or raises ImageError.
                ``None`` stands for a pause: the images before it are classified without waiting for more.
            progress: called with the number of images done and the total number.
            total: number of images, if it is known.
            heatmap: include heatmaps in the predictions, if the model has them.
        """
        done = 0
        found: GreyRange | None = None
        batch: list[ReadImage] = []
        for image in read_ahead(sources, self.decode, self.metadata.feature_spec.preprocess, self.batch_size):
            if image is not None:
                found = GreyRange.of_all([found, image.grey_range])
                batch.append(image)
            if image is None or len(batch) == self.batch_size:
                for result in self._infer_readable(batch, heatmap):
                    done += 1
                    if progress is not None:
                        progress(done, total)
                    yield result
                batch.clear()
        warn_if_other(found, self.metadata.feature_spec.preprocess)

    def _infer_readable(self, images: Sequence[ReadImage], heatmap: bool) -> list[Result]:
        readable = [(name, pixels) for name, pixels, _ in images if not isinstance(pixels, SkippedImage)]
        inferred = iter(self.infer(*zip(*readable, strict=True), heatmap=heatmap) if readable else ())
        return [image if isinstance(image, SkippedImage) else next(inferred) for _, image, _ in images]

"""Image files to answers. No HTTP and no printing here: the command line and the server share it."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Progress
from xfeat.featurize.datasets.image_files import list_images
from xfeat.featurize.errors import ImageError, ModelError, SpecError
from xfeat.featurize.images.preprocess import Pixels, load_pixels, resize
from xfeat.featurize.system.cores import cores
from xfeat.serve.inference.batch_sizes import bucket_of, bucket_sizes, stack
from xfeat.serve.inference.results import Prediction, Result, SkippedImage
from xfeat.serve.inference.session import ModelSession, Outputs

logger = logging.getLogger(__name__)

# Measured on 2 cores: batches of 8 beat 32 there, for they fit into the cache. A GPU wants more at once.
_BATCH_ON_CPU = 8
_BATCH_ON_GPU = 64

Source = tuple[str, Callable[[], bytes]]
# The content of an image file, or its pixels: uint8 (H, W, 3), RGB.
ImageContent = bytes | Pixels


class Predictor:
    """A model that answers image files.

    Attributes:
        path: the model file.
        metadata: what the file says of itself.
        device: ``cpu`` or ``cuda:N``, where it really runs.
        batch_size: most images per call of the network; by default what suits the device.
        pads: whether batches are filled up to a size that the device has been warmed with.
        ood_threshold: the distance from which an image counts as foreign, or ``None``.
    """

    def __init__(self, session: ModelSession) -> None:
        self.session = session
        self.path: Path = session.path
        self.metadata: ModelMetadata = session.metadata
        self.device = session.device
        # A model without the output has nothing to compare with it.
        self.ood_threshold: float | None = self.metadata.ood_threshold if "ood" in session.gives else None
        # On a CPU a new shape costs nothing, and an image that nobody asked for as much as any.
        self.pads = session.device != "cpu"
        self.batch_size = _BATCH_ON_GPU if self.pads else _BATCH_ON_CPU

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        *,
        batch_size: int | None = None,
        cuda_graphs: str = "auto",
    ) -> Self:
        """Open a model file.

        Args:
            path: a file of ``xexport onnx``.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if onnxruntime can use one.
            threads: CPU threads for inference; by default all cores.
            batch_size: most images per call of the network; by default what suits the device.
            cuda_graphs: ``auto``, ``on`` or ``off``; see :func:`xfeat.export.model.cuda_graphs.open_network`.

        Raises:
            ModelError: if there is no such file, or it is none that this project wrote.
            DeviceError: if the device that was asked for is not there; it is never replaced. Or no graphs where they
                were asked for.
            SpecError: if ``device`` is none of these.
        """
        predictor = cls(ModelSession.open(path, device=device, threads=threads, cuda_graphs=cuda_graphs))
        predictor.batch_size = batch_size or predictor.batch_size
        return predictor

    def predict_paths(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[Result]:
        """Answer files, and the images in folders.

        Args:
            paths: image files and folders, which are searched to any depth.
            batch_size: images per call of the network; by default what suits the device.
            progress: called with the number of images done and the number in all.

        Returns:
            One result an image, in the order of ``paths``, within a folder sorted.

        Raises:
            DataError: if a path does not exist, or a folder holds no image.
        """
        images = list_images(paths)
        return self._predict([(str(path), path.read_bytes) for path in images], batch_size, progress)

    def predict_bytes(
        self, images: Sequence[bytes], *, names: Sequence[str] | None = None, batch_size: int | None = None
    ) -> list[Result]:
        """Answer images given as the content of their files.

        Args:
            images: contents of image files.
            names: what to call them in the results; by default their numbers from 0.
            batch_size: images per call of the network; by default what suits the device.

        Returns:
            One result an image, in the order given.
        """
        names = names if names is not None else [str(number) for number in range(len(images))]
        sources: list[Source] = [(name, partial(bytes, content)) for name, content in zip(names, images, strict=True)]
        return self._predict(sources, batch_size, None)

    def as_pixels(self, content: ImageContent) -> Pixels | None:
        """Return the content if it is pixels of the model's size already, or ``None`` if it is to be decoded."""
        side = self.metadata.feature_spec.preprocess.size
        return content if not isinstance(content, bytes) and content.shape[:2] == (side, side) else None

    def decode(self, content: ImageContent) -> Pixels:
        """Return uint8 (S, S, 3) RGB for an image.

        Args:
            content: of an image file, or uint8 (H, W, 3) RGB, which is resized as a file's pixels are.

        Raises:
            ImageError: if it is no readable image.
        """
        preprocess = self.metadata.feature_spec.preprocess
        if isinstance(content, bytes):
            try:
                return load_pixels(content, preprocess)
            except ImageError:
                raise
            except Exception as error:
                # Anybody may send anything, and decoders have more ways to fail on damaged files than can be listed.
                logger.debug("an image cannot be decoded", exc_info=True)
                raise ImageError(f"cannot be decoded: {error}") from error
        pixels = self.as_pixels(content)
        return pixels if pixels is not None else resize(Image.fromarray(content), preprocess)

    def infer(self, names: Sequence[str], pixels: Sequence[Pixels], *, heatmap: bool = False) -> list[Result]:
        """Run the network on one batch; if it fails, image by image, so that only the guilty one is skipped.

        Args:
            names: of the images.
            pixels: uint8 (S, S, 3) RGB each, as many as names.
            heatmap: put heatmaps into the answers, if the model gives them.
        """
        try:
            size = bucket_of(len(pixels), self.batch_size) if self.pads else len(pixels)
            outputs = self.session.run(stack(pixels, size), heatmap=heatmap)
        except ModelError as error:
            if len(pixels) == 1:
                logger.warning("the model failed on an image: %s", error)
                return [SkippedImage(path=names[0], reason="the model failed on it", by_model=True)]
            pairs = zip(names, pixels, strict=True)
            return [result for name, one in pairs for result in self.infer([name], [one], heatmap=heatmap)]
        return [self._result(name, outputs, row) for row, name in enumerate(names)]

    def warm_up(self) -> None:
        """Run the network in batches of every bucket, so that requests find memory, kernels and graphs ready.

        Raises:
            ModelError: if the model cannot be run.
        """
        for size in bucket_sizes(self.batch_size):
            self.session.warm_up(size)

    def _result(self, name: str, outputs: Outputs, row: int) -> Result:
        probabilities = outputs.probabilities[row].tolist()
        # JSON has no NaN, and an answer that holds one decides nothing.
        if not np.isfinite(probabilities).all():
            return SkippedImage(path=name, reason="the model's answer is not a number", by_model=True)
        distance = None if outputs.ood is None else float(outputs.ood[row])
        return Prediction(
            path=name,
            label=self.metadata.decide(probabilities),
            probabilities=dict(zip(self.metadata.class_names, probabilities, strict=True)),
            ood=distance if distance is not None and np.isfinite(distance) else None,
            ood_threshold=self.ood_threshold,
            logits=None if outputs.logits is None else outputs.logits[row],
            heatmap=None if outputs.heatmap is None else outputs.heatmap[row],
        )

    def _predict(self, sources: Sequence[Source], batch_size: int | None, progress: Progress | None) -> list[Result]:
        batch_size = batch_size if batch_size is not None else self.batch_size
        if batch_size < 1:
            raise SpecError("batch size out of range", expected="1 or more", found=str(batch_size))
        results: list[Result | None] = [None] * len(sources)
        waiting: list[tuple[int, Pixels]] = []
        for position, read in enumerate(self._read_ahead(sources, batch_size)):
            if isinstance(read, SkippedImage):
                results[position] = read
            else:
                waiting.append((position, read))
            if waiting and (len(waiting) == batch_size or position == len(sources) - 1):
                answers = self.infer([sources[at][0] for at, _ in waiting], [pixels for _, pixels in waiting])
                for (at, _), answer in zip(waiting, answers, strict=True):
                    results[at] = answer
                waiting.clear()
            if progress is not None:
                progress(position + 1, len(sources))
        return [result for result in results if result is not None]

    def _read_ahead(self, sources: Sequence[Source], batch_size: int) -> Iterator[Pixels | SkippedImage]:
        """Decode in threads, in order, at most two batches ahead, so that memory does not grow with the data."""
        workers = cores()
        ahead = max(2 * batch_size, 2 * workers)
        waiting: deque[Future[Pixels | SkippedImage]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            for source in sources:
                waiting.append(pool.submit(self._read, source))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, source: Source) -> Pixels | SkippedImage:
        name, content = source
        try:
            return self.decode(content())
        except ImageError as error:
            return SkippedImage(path=name, reason=error.what)
        except OSError as error:
            return SkippedImage(path=name, reason=f"cannot be read: {error.strerror or error}")

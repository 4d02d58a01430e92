"""Images from where they are to the input of the network, decoded in threads ahead of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Literal, NamedTuple

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import is_truncated
from xfeat.featurize.images.given import range_of_given
from xfeat.featurize.images.grey_range import GreyRange
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import PreprocessSpec, require
from xfeat.featurize.system.cores import cores, look_ahead
from xfeat.serve.inference.results import Result, SkippedImage

logger = logging.getLogger(__name__)

# The content of an image file, or its pixels: uint8 (H, W, 3), RGB.
ImageContent = bytes | Pixels
Source = tuple[str, Callable[[], ImageContent]]
ReadAgain = Callable[[], ImageContent]
OnError = Literal["raise", "skip"]


class ReadImage(NamedTuple):
    """An image as the network takes it.

    Attributes:
        name: of the image.
        pixels: uint8 (S, S, 3) RGB, or why there are none.
        grey_range: of its levels of 16 bits, if their white is not known.
    """

    name: str
    pixels: Pixels | SkippedImage
    grey_range: GreyRange | None


def read_ahead(
    sources: Iterable[Source | None],
    decode: Callable[[ImageContent], Pixels],
    spec: PreprocessSpec,
    batch_size: int,
) -> Iterator[ReadImage | None]:
    """Decode in threads, in order and at most two batches ahead, so that memory does not grow with the data.

    Args:
        sources: name of each image, and a function that returns its content; ``None`` stands for a pause.
        decode: returns uint8 (S, S, 3), or raises ImageError.
        spec: of the preprocessing.
        batch_size: most images per call of the network.

    Yields:
        The images, and ``None`` after those before a pause, and at the end.
    """

    def read(source: Source) -> ReadImage:
        name, content_of = source
        try:
            content = content_of()
            image = ReadImage(name, decode(content), range_of_given(content, spec))
            if isinstance(content, bytes) and is_truncated(content):
                logger.warning("%s is truncated; the part that is there was used", name)
            return image
        except ImageError as error:
            return ReadImage(name, SkippedImage(path=name, reason=error.what), None)

    pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
    try:
        for pause, images in groupby(sources, lambda source: source is None):
            if not pause:
                there = (source for source in images if source is not None)
                yield from look_ahead(lambda source: pool.submit(read, source), there, 2 * max(batch_size, cores()))
                yield None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def decoding() -> Iterator[None]:
    """Raise ImageError for whatever a decoder raises: it fails on damaged files in more ways than can be listed."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        logger.debug("an image cannot be decoded", exc_info=True)
        raise ImageError(f"cannot be decoded: {error}") from error


def content_of(source: ImageSource, name: str) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: if it cannot be read.
        DataError: if nothing can be read any more.
    """
    return source.read(name)[0]


def with_content(
    results: Iterator[Result], sources: Iterable[Source | None], each: Callable[[Result, ReadAgain], None]
) -> Iterator[Result]:
    """Yield the results after ``each`` was called with it, and with a function that reads its image once more.

    Args:
        results: one per source.
        sources: in the same order, without those that stand for a pause.
        each: called with every result.
    """
    for result, (_, read) in zip(results, filter(None, sources), strict=False):  # results end first: no wait for stdin
        each(result, read)
        yield result


def raising(results: Iterator[Result], on_error: OnError) -> Iterator[Result]:
    """Return the results; with ``raise``, the first image without a prediction raises its reason.

    Raises:
        SpecError: if ``on_error`` is neither ``raise`` nor ``skip``.
        ImageError: from the iterator.
    """
    require(on_error in ("raise", "skip"), "unknown choice of on_error", expected="raise or skip", found=on_error)
    return results if on_error == "skip" else map(_prediction, results)


def _prediction(result: Result) -> Result:
    if isinstance(result, SkippedImage):
        raise ImageError(f"{result.path}: {result.reason}")
    return result

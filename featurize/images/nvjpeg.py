"""JPEG files decoded and resized in torch: by nvJPEG on a GPU, and, to test the same lines, by libjpeg-turbo on a CPU.

The GPU's way has not been run on a GPU yet. What it relies on was read in torchvision's source (decode_jpegs_cuda.cpp):
docs/decisions/0015-jpeg-on-the-gpu.md.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.images.jpeg_header import PlainJpeg
from xfeat.featurize.images.pillow_resize import resize_as_pillow
from xfeat.featurize.images.preprocess import Pixels

# Decoded at a time: 64 megapixels of RGB are 192 MB of the GPU's memory.
_BATCH_PIXELS = 64_000_000


class JpegDecoder:
    """Decodes plain JPEG files on one device; to be called from one thread.

    torchvision keeps one decoder a process, and makes a new one without freeing the old whenever the device changes:
    hence one device.

    Attributes:
        device: ``cuda:N`` or ``cpu``.
        name: of the device, for people.

    Raises:
        DeviceError: if torchvision cannot decode on this device.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.name = device
        # torch's memory is handed on in the order of a stream, and nvJPEG writes in one of its own: what the network
        # has freed, but still reads, must not be given to it.
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        # It goes away once TorchCodec has replaced it; then opening fails with what is said below.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")
        try:
            from torchvision.io import decode_jpeg

            self._decode_jpeg = decode_jpeg
            with self._on_stream():
                self._decoded(_SAMPLES)
        except (ImportError, RuntimeError) as error:
            raise DeviceError(
                f"torchvision cannot decode JPEG files on {device}",
                found=next(iter(str(error).splitlines()), type(error).__name__),
                fix="decode them with --decoder pillow",
            ) from error

    def decode(self, files: Sequence[PlainJpeg], side: int) -> list[Pixels | None]:
        """Decode and resize files.

        Args:
            files: N plain JPEG files.
            side: S, pixels.

        Returns:
            For each file uint8 (S, S, 3), RGB, resized as Pillow does, or ``None`` if it was refused.
        """
        with self._on_stream():
            return [pixels for batch in _batches(files) for pixels in self._resized(batch, side)]

    def _resized(self, files: Sequence[PlainJpeg], side: int) -> list[Pixels | None]:
        """Decode some files; if one of them is refused, or memory is short, each by itself."""
        try:
            small = [resize_as_pillow(image, side).expand(3, side, side) for image in self._decoded(files)]
            # The copy waits for the stream, so that all memory of this call is free for the next.
            return list(torch.stack(small).permute(0, 2, 3, 1).contiguous().cpu().numpy())
        except RuntimeError:
            if len(files) == 1:
                return [None]
        return [pixels for file in files for pixels in self._resized([file], side)]

    def _decoded(self, files: Sequence[PlainJpeg]) -> list[Tensor]:
        """Return uint8 (1 or 3, H, W) of each file."""
        images: dict[int, Tensor] = {}
        for mode, grey in (("GRAY", True), ("RGB", False)):
            chosen = [number for number, file in enumerate(files) if file.grey == grey]
            if chosen:
                contents = [torch.frombuffer(bytearray(files[number].data), dtype=torch.uint8) for number in chosen]
                found = self._decode_jpeg(contents, mode=mode, device=self.device)
                images.update(zip(chosen, found, strict=True))
        return [images[number] for number in range(len(files))]

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()


def _batches(files: Sequence[PlainJpeg]) -> Iterator[list[PlainJpeg]]:
    batch: list[PlainJpeg] = []
    pixels = 0
    for file in files:
        if batch and pixels + file.width * file.height > _BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
        batch.append(file)
        pixels += file.width * file.height
    if batch:
        yield batch


def _sample(mode: str) -> PlainJpeg:
    file = io.BytesIO()
    Image.new(mode, (16, 16)).save(file, "JPEG")
    return PlainJpeg(file.getvalue(), 16, 16, grey=mode == "L")


_SAMPLES = (_sample("L"), _sample("RGB"))

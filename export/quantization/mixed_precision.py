"""Which layers stay in float32 where 8 bits lose too much: the first block, then those that rounding hurts most."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from xfeat.export.model.progress import Progress
from xfeat.export.quantization.int8 import Ready, feature_error
from xfeat.export.quantization.onnx_graph import Graph
from xfeat.export.quantization.rounding import only, round_each

Attempt = TypeVar("Attempt")

# With more than this share of the layers in float32, little is left of the gain.
_MOST = 0.5
# Enough to tell layers apart, and little enough for 80 of them.
_IMAGES = 16


def first_block(ready: Ready) -> tuple[str, ...]:
    """Return the convolutions up to the first whose output no activation follows: stem and first block.

    They see most of an image in the fewest channels: in float32 they weigh nothing, and a quarter of what rounding a
    whole Lite0 costs is gone, for a tenth of the speed.
    """
    graph = Graph(ready.backbone)
    readers = graph.readers()
    for place, node in enumerate(graph.convolutions):
        if any(reader.op_type in ("Conv", "Add") for reader in readers.get(node.output[0], [])):
            return tuple(ready.layers[: place + 1])
    return ()


def rank_layers(ready: Ready, progress: Progress | None = None) -> list[str]:
    """Return the convolutions, first those that cost most when they alone are rounded.

    The cost is the error of the features of training images, so validation images have no say in the order.

    Args:
        ready: the model.
        progress: told the layers measured and their number.
    """
    each = round_each(ready.backbone, ready.pixels[ready.followed])
    costs = {}
    for place, layer in enumerate(ready.layers):
        costs[layer] = feature_error(ready, only(ready.backbone, each, layer), _IMAGES)
        if progress is not None:
            progress(place + 1, len(ready.layers))
    return sorted(costs, key=lambda layer: -costs[layer])


def fewest(ranked: list[str], attempt: Callable[[tuple[str, ...]], Attempt | None]) -> Attempt | None:
    """Return what an attempt with the fewest layers in float32 gave.

    Numbers are doubled until an attempt succeeds, then the gap is halved: of 80 layers, at most 11 attempts. Success is
    taken to stay with more layers; where it comes and goes, the number found may not be the smallest, but it succeeds.

    Args:
        ranked: first those that stay in float32 first.
        attempt: with the names of layers that stay in float32; ``None`` means that it failed.

    Returns:
        ``None`` if half of the layers are not enough.
    """
    most = max(1, int(len(ranked) * _MOST))
    failed, count = 0, 1
    while (found := attempt(tuple(ranked[:count]))) is None:
        if count == most:
            return None
        failed, count = count, min(2 * count, most)
    while count - failed > 1:
        middle = (failed + count) // 2
        better = attempt(tuple(ranked[:middle]))
        if better is None:
            failed = middle
        else:
            found, count = better, middle
    return found

"""Pillow's antialiased resize as an ONNX graph of basic operators, for images of any size; first the spec's box.

ONNX has ``Resize(antialias=1)``, but OpenVINO and OpenCV ignore the attribute without a word. Two matrix products with
weights computed from the image's height and width need only operators that every runtime has.
"""

from __future__ import annotations

from functools import partial

import onnx
import onnx.compose

from xfeat.export.build.box_graph import box_graph
from xfeat.export.build.graph import parse_graph
from xfeat.export.model.interface import INPUT
from xfeat.featurize.specs import PreprocessSpec

PLANES = "planes"
# They keep names distinct from those of the graph that follows.
_RESIZE, _BOX = RESIZE_PREFIXES = ("resize_", "box_")

# Source: Pillow, src/libImaging/Resample.c, precompute_coeffs: a kernel around the centre of each output pixel, as
# wide as an output pixel measured in input pixels but at least 1; weights add up to 1. Centres are at
# (2i + 1) · length / 2S, whose numerator is exact in float32. Pillow rounds weights to 22 fractional bits; otherwise,
# ties between grey levels would be rounded differently. Images that already have the model's size are not resized:
# weights are then computed for one pixel only, at no cost.
_WEIGHTS = """
    {axis}_others = Sub ({axis}_length, step)
    {axis}_unread = Mul ({axis}_others, share_same)
    {axis}_read = Sub ({axis}_length, {axis}_unread)
    {axis}_end = Reshape ({axis}_read, flat)
    {axis}_pixels = Cast <to = 1> ({axis}_read)
    {axis}_stretch = Div ({axis}_pixels, side)
    {axis}_reach = Max ({axis}_stretch, one)
    {axis}_doubled = Mul (odd_numbers, {axis}_pixels)
    {axis}_centres = Div ({axis}_doubled, two_sides)
    {axis}_numbers = Range (first, {axis}_read, step)
    {axis}_edges = Cast <to = 1> ({axis}_numbers)
    {axis}_row = Add ({axis}_edges, half)
    {axis}_positions = Unsqueeze ({axis}_row, last_axis)
    {axis}_signed = Sub ({axis}_positions, {axis}_centres)
    {axis}_distance = Abs ({axis}_signed)
    {axis}_relative = Div ({axis}_distance, {axis}_reach)
    {axis}_slope = Sub (one, {axis}_relative)
    {axis}_triangle = Relu ({axis}_slope)
    {bicubic}
    {axis}_sum = ReduceSum <keepdims = 1> ({axis}_{kernel}, first_axis)
    {axis}_share = Div ({axis}_{kernel}, {axis}_sum)
    {axis}_scaled = Mul ({axis}_share, fixed_point)
    {axis}_scaled_up = Add ({axis}_scaled, half)
    {axis}_whole = Floor ({axis}_scaled_up)
    {axis}_columns = Div ({axis}_whole, fixed_point)
"""

# Source: Pillow, bicubic_filter with a = -1/2. Its two polynomials of the distance x are written as one, without a
# branch: u²(u - 1)/2 + v²(1 - 2v) with u = max(2 - x, 0) and v = max(1 - x, 0).
_BICUBIC = """
    {axis}_far_slope = Sub (two_pixels, {axis}_relative)
    {axis}_far = Relu ({axis}_far_slope)
    {axis}_far_square = Mul ({axis}_far, {axis}_far)
    {axis}_far_less = Sub ({axis}_far, one)
    {axis}_far_half = Mul ({axis}_far_less, half)
    {axis}_far_part = Mul ({axis}_far_square, {axis}_far_half)
    {axis}_near_square = Mul ({axis}_triangle, {axis}_triangle)
    {axis}_near_twice = Add ({axis}_triangle, {axis}_triangle)
    {axis}_near_less = Sub (one, {axis}_near_twice)
    {axis}_near_part = Mul ({axis}_near_square, {axis}_near_less)
    {axis}_cubic = Add ({axis}_far_part, {axis}_near_part)
"""

# All images of a batch have one size, so one of three branches gets all of them and the others an empty batch, which
# costs nothing. The graph has no If, which several runtimes lack.
_BATCH = """
    {order}_images = Slice (image, {start}, {order}_end, {axes})
    {order}_planes = Transpose <perm = [{perm}]> ({order}_images)
    {order}_levels = Cast <to = 1> ({order}_planes)
"""

_END = """
    {order}_images_end = Reshape ({order}_count, flat)
    {order}_end = Concat <axis = 0> ({order}_images_end, down_end, across_end)
"""

# In both passes the last axis is resized and the weights are the right factor; the image is transposed in between,
# before it is rounded. onnxruntime refuses an empty batch on the right of a product or after a transposition.
_TWO_PASSES = """
    {order}_one = MatMul ({order}_levels, {first}_columns)
    {order}_turned = Transpose <perm = [0, 1, 3, 2]> ({order}_one)
    {order}_turned_up = Add ({order}_turned, half)
    {clip_turned}
    {order}_turned_levels = Floor ({order}_turned_{level})
    {order}_two = MatMul ({order}_turned_levels, {second}_columns)
    {order}_two_up = Add ({order}_two, half)
    {clip_two}
    {order}_resized = Floor ({order}_two_{level})
"""
# Weights below 0 lead out of the grey levels; Pillow clips after both passes.
_CLIP = "{order}_{of}_within = Clip ({order}_{of}_up, half, white)"

_GRAPH = """
resize (uint8[N, H, W, 3] image) => (float[N, 3, {side}, {side}] {planes})
<
    float side = {{{side}}}, float two_sides = {{{two_sides}}}, float one = {{1}}, float half = {{0.5}},
    float fixed_point = {{4194304}},{bicubic_constants}
    int64 first = {{0}}, int64 step = {{1}}, int64 two = {{2}}, int64 whole_side = {{{side}}},
    int64 count_index = {{0}}, int64 down_index = {{1}}, int64 across_index = {{2}},
    int64[3] plane_shape = {{3, {side}, {side}}},
    int64[3] corner = {{0, 0, 0}}, int64[3] image_axes = {{0, 1, 2}},
    int64[1] last_axis = {{1}}, int64[1] flat = {{-1}}, int64[1] first_axis = {{0}},
    float[1, {side}] odd_numbers = {{{odd_numbers}}}
>
{{
    shape = Shape (image)
    count = Gather <axis = 0> (shape, count_index)
    down_length = Gather <axis = 0> (shape, down_index)
    across_length = Gather <axis = 0> (shape, across_index)
    {body}
    across_first_upright = Transpose <perm = [0, 1, 3, 2]> (across_first_resized)
    same_shape = Concat <axis = 0> (same_end, plane_shape)
    same_levels_shaped = Reshape (same_levels, same_shape)
    {planes} = Concat <axis = 0> (same_levels_shaped, across_first_upright, down_first_resized)
}}
"""

# Source: measured on Pillow 13 for many sizes: it resizes vertically first if that saves work, which for a square
# target of side S means H > 2W - S and H > S. (Older versions always start horizontally; at most pixels the results
# differ by one grey level of rounding.) Each pass rounds half up to whole grey levels.
_ORDER = """
    across_twice = Mul (across_length, two)
    across_excess = Sub (across_twice, whole_side)
    limit = Max (across_excess, whole_side)
    is_down_first = Greater (down_length, limit)
    share_down = Cast <to = 7> (is_down_first)
    has_height = Equal (down_length, whole_side)
    has_width = Equal (across_length, whole_side)
    has_size = And (has_height, has_width)
    share_same = Cast <to = 7> (has_size)
    share_resized = Sub (step, share_same)
    share_across = Sub (share_resized, share_down)
    same_count = Mul (count, share_same)
    down_first_count = Mul (count, share_down)
    across_first_count = Mul (count, share_across)
    same_end = Reshape (same_count, flat)
"""


def resize_graph(spec: PreprocessSpec) -> onnx.GraphProto:
    """Return a graph from ``image`` uint8 (N, H, W, 3) to ``planes`` float32 (N, 3, S, S), whole numbers 0..255.

    N, H and W are free, S is the spec's size. Where the spec cuts nothing off, images of S × S pixels keep every pixel;
    where it does, :func:`xfeat.export.build.box_graph.box_graph` says how such images are passed.
    """
    prefixed = partial(onnx.compose.add_prefix_graph, rename_inputs=False, rename_outputs=False)
    resize = prefixed(_resize(spec.size, spec.interpolation), _RESIZE)
    if not spec.cuts:
        return resize
    return onnx.compose.merge_graphs(prefixed(box_graph(spec), _BOX), resize, [("picture", INPUT)])


def _resize(side: int, interpolation: str) -> onnx.GraphProto:
    bicubic = interpolation == "bicubic"
    kernel = "cubic" if bicubic else "triangle"
    axes = [(axis, _BICUBIC.format(axis=axis) if bicubic else "") for axis in ("across", "down")]
    body = [
        _ORDER,
        *(_WEIGHTS.format(axis=axis, kernel=kernel, bicubic=more) for axis, more in axes),
        _BATCH.format(order="same", start="first_axis", axes="first_axis", perm="0, 3, 1, 2"),
    ]
    for first, second, perm in (("across", "down", "0, 3, 1, 2"), ("down", "across", "0, 3, 2, 1")):
        order = f"{first}_first"
        body += [
            _END.format(order=order),
            _BATCH.format(order=order, start="corner", axes="image_axes", perm=perm),
            _TWO_PASSES.format(
                order=order,
                first=first,
                second=second,
                level="within" if bicubic else "up",
                clip_turned=_CLIP.format(order=order, of="turned") if bicubic else "",
                clip_two=_CLIP.format(order=order, of="two") if bicubic else "",
            ),
        ]
    text = _GRAPH.format(
        side=side,
        two_sides=2 * side,
        planes=PLANES,
        odd_numbers=", ".join(str(2 * i + 1) for i in range(side)),
        bicubic_constants=" float two_pixels = {2}, float white = {255.5}," if bicubic else "",
        body="".join(body),
    )
    return parse_graph(text)

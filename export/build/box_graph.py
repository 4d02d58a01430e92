"""The box that is cut out of an image before it is resized, as an ONNX graph: see :meth:`PreprocessSpec.box`."""

from __future__ import annotations

import onnx

from xfeat.export.build.graph import parse_graph
from xfeat.featurize.specs import CROP_PARTS, PreprocessSpec

# Sizes are vectors of height and width. Only basic operators, of which every runtime has those for shapes.
_GRAPH = """
box (uint8[N, H, W, 3] image) => (uint8[N, height, width, 3] picture)
<
    int64 one = {{1}}, int64 two = {{2}}, int64[1] count_axis = {{0}}, int64[2] plane_axes = {{1, 2}},
    int64[1] channels = {{3}}, int64[2] prepared_size = {{1, {area}}}, int64[2] prepared_change = {{{change}}},
    int64 crop_parts = {{{crop_parts}}}, int64 all_parts = {{{all_parts}}}, int64 half_part = {{{half_part}}}
>
{{
    given_shape = Shape (image)
    count = Gather <axis = 0> (given_shape, count_axis)
    given_size = Gather <axis = 0> (given_shape, plane_axes)
    is_prepared_axis = Equal (given_size, prepared_size)
    prepared_axes = Cast <to = 7> (is_prepared_axis)
    prepared = ReduceMin <keepdims = 1> (prepared_axes)
    unprepared = Sub (one, prepared)
    change = Mul (prepared, prepared_change)
    size = Add (given_size, change)
    shape = Concat <axis = 0> (count, size, channels)
    upright = Reshape (image, shape)
    parts = Mul (size, crop_parts)
    parts_up = Add (parts, half_part)
    nearest = Div (parts_up, all_parts)
    others = Sub (size, one)
    most = Div (others, two)
    fitting = Min (nearest, most)
    cut = Mul (fitting, unprepared)
    both_cuts = Mul (cut, two)
    rest = Sub (size, both_cuts)
    {box}
    picture = Slice (upright, start, end, plane_axes)
}}
"""
_BOXES = {
    "squash": """
    start = Identity (cut)
    end = Add (cut, rest)
""",
    "crop": """
    side = ReduceMin <keepdims = 1> (rest)
    over = Sub (rest, side)
    margin = Div (over, two)
    start = Add (cut, margin)
    end = Add (start, side)
""",
}


def box_graph(spec: PreprocessSpec) -> onnx.GraphProto:
    """Return a graph from ``image`` uint8 (N, H, W, 3) to ``picture``, the spec's box of it.

    N, H and W are free. Images of one row of S·S pixels, S being the network's side, are laid out as (N, S, S, 3) and
    not cut: whoever has cut and resized images passes them like this. Their own shape would not tell that, because a
    file of S × S pixels is cut.
    """
    side = spec.size
    text = _GRAPH.format(
        area=side * side,
        change=f"{side - 1}, {side - side * side}",
        crop_parts=spec.crop_parts,
        all_parts=CROP_PARTS,
        half_part=CROP_PARTS // 2,
        box=_BOXES[spec.resize],
    )
    return parse_graph(text)

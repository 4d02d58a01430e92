"""What a training step is made of, compiled: products, normalisation, Adam.

Level 0 is the features, the last level the logits, and those between are the hidden layers. Arrays are flat float32.
What belongs to a batch lies in tiles of ``COLUMNS`` rows, (tiles, width, COLUMNS) a level: values of one feature are
neighbours. Widths are whole multiples of ``COLUMNS``; what fills them up is zero, and stays so under Adam.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.head.batched.compiled.simd import (
    COLUMNS,
    LANES,
    ROWS,
    add_products,
    compiled,
    load,
    no_sums,
    root,
    splat,
    store,
    store_tile,
    total,
)
from xfeat.head.training.adam import BETA1, BETA2, EPS

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

_ZERO = np.float32(0)
_KEEP_SQUARES, _NEW_MEANS, _NEW_SQUARES = np.float32(BETA2), np.float32(1 - BETA1), np.float32(1 - BETA2)
_EPS = np.float32(EPS)


class Plan(NamedTuple):
    """Where what lies, for L + 1 levels; :func:`xfeat.head.batched.compiled.engine.plan_of` makes it."""

    sizes: Places  # number of features of each level
    widths: Places  # sizes with what fills them up
    tiled: Places  # where a level begins in the arrays of a batch
    spots: Places  # where it begins in arrays of one value per feature
    # Of levels but the last: where the weights of the normalisation begin, first all scales, then all shifts;
    norms: Places
    # likewise of the linear layer behind it (width of the next level, width), and then its biases.
    lines: Places
    rows: int  # of the batch, B
    tiles: int  # of COLUMNS rows that hold them


class Space(NamedTuple):
    """Memory of one step, made once: of a batch, all levels one after the other, if nothing else is said."""

    inputs: Floats  # what goes into the normalisation; of the last level, logits
    normalized: Floats  # what comes out, before scale and shift
    outputs: Floats  # and after them, and after dropout
    upstream: Floats  # gradients of the outputs, and then of what went into ReLU; of the last level, of the logits
    packed: Floats  # what a linear layer multiplies with, as :func:`pack` writes it
    live: Floats  # (tiles · COLUMNS,) 1 for each row that there is, and 0 for what fills the last tile up
    means: Floats  # of the batch, one value per feature
    variances: Floats  # likewise
    factors: Floats  # 1 by the standard deviation, likewise
    gradients: Floats  # of scales and then of shifts, of one level
    biases: Floats  # gradients of the biases before one level
    alike: Floats  # as many scales of 1 as the widest level has features, and then shifts of 0
    scratch: Floats  # ROWS · COLUMNS


class Moved(NamedTuple):
    """Weights of a head and Adam's moments of them, all its layers in a row."""

    weights: Floats
    means: Floats
    squares: Floats


class Factors(NamedTuple):
    """A matrix in a flat array: row r, column n is at ``first + r * row + n * column``; rows in multiples of ROWS."""

    values: Floats
    first: int
    row: int
    column: int
    rows: int
    columns: int


@compiled
def multiply(factors: Factors, values: Floats, at: int, out: Floats, to: int) -> None:
    """Write (rows, COLUMNS) at ``to``: the matrix times a tile of values (columns, COLUMNS), which begins at ``at``."""
    for above in range(0, factors.rows, ROWS):
        sums, place, column = no_sums(), factors.first + above * factors.row, at
        for _ in range(factors.columns):
            sums = add_products(sums, factors.values, place, factors.row, values, column)
            place += factors.column
            column += COLUMNS
        store_tile(out, to + above * COLUMNS, sums)


@compiled
def pack(plan: Plan, level: int, values: Floats, out: Floats) -> None:
    """Write a level's values for sums over the batch: (width / COLUMNS, B, COLUMNS), features as neighbours."""
    width, start = plan.widths[level], plan.tiled[level]
    for left in range(0, width, COLUMNS):
        for row in range(plan.rows):
            place = start + (row // COLUMNS * width + left) * COLUMNS + row % COLUMNS
            to = start + (left * plan.rows) + row * COLUMNS
            for column in range(COLUMNS):
                out[to + column] = values[place + column * COLUMNS]


@compiled
def normalize(plan: Plan, space: Space, level: int, eps: np.float32) -> None:
    """Centre the inputs of a level over the batch and divide them by their deviation."""
    width, start, count = plan.widths[level], plan.tiled[level], np.float32(plan.rows)
    for feature in range(width):
        sums = splat(_ZERO)
        for tile in range(plan.tiles):
            place = start + (tile * width + feature) * COLUMNS
            for shift in range(0, COLUMNS, LANES):
                sums = sums + load(space.inputs, place + shift) * load(space.live, tile * COLUMNS + shift)
        mean = total(sums) / count
        sums = splat(_ZERO)
        for tile in range(plan.tiles):
            place = start + (tile * width + feature) * COLUMNS
            for shift in range(0, COLUMNS, LANES):
                centred = load(space.inputs, place + shift) - splat(mean)
                centred = centred * load(space.live, tile * COLUMNS + shift)
                store(space.normalized, place + shift, centred)
                sums = sums + centred * centred
        variance = total(sums) / count
        factor = np.float32(1) / np.sqrt(variance + eps)
        for tile in range(plan.tiles):
            place = start + (tile * width + feature) * COLUMNS
            for shift in range(0, COLUMNS, LANES):
                store(space.normalized, place + shift, load(space.normalized, place + shift) * splat(factor))
        spot = plan.spots[level] + feature
        space.means[spot], space.variances[spot], space.factors[spot] = mean, variance, factor


@compiled
def scale(plan: Plan, space: Space, level: int, moved: Moved) -> None:
    """Write the outputs of a level: what was normalised, times its scale, plus its shift."""
    width = plan.widths[level]
    for feature in range(width):
        factor = splat(moved.weights[plan.norms[level] + feature])
        constant = splat(moved.weights[plan.norms[level] + width + feature])
        for tile in range(plan.tiles):
            place = plan.tiled[level] + (tile * width + feature) * COLUMNS
            for spot in range(place, place + COLUMNS, LANES):
                store(space.outputs, spot, load(space.normalized, spot) * factor + constant)


@compiled
def sum_rows(plan: Plan, level: int, values: Floats, out: Floats) -> None:
    """Write a sum over the batch for each feature of a level; what fills the last tile up must be 0."""
    width = plan.widths[level]
    for feature in range(width):
        sums = splat(_ZERO)
        for tile in range(plan.tiles):
            place = plan.tiled[level] + (tile * width + feature) * COLUMNS
            for spot in range(place, place + COLUMNS, LANES):
                sums = sums + load(values, spot)
        out[feature] = total(sums)


@compiled
def move(moved: Moved, place: int, weights: Any, gradient: Any, rule: Any) -> None:
    """Move a vector of weights, which are at a place and given here, by its gradient; the rule is of vectors."""
    rate, correction, decay = rule
    gradient = gradient + decay * weights
    mean = load(moved.means, place)
    mean = mean + splat(_NEW_MEANS) * (gradient - mean)
    square = splat(_KEEP_SQUARES) * load(moved.squares, place) + splat(_NEW_SQUARES) * gradient * gradient
    store(moved.means, place, mean)
    store(moved.squares, place, square)
    store(moved.weights, place, weights - rate * mean / (root(square) * correction + splat(_EPS)))


@compiled
def move_all(moved: Moved, place: int, gradients: Floats, count: int, rule: Floats) -> None:
    """Move ``count`` weights, from a place on, by as many gradients."""
    vectors = splat(rule[0]), splat(rule[1]), splat(rule[2])
    for shift in range(0, count, LANES):
        move(moved, place + shift, load(moved.weights, place + shift), load(gradients, shift), vectors)


@compiled
def move_matrix(plan: Plan, space: Space, level: int, moved: Moved, affine: Floats, rule: Floats) -> None:
    """Move the weights of the linear layer behind a level; find on the way what its inputs' scales and shifts change.

    The gradient of the weights is made tile by tile, used in two ways, and never written down. The layer's inputs are
    ``affine[d] * x[d] + affine[width + d]`` for x in ``packed``. The gradient of ``affine[d]`` is the sum of the
    weights times what their gradients are for x alone, which saves a product as large as the layer's. ``biases`` holds
    the gradients of the layer's biases; those of ``affine`` are written to ``gradients``.
    """
    width, above_width = plan.widths[level], plan.widths[level + 1]
    vectors = splat(rule[0]), splat(rule[1]), splat(rule[2])
    rows = -(-plan.sizes[level + 1] // ROWS) * ROWS
    for place in range(0, 2 * width, LANES):
        store(space.gradients, place, splat(_ZERO))
    for above in range(0, rows, ROWS):
        column = plan.tiled[level]
        for left in range(0, width, COLUMNS):
            sums = no_sums()
            for tile in range(plan.tiles):
                place = plan.tiled[level + 1] + (tile * above_width + above) * COLUMNS
                for row in range(min(COLUMNS, plan.rows - tile * COLUMNS)):
                    sums = add_products(sums, space.upstream, place + row, COLUMNS, space.packed, column)
                    column += COLUMNS
            store_tile(space.scratch, 0, sums)
            for d in range(left, left + COLUMNS, LANES):
                factor, constant = load(affine, d), load(affine, width + d)
                of_factor, of_constant = load(space.gradients, d), load(space.gradients, width + d)
                spot = plan.lines[level] + above * width + d
                for row in range(ROWS):
                    alone, bias = load(space.scratch, row * COLUMNS + d - left), splat(space.biases[above + row])
                    weights = load(moved.weights, spot)
                    of_factor = of_factor + weights * alone
                    of_constant = of_constant + weights * bias
                    move(moved, spot, weights, factor * alone + constant * bias, vectors)
                    spot += width
                store(space.gradients, d, of_factor)
                store(space.gradients, width + d, of_constant)

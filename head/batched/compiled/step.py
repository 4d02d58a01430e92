"""Training steps of several heads, compiled: forwards, loss, backwards and Adam, one head after the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.head.batched.compiled.kernels import (
    Factors,
    Floats,
    Moved,
    Plan,
    Space,
    move_all,
    move_matrix,
    multiply,
    normalize,
    pack,
    scale,
    sum_rows,
)
from xfeat.head.batched.compiled.simd import COLUMNS, LANES, ROWS, compiled, load, splat, store, total, where_positive
from xfeat.head.data import counter_rng
from xfeat.head.data.counter_rng import BITS, FEATURES, LAST_LAYER

_ZERO, _ONE = np.float32(0), np.float32(1)
mix = compiled(counter_rng.mix)


class Heads(NamedTuple):
    """K heads, a row each."""

    weights: Floats  # float32 (K, …), as :class:`xfeat.head.batched.compiled.kernels.Plan` says
    means: Floats  # Adam's first moments
    squares: Floats  # and second
    running: Floats  # float32 (K, 2, …), running means and variances of the normalisations
    streams: NDArray[np.int64]  # (K,), which rows, labels and keys each head reads, ascending
    keep_below: NDArray[np.int64]  # (K, 2), the bounds of random bits for dropout: last layer, and features
    scales: Floats  # float32 (K, 2), the factors of values that are kept
    class_weights: Floats  # float32 (K, C), how much a row of each class counts
    losses: Floats  # float32 (K, 2), label smoothing and the exponent of the focal loss
    momentum: np.float32  # of the running statistics
    eps: np.float32  # that is added to variances


class Steps(NamedTuple):
    """What comes in: for S streams T batches of B rows each."""

    features: Floats  # float32, rows of D one somewhere behind the other
    starts: NDArray[np.int64]  # (S, T, B), where in ``features`` a row begins
    labels: NDArray[np.int64]  # (S, T, B)
    keys: NDArray[np.int64]  # (S, T, 2, 2), of the random numbers of both dropout layers
    # float32 (T, K, 3), how Adam moves a head: learning rate by the first bias correction, 1 by the root of the second,
    # and the L2 penalty.
    rules: Floats


@compiled
def train_steps(plan: Plan, space: Space, heads: Heads, steps: Steps, losses: Floats, hits: NDArray[np.int64]) -> None:
    """Move all heads by T steps; add up losses of all rows (K,) and how many (K,) were classified rightly."""
    last = len(plan.sizes) - 1
    for step in range(len(steps.rules)):
        for head in range(len(heads.streams)):
            stream = heads.streams[head]
            moved = Moved(heads.weights[head], heads.means[head], heads.squares[head])
            if head == 0 or stream != heads.streams[head - 1]:
                gather_rows(plan, space, steps, step, stream)
                _drop(plan, 0, space.inputs, heads, head, FEATURES, steps.keys[stream, step])
                normalize(plan, space, 0, heads.eps)
                if last > 1:
                    pack(plan, 0, space.normalized, space.packed)
            keys = steps.keys[stream, step]
            _forward(plan, space, heads, head, moved, keys)
            loss, right = _lose(plan, space, heads, head, steps.labels[stream, step])
            losses[head] += loss * np.float32(plan.rows)
            hits[head] += right
            _backward(plan, space, heads, head, moved, steps.rules[step, head], keys)


@compiled
def gather_rows(plan: Plan, space: Space, steps: Steps, step: int, stream: int) -> None:
    width, size = plan.widths[0], plan.sizes[0]
    starts = steps.starts[stream, step]
    for left in range(0, size, COLUMNS):
        right = min(left + COLUMNS, size)
        for row in range(plan.rows):
            place = plan.tiled[0] + row // COLUMNS * width * COLUMNS + row % COLUMNS
            features = steps.features[starts[row] : starts[row] + size]
            for feature in range(left, right):
                space.inputs[place + feature * COLUMNS] = features[feature]


@compiled
def _forward(plan: Plan, space: Space, heads: Heads, head: int, moved: Moved, keys: NDArray[np.int64]) -> None:
    last = len(plan.sizes) - 1
    for level in range(last):
        if level > 0:
            normalize(plan, space, level, heads.eps)
        _follow(plan, space, level, heads.running[head], heads.momentum)
        scale(plan, space, level, moved)
        if level == last - 1:
            _drop(plan, level, space.outputs, heads, head, LAST_LAYER, keys)
        width, rows = plan.widths[level], plan.sizes[level + 1]
        matrix = Factors(moved.weights, plan.lines[level], width, 1, -(-rows // ROWS) * ROWS, plan.sizes[level])
        for tile in range(plan.tiles):
            at = plan.tiled[level] + tile * width * COLUMNS
            to = plan.tiled[level + 1] + tile * plan.widths[level + 1] * COLUMNS
            multiply(matrix, space.outputs, at, space.inputs, to)
        _add_biases(plan, space, level, moved)


@compiled
def _follow(plan: Plan, space: Space, level: int, running: Floats, momentum: np.float32) -> None:
    """Let the running statistics of a normalisation follow those of the batch."""
    unbiased = np.float32(plan.rows) / np.float32(plan.rows - 1)
    for spot in range(plan.spots[level], plan.spots[level] + plan.sizes[level]):
        running[0, spot] += momentum * (space.means[spot] - running[0, spot])
        running[1, spot] += momentum * (space.variances[spot] * unbiased - running[1, spot])


@compiled
def _drop(plan: Plan, level: int, values: Floats, heads: Heads, head: int, layer: int, keys: NDArray[np.int64]) -> None:
    """Apply dropout to the values of a level, with the factors of ``counter_rng.dropout_factors``."""
    bound, factor = heads.keep_below[head, layer], heads.scales[head, layer]
    if bound == 1 << BITS:
        return
    width, size = plan.widths[level], plan.sizes[level]
    first_key, second_key = keys[layer, 0], keys[layer, 1]
    for tile in range(plan.tiles):
        for feature in range(size):
            place = plan.tiled[level] + (tile * width + feature) * COLUMNS
            index = tile * COLUMNS * size + feature
            for column in range(COLUMNS):
                bits = mix(mix((index + column * size) ^ first_key) ^ second_key)
                values[place + column] *= factor if bits < bound else _ZERO


@compiled
def _add_biases(plan: Plan, space: Space, level: int, moved: Moved) -> None:
    """Add the biases behind a level, and apply ReLU unless logits have come out."""
    above = level + 1
    width = plan.widths[above]
    biases = plan.lines[level] + width * plan.widths[level]
    for feature in range(plan.sizes[above]):
        bias = splat(moved.weights[biases + feature])
        for tile in range(plan.tiles):
            place = plan.tiled[above] + (tile * width + feature) * COLUMNS
            for spot in range(place, place + COLUMNS, LANES):
                values = load(space.inputs, spot) + bias
                store(space.inputs, spot, where_positive(values, values) if above < len(plan.sizes) - 1 else values)


@compiled
def _lose(plan: Plan, space: Space, heads: Heads, head: int, labels: NDArray[np.int64]) -> tuple[np.float32, int]:
    """Return loss and hits of a batch, and write the gradient of the loss: that of
    ``xfeat.head.training.loss.training_loss``."""
    last = len(plan.sizes) - 1
    classes, width = plan.sizes[last], plan.widths[last]
    class_weights = heads.class_weights[head]
    smoothing, gamma = heads.losses[head, 0], heads.losses[head, 1]
    weight_sum = _ZERO
    for row in range(plan.rows):
        weight_sum += class_weights[labels[row]]
    loss, hits = _ZERO, 0
    for row in range(plan.rows):
        first = plan.tiled[last] + row // COLUMNS * width * COLUMNS + row % COLUMNS
        label, best = labels[row], 0
        own_weight = class_weights[label]
        for c in range(1, classes):
            if space.inputs[first + c * COLUMNS] > space.inputs[first + best * COLUMNS]:
                best = c
        hits += best == label
        highest, exponentials = space.inputs[first + best * COLUMNS], _ZERO
        for c in range(classes):
            exponentials += np.exp(space.inputs[first + c * COLUMNS] - highest)
        shift = highest + np.log(exponentials)
        plain = targets = _ZERO
        for c in range(classes):
            share = _target(c == label, own_weight, own_weight if gamma > 0 else class_weights[c], smoothing, classes)
            plain -= share * (space.inputs[first + c * COLUMNS] - shift)
            targets += share
        own = np.exp(space.inputs[first + label * COLUMNS] - shift)
        focus, slope = _ONE, _ZERO
        if gamma > 0:
            focus = (_ONE - own) ** gamma
            slope = gamma * (_ONE - own) ** (gamma - _ONE) * plain * own
        loss += plain * focus
        for c in range(classes):
            place = first + c * COLUMNS
            share = _target(c == label, own_weight, own_weight if gamma > 0 else class_weights[c], smoothing, classes)
            probability = np.exp(space.inputs[place] - shift)
            one = _ONE if c == label else _ZERO
            gradient = (targets * probability - share) * focus - slope * (one - probability)
            space.upstream[place] = gradient / weight_sum
    return loss / weight_sum, hits


@compiled
def _target(right: bool, own: np.float32, spread: np.float32, smoothing: np.float32, classes: int) -> np.float32:
    """Return how much the logarithm of a class's probability counts for a row."""
    return smoothing * spread / np.float32(classes) + ((_ONE - smoothing) * own if right else _ZERO)


@compiled
def _backward(
    plan: Plan, space: Space, heads: Heads, head: int, moved: Moved, rule: Floats, keys: NDArray[np.int64]
) -> None:
    last = len(plan.sizes) - 1
    for level in range(last - 1, -1, -1):
        width = plan.widths[level]
        norm, line = plan.norms[level], plan.lines[level]
        alike = len(space.alike) // 2 - width
        sum_rows(plan, level + 1, space.upstream, space.biases)
        if level == 0 and last > 1:
            # Nobody asks for the gradient of the features.
            move_matrix(plan, space, level, moved, moved.weights[norm : norm + 2 * width], rule)
        else:
            _pass_back(plan, space, level, moved)
            if level == last - 1:
                _drop(plan, level, space.upstream, heads, head, LAST_LAYER, keys)
            pack(plan, level, space.outputs, space.packed)
            move_matrix(plan, space, level, moved, space.alike[alike : alike + 2 * width], rule)
            _normalize_back(plan, space, level, moved)
        move_all(moved, norm, space.gradients, 2 * width, rule)
        move_all(moved, line + plan.widths[level + 1] * width, space.biases, plan.widths[level + 1], rule)


@compiled
def _pass_back(plan: Plan, space: Space, level: int, moved: Moved) -> None:
    width, above = plan.widths[level], plan.widths[level + 1]
    rows = -(-plan.sizes[level] // ROWS) * ROWS
    matrix = Factors(moved.weights, plan.lines[level], 1, width, rows, plan.sizes[level + 1])
    for tile in range(plan.tiles):
        at, to = plan.tiled[level + 1] + tile * above * COLUMNS, plan.tiled[level] + tile * width * COLUMNS
        multiply(matrix, space.upstream, at, space.upstream, to)


@compiled
def _normalize_back(plan: Plan, space: Space, level: int, moved: Moved) -> None:
    """Write the gradients of scale and shift; turn that of a level's outputs into that of what went into ReLU."""
    width, count = plan.widths[level], np.float32(plan.rows)
    for feature in range(width):
        by_factor = by_constant = splat(_ZERO)
        for tile in range(plan.tiles):
            place = plan.tiled[level] + (tile * width + feature) * COLUMNS
            for spot in range(place, place + COLUMNS, LANES):
                gradient = load(space.upstream, spot)
                by_constant = by_constant + gradient
                by_factor = by_factor + gradient * load(space.normalized, spot)
        of_factor, of_constant = total(by_factor), total(by_constant)
        space.gradients[feature], space.gradients[width + feature] = of_factor, of_constant
        if level > 0:
            slope = splat(moved.weights[plan.norms[level] + feature] * space.factors[plan.spots[level] + feature])
            mean, part = splat(of_constant / count), splat(of_factor / count)
            for tile in range(plan.tiles):
                place = plan.tiled[level] + (tile * width + feature) * COLUMNS
                for shift in range(0, COLUMNS, LANES):
                    spot = place + shift
                    gradient = load(space.upstream, spot) - mean - load(space.normalized, spot) * part
                    gradient = slope * gradient * load(space.live, tile * COLUMNS + shift)
                    store(space.upstream, spot, where_positive(load(space.inputs, spot), gradient))

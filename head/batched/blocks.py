"""Which heads train together as one block: as many of one shape as is fastest, or as a GPU has room for."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from xfeat.head.batched.engine import Job
from xfeat.head.specs import HeadSpec

# Weights, gradients and two moments of a block, 16 bytes a weight. The step of Adam passes over all of them, and takes
# twice as long once the blocks of both cores are more than about 48 MiB. docs/decisions/0040 has the table.
_BLOCK_BYTES = 24 << 20
_MOST_HEADS = 16
# On a GPU: heads that keep even a large one busy, and the share of its free memory that is counted on.
# docs/decisions/0044 has the reckoning.
_MOST_HEADS_ON_GPU = 256
_SHARE_OF_GPU = 0.8
# Weights, gradients and two moments, all of them twice while some heads leave a block; the best state once.
_NUMBERS_PER_WEIGHT, _NUMBERS_AVERAGED = 9, 2
# Arrays as wide as each layer: what goes on in a step is kept for the way back.
_ARRAYS_PER_ROW = 10


def divide(
    jobs: Mapping[int, Job],
    dim: int,
    classes: int,
    threads: int = 1,
    *,
    one_seed: bool = False,
    room: int | None = None,
) -> list[dict[int, Job]]:
    """Divide jobs, by number, into blocks.

    Heads with the same seed and feature dropout are neighbours, since they read the same rows. Blocks are made smaller
    where there would be fewer of them than threads.

    Args:
        jobs: number to layers and optimisation.
        dim: number of features.
        classes: number of classes.
        threads: how many blocks train at a time.
        one_seed: whether only heads with the same seed may share a block.
        room: free bytes of the GPU that trains them; ``None`` for the CPU.
    """
    shapes: dict[object, list[int]] = {}
    for number, job in jobs.items():
        seed = job[1].seed if one_seed else None
        shapes.setdefault((shape_of(job), seed), []).append(number)
    blocks = []
    for numbers in shapes.values():
        numbers.sort(key=lambda number: (jobs[number][1].seed, jobs[number][0].feature_dropout, jobs[number][1].lr))
        most = min(most_heads(jobs[numbers[0]], dim, classes, room), -(-len(jobs) // threads))
        count = -(-len(numbers) // most)
        # Blocks as equal as can be: 5 heads make 3 and 2, not 4 and 1.
        parts = [part.tolist() for part in np.array_split(numbers, count)]
        blocks += [{number: jobs[number] for number in part} for part in parts]
    return blocks


def shape_of(job: Job) -> tuple[object, ...]:
    """Return what heads that train as one program have in common."""
    head, train = job
    return head.hidden, head.feature_dropout > 0, train.batch_size, train.epochs, train.average > 0


def most_heads(job: Job, dim: int, classes: int, room: int | None = None) -> int:
    """Return how many such heads train fastest at once on a core, or fit into ``room``, but at least one."""
    head, train = job
    weights = matrix_weights(head, dim, classes)
    if room is None:
        return max(1, min(_MOST_HEADS, _BLOCK_BYTES // (16 * weights)))
    copies = _NUMBERS_PER_WEIGHT + _NUMBERS_AVERAGED * (train.average > 0)
    values = _ARRAYS_PER_ROW * train.batch_size * sum([dim, *head.hidden, classes])
    return max(1, min(_MOST_HEADS_ON_GPU, int(room * _SHARE_OF_GPU) // (4 * (copies * weights + values))))


def matrix_weights(head: HeadSpec, dim: int, classes: int) -> int:
    """Return how many weights the matrices of a head have."""
    return sum(below * above for below, above in pairwise([dim, *head.hidden, classes]))

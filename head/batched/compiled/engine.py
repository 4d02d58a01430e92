"""Several heads trained by compiled steps, in one pass over the weights: the fast engine of a CPU.

Importing this module imports numba. docs/decisions/0043 has what it gains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xfeat.head.batched.compiled.kernels import Plan, Space
from xfeat.head.batched.compiled.simd import COLUMNS, ROWS
from xfeat.head.batched.compiled.step import Heads, Steps, train_steps
from xfeat.head.batched.engine import Engine, Job
from xfeat.head.data.counter_rng import DROPOUT, FEATURES, LAST_LAYER, key_of
from xfeat.head.data.rows import EqualBatches
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.adam import BETA1, BETA2

logger = logging.getLogger(__name__)


class CompiledEngine(Engine):
    """Trains K heads; weights and moments of all layers of a head lie in one row of memory."""

    def __init__(self, jobs: Sequence[Job], dim: int, class_weights: Tensor) -> None:
        super().__init__(jobs, dim, class_weights)
        self._sizes = [dim, *jobs[0][0].hidden, class_weights.shape[1]]
        self._spaces: dict[int, tuple[Plan, Space]] = {}
        plan = plan_of(self._sizes, 1)
        heads, weights, features = len(jobs), int(plan.lines[-1]), int(plan.spots[-1])
        norm = next(module for module in self.models[0] if isinstance(module, nn.BatchNorm1d))
        self._heads = Heads(
            weights=np.zeros((heads, weights), np.float32),
            means=np.zeros((heads, weights), np.float32),
            squares=np.zeros((heads, weights), np.float32),
            running=np.zeros((heads, 2, features), np.float32),
            streams=np.zeros(heads, np.int64),
            keep_below=self.keep_below.numpy(),
            scales=self.scales.numpy(),
            class_weights=self.class_weights.numpy(),
            losses=np.array([[spec.label_smoothing, spec.focal_gamma] for spec in self.specs], np.float32),
            momentum=np.float32(norm.momentum),
            eps=np.float32(norm.eps),
        )
        self._view_state()

    def train(
        self, batches: EqualBatches, seeds: Sequence[int], streams: Sequence[int], rates: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        _, count, rows = batches.places.shape
        plan, space = self._spaces.get(rows) or self._spaces.setdefault(rows, _made(self._sizes, rows))
        self._heads.streams[:] = streams
        features, starts = _laid_out(batches.features, batches.places)
        steps_done, column = self.steps + np.arange(count), np.array(seeds, np.int64)[:, None]
        keys = [np.stack(key_of(column, DROPOUT, steps_done, layer), -1) for layer in (LAST_LAYER, FEATURES)]
        steps = Steps(
            features=features,
            starts=starts,
            labels=batches.labels.numpy(),
            keys=np.stack(keys, 2),
            rules=self._rules(count, rates),
        )
        losses, hits = np.zeros(len(streams), np.float32), np.zeros(len(streams), np.int64)
        train_steps(plan, space, self._heads, steps, losses, hits)
        for name, values in self.state.items():
            if name.endswith("num_batches_tracked"):
                values += count
        return torch.from_numpy(losses), torch.from_numpy(hits)

    def _rules(self, count: int, rates: Sequence[float]) -> NDArray[np.float32]:
        rules = np.empty((count, len(rates), 3), np.float32)
        rules[:, :, 2] = [spec.weight_decay for spec in self.specs]
        with np.errstate(over="ignore"):  # of a rate that diverges anyway
            for rule in rules:
                self.steps += 1
                rule[:, 0] = np.array(rates) / (1 - BETA1**self.steps)
                rule[:, 1] = 1 / math.sqrt(1 - BETA2**self.steps)
        return rules

    def keep(self, heads: Sequence[int]) -> None:
        super().keep(heads)
        rest = list(heads)
        self._heads = Heads(*(cast(Any, part[rest] if isinstance(part, np.ndarray) else part) for part in self._heads))
        self._view_state()

    def _view_state(self) -> None:
        """Move the state into the arrays here: all of it but the counts become views of them."""
        plan, views = plan_of(self._sizes, 1), {}
        weights, running = torch.from_numpy(self._heads.weights), torch.from_numpy(self._heads.running)
        norms, lines = (
            [index for index, module in enumerate(self.models[0]) if isinstance(module, kind)]
            for kind in (nn.BatchNorm1d, nn.Linear)
        )
        for level, (norm, line) in enumerate(zip(norms, lines, strict=True)):
            size, above = self._sizes[level : level + 2]
            width, above_width = plan.widths[level : level + 2].tolist()
            scales, matrix, spot = (int(part[level]) for part in (plan.norms, plan.lines, plan.spots))
            shifts, biases = scales + width, matrix + above_width * width
            views[f"{norm}.weight"] = weights[:, scales : scales + size]
            views[f"{norm}.bias"] = weights[:, shifts : shifts + size]
            views[f"{norm}.running_mean"] = running[:, 0, spot : spot + size]
            views[f"{norm}.running_var"] = running[:, 1, spot : spot + size]
            views[f"{line}.weight"] = weights[:, matrix:biases].view(-1, above_width, width)[:, :above, :size]
            views[f"{line}.bias"] = weights[:, biases : biases + above]
        for name, view in views.items():
            view.copy_(self.state[name])
        self.state |= views


@cache
def compile_steps() -> None:
    """Load what was compiled before, or compile it: 12 s on one core, once on a machine."""
    engine = CompiledEngine([(HeadSpec(hidden=(1,)), TrainSpec())], 1, torch.ones(1, 2))
    rows = torch.zeros(1, 1, 2, dtype=torch.int64)
    batches = EqualBatches(features=torch.zeros(1, 1), places=rows, labels=rows)
    try:
        engine.train(batches, [0], [0], [0.0])
    except OSError as error:  # the file cannot be written; what is in memory is enough for this process
        logger.warning("what was compiled could not be kept for later: %s", error)
        engine.train(batches, [0], [0], [0.0])


def _laid_out(features: Tensor, places: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the features as one float32 array, without a copy if they are float32, and where in it rows begin."""
    if features.dtype != torch.float32 or features.stride(1) != 1:
        features = features[places.flatten()].float()
        places = torch.arange(places.numel()).view(places.shape)
    stride = features.stride(0)
    length = (len(features) - 1) * stride + features.shape[1]
    return features.as_strided((length,), (1,)).numpy(), (places * stride).numpy()


def plan_of(sizes: Sequence[int], count: int) -> Plan:
    """Lay out heads of these sizes, from the number of features to that of classes, and a batch of ``count`` rows."""
    widths = [-(-size // COLUMNS) * COLUMNS for size in sizes]
    tiles = -(-count // COLUMNS)
    norms, lines, end = [], [], 0
    for below, above in pairwise(widths):
        norms.append(end)
        lines.append(end + 2 * below)
        end += 2 * below + below * above + above
    return Plan(
        sizes=np.array(sizes),
        widths=np.array(widths),
        tiled=np.cumsum([0, *(width * tiles * COLUMNS for width in widths)]),
        spots=np.cumsum([0, *widths]),
        norms=np.array(norms),
        lines=np.array([*lines, end]),
        rows=count,
        tiles=tiles,
    )


def _made(sizes: Sequence[int], count: int) -> tuple[Plan, Space]:
    plan = plan_of(sizes, count)
    widest, features, batch = int(plan.widths.max()), int(plan.spots[-1]), int(plan.tiled[-1])
    live = np.zeros(plan.tiles * COLUMNS, np.float32)
    live[:count] = 1
    zeros: Any = partial(np.zeros, dtype=np.float32)
    return plan, Space(
        inputs=zeros(batch),
        normalized=zeros(batch),
        outputs=zeros(batch),
        upstream=zeros(batch),
        packed=zeros(batch),
        live=live,
        means=zeros(features),
        variances=zeros(features),
        factors=zeros(features),
        gradients=zeros(2 * widest),
        biases=zeros(widest),
        alike=np.concatenate([np.ones(widest, np.float32), zeros(widest)]),
        scratch=zeros(ROWS * COLUMNS),
    )

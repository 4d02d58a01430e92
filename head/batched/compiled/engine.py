"""Several heads trained by compiled steps, in one pass over the weights: the fast engine of a CPU.

Importing this module imports numba. docs/decisions/0043 has what it gains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xfeat.head.batched.compiled.kernels import Plan, Space
from xfeat.head.batched.compiled.simd import COLUMNS, ROWS
from xfeat.head.batched.compiled.step import Heads, Steps, train_steps
from xfeat.head.batched.engine import Batches, Engine
from xfeat.head.data.counter_rng import DROPOUT, FEATURES, LAST_LAYER, keep_below, key_of
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.adam import BETA1, BETA2
from xfeat.head.training.network import build_head

logger = logging.getLogger(__name__)


class CompiledEngine(Engine):
    """Trains K heads; weights and moments of all layers of a head lie in one row of memory.

    Args:
        models: K untrained heads with layers of the same sizes; only their dropout may differ.
        specs: how each is trained.
        class_weights: float32 (K, C), how much a row of each class counts.
    """

    def __init__(self, models: Sequence[nn.Sequential], specs: Sequence[TrainSpec], class_weights: Tensor) -> None:
        super().__init__(models)
        self._sizes = _sizes(self.modules)
        self._spaces: dict[int, tuple[Plan, Space]] = {}
        self._steps = 0
        plan = plan_of(self._sizes, 1)
        heads, weights, features = len(models), int(plan.lines[-1]), int(plan.spots[-1])
        dropout = list(zip(self.dropout_rates(LAST_LAYER), self.dropout_rates(FEATURES), strict=True))
        norm = next(module for module in self.modules if isinstance(module, nn.BatchNorm1d))
        self._heads = Heads(
            weights=np.zeros((heads, weights), np.float32),
            means=np.zeros((heads, weights), np.float32),
            squares=np.zeros((heads, weights), np.float32),
            running=np.zeros((heads, 2, features), np.float32),
            streams=np.zeros(heads, np.int64),
            keep_below=np.array([[keep_below(rate) for rate in pair] for pair in dropout], np.int64),
            scales=np.array([[1 / (1 - rate) for rate in pair] for pair in dropout], np.float32),
            class_weights=np.ascontiguousarray(class_weights.numpy()),
            losses=np.array([[spec.label_smoothing, spec.focal_gamma] for spec in specs], np.float32),
            momentum=np.float32(norm.momentum),
            eps=np.float32(norm.eps),
        )
        self._decays = [spec.weight_decay for spec in specs]
        drawn = self.state
        self._view_state()
        for name, values in self.state.items():
            values.copy_(drawn[name])

    def train(self, batches: Batches, streams: Sequence[int], rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        _, count, rows = batches.rows.shape
        plan, space = self._spaces.get(rows) or self._spaces.setdefault(rows, _made(self._sizes, rows))
        self._heads.streams[:] = streams
        features, starts = _laid_out(batches.features, batches.rows)
        steps_done = batches.first_step + np.arange(count)
        seeds = np.array(batches.seeds, np.int64)[:, None]
        keys = [np.stack(key_of(seeds, DROPOUT, steps_done, layer), -1) for layer in (LAST_LAYER, FEATURES)]
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
        rules[:, :, 2] = self._decays
        with np.errstate(over="ignore"):  # of a rate that diverges anyway
            for rule in rules:
                self._steps += 1
                rule[:, 0] = np.array(rates) / (1 - BETA1**self._steps)
                rule[:, 1] = 1 / math.sqrt(1 - BETA2**self._steps)
        return rules

    def keep(self, heads: Sequence[int]) -> None:
        rest = list(heads)
        counts = {name: values[rest] for name, values in self.state.items() if not values.is_floating_point()}
        self.models = [self.models[head] for head in rest]
        self.state = {}
        self._decays = [self._decays[head] for head in rest]
        self._heads = Heads(*(cast(Any, part[rest] if isinstance(part, np.ndarray) else part) for part in self._heads))
        self._view_state()
        self.state |= counts

    def _view_state(self) -> None:
        """Let the stack's state be views of the arrays here."""
        plan, state = plan_of(self._sizes, 1), {}
        weights, running = torch.from_numpy(self._heads.weights), torch.from_numpy(self._heads.running)
        norms = lines = 0
        for index, module in enumerate(self.modules):
            if isinstance(module, nn.BatchNorm1d):
                size, width, place = (int(part[norms]) for part in (plan.sizes, plan.widths, plan.norms))
                spot = int(plan.spots[norms])
                state[f"{index}.weight"] = weights[:, place : place + size]
                state[f"{index}.bias"] = weights[:, place + width : place + width + size]
                state[f"{index}.running_mean"] = running[:, 0, spot : spot + size]
                state[f"{index}.running_var"] = running[:, 1, spot : spot + size]
                state[f"{index}.num_batches_tracked"] = torch.zeros(len(weights), dtype=torch.int64)
                norms += 1
            elif isinstance(module, nn.Linear):
                below, above = (int(width) for width in plan.widths[lines : lines + 2])
                place = int(plan.lines[lines])
                matrix = weights[:, place : place + above * below].view(-1, above, below)
                state[f"{index}.weight"] = matrix[:, : module.out_features, : module.in_features]
                biases = place + above * below
                state[f"{index}.bias"] = weights[:, biases : biases + module.out_features]
                lines += 1
        self.state = state


@cache
def compile_steps() -> None:
    """Load what was compiled before, or compile it: 12 s on one core, once on a machine."""
    spec = HeadSpec(hidden=(1,))
    engine = CompiledEngine([build_head(spec, dim=1, classes=2)], [TrainSpec()], torch.ones(1, 2))
    rows = torch.zeros(1, 1, 2, dtype=torch.int64)
    batches = Batches(features=torch.zeros(1, 1), rows=rows, labels=rows, seeds=[0], first_step=0)
    try:
        engine.train(batches, [0], [0.0])
    except OSError as error:  # the file cannot be written; what is in memory is enough for this process
        logger.warning("what was compiled could not be kept for later: %s", error)
        engine.train(batches, [0], [0.0])


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
        tiled=_starts([width * tiles * COLUMNS for width in widths]),
        spots=_starts(widths),
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

    def zeros(length: int) -> NDArray[np.float32]:
        return np.zeros(length, np.float32)

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


def _sizes(modules: Sequence[nn.Module]) -> list[int]:
    lines = [module for module in modules if isinstance(module, nn.Linear)]
    return [lines[0].in_features, *(line.out_features for line in lines)]


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths])

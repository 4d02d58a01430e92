"""Ensembles: several heads, each holding out a different part of the training rows, with averaged logits.

The members' layers are joined into wider layers, so that the ensemble is an ordinary head: docs/decisions/0037.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xfeat.featurize.errors import DataError
from xfeat.head.data.rows import AnyRows
from xfeat.head.data.splits import fewest_groups
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.training.fit import FittedHead, Progress, fit_head
from xfeat.head.training.history import EpochRecord
from xfeat.head.training.network import build_head

Share = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Row numbers a member is trained on, and those it holds out to choose its epoch."""

# Large enough that two ensembles with consecutive seeds share no member.
_SEED_STEP = 1000


@dataclass(frozen=True)
class FittedEnsemble(FittedHead):
    """A trained ensemble, as one head.

    Attributes:
        history: per epoch, means over the members that were still training.
        best_epoch: the median of ``best_epochs``.
        head: the layers of ``model``.
        best_epochs: the chosen epoch of each member.
    """

    head: HeadSpec
    best_epochs: tuple[int, ...]


def fit_ensemble(
    head: HeadSpec,
    train: TrainSpec,
    shares: Sequence[Share],
    rows: AnyRows,
    *,
    classes: int,
    class_weights: Tensor | None = None,
    progress: Progress | None = None,
) -> FittedEnsemble:
    """Train a head on each share of the rows and average their logits.

    Each member has its own seed and holds out its own rows to choose its epoch; all other members train on these rows.

    Args:
        head: the layers of each member.
        train: the optimisation of each member.
        shares: from :func:`shares_of`.
        rows: training rows.
        classes: number of classes C.
        class_weights: float32 (C,), replaces the weights of ``train``.
        progress: called after each epoch of each member; epochs are numbered consecutively over all members.

    Raises:
        DivergedError: if a head diverges.

    Source:
        Krogh and Vedelsby, "Neural network ensembles, cross validation, and active learning", 1995.
    """
    fitted = []
    for member, (trained, held_out) in enumerate(shares):
        spec = replace(train, seed=(train.seed + _SEED_STEP * member) % 2**32)

        def report(record: EpochRecord, before: int = member * train.epochs) -> None:
            if progress is not None:
                progress(record._replace(epoch=before + record.epoch))

        parts = rows.take(trained), rows.take(held_out)
        fitted.append(fit_head(head, spec, *parts, classes=classes, class_weights=class_weights, progress=report))
    best = tuple(one.best_epoch for one in fitted)
    return FittedEnsemble(
        model=average_of([one.model for one in fitted], head, dim=rows.dim, classes=classes),
        history=_mean_history([one.history for one in fitted]),
        best_epoch=int(np.median(best)),
        head=widened(head, len(shares)),
        best_epochs=best,
    )


def shares_of(
    labels: NDArray[np.integer], groups: NDArray[np.int64], members: int, *, seed: int, path: Path | None = None
) -> list[Share]:
    """Divide rows into stratified parts, one per member of two or more; each member holds out one of them.

    Args:
        labels: (n,), of the training rows.
        groups: (n,), such as patients; rows of one group are in one part.
        members: two or more.
        seed: of the division.
        path: the cache, for the message.

    Raises:
        DataError: if a class has fewer groups than there are members.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    check_groups(labels, groups, members, path=path)
    return list(StratifiedGroupKFold(members, shuffle=True, random_state=seed).split(labels, labels, groups))


def check_groups(
    labels: NDArray[np.integer], groups: NDArray[np.int64], members: int, *, path: Path | None = None
) -> None:
    """Raise what :func:`shares_of` raises, without dividing the rows; a single head needs no check."""
    if members > 1 and (fewest := fewest_groups(labels, groups)) < members:
        raise DataError(
            f"too few patients or images of a class for an ensemble of {members} heads",
            path=path,
            expected=f"at least {members} groups of each class",
            found=f"{fewest} of the smallest class",
            fix=f"--ensemble {fewest}" if fewest >= 2 else "train one head, without --ensemble",
        )


def widened(head: HeadSpec, members: int) -> HeadSpec:
    """Return the layers of an ensemble of such heads, joined into one."""
    return replace(head, hidden=tuple(members * width for width in head.hidden))


def average_of(heads: Sequence[nn.Sequential], spec: HeadSpec, *, dim: int, classes: int) -> nn.Sequential:
    """Build one head, in evaluation mode, whose logits are the mean of the logits of several heads.

    Args:
        heads: trained heads.
        spec: the layers of each.
        dim: number of features D.
        classes: number of classes C.
    """
    merged = build_head(widened(spec, len(heads)), dim=dim, classes=classes).eval()
    columns = [[_doubled(layer) for layer in head if isinstance(layer, nn.Linear | nn.BatchNorm1d)] for head in heads]
    layers = list(zip(*columns, strict=True))
    targets = [layer for layer in merged if isinstance(layer, nn.Linear | nn.BatchNorm1d)]
    first = dict(layers[0][0], weight=torch.ones(dim).double(), bias=torch.zeros(dim).double())
    scales = [_correction(first, own) for own in layers[0]]
    states = [first]
    for place, beside in enumerate(layers[1:], 1):
        if "running_mean" in beside[0]:
            states.append({name: torch.cat([own[name] for own in beside]) for name in beside[0]})
            continue
        weights, biases = [own["weight"] for own in beside], [own["bias"] for own in beside]
        if place == 1:  # features are normalised as in the first head; the other heads' first Linear layers compensate
            biases = [b + w @ shift for w, b, (_, shift) in zip(weights, biases, scales, strict=True)]
            weights = [w * scale for w, (scale, _) in zip(weights, scales, strict=True)]
        states.append(_joined(weights, biases, is_first=place == 1, is_last=place == len(layers) - 1))
    for target, state in zip(targets, states, strict=True):
        target.load_state_dict(state, strict=False)  # except num_batches_tracked of BatchNorm
    return merged


def _joined(weights: list[Tensor], biases: list[Tensor], *, is_first: bool, is_last: bool) -> dict[str, Tensor]:
    """Join Linear layers into one: first layers have the same input, last layers are averaged."""
    if is_last:
        mean, joined = 1 / len(weights), sum(weights[1:], weights[0]) if is_first else torch.cat(weights, 1)
        return {"weight": joined * mean, "bias": sum(biases[1:], biases[0]) * mean}
    # Each head has its own hidden layer, so the joined matrix is block-diagonal.
    joined = torch.cat(weights) if is_first else torch.block_diag(*weights)  # type: ignore[no-untyped-call]
    return {"weight": joined, "bias": torch.cat(biases)}


def _correction(first: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return scale and shift (D,) that turn the output of BatchNorm ``first`` into that of ``own``."""
    spread, own_spread = ((state["running_var"] + nn.BatchNorm1d(1).eps).sqrt() for state in (first, own))
    scale = own["weight"] * spread / own_spread
    shift = own["weight"] * (first["running_mean"] - own["running_mean"]) / own_spread + own["bias"]
    return scale, shift


def _doubled(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.double() for name, value in layer.state_dict().items() if value.is_floating_point()}


def _mean_history(histories: Sequence[Sequence[EpochRecord]]) -> list[EpochRecord]:
    longest = max(map(len, histories))
    rows = [[history[epoch] for history in histories if epoch < len(history)] for epoch in range(longest)]
    means = [np.mean([record[1:] for record in row], 0).tolist() for row in rows]
    return [EpochRecord(epoch, *values) for epoch, values in enumerate(means, 1)]

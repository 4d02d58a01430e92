"""What the tests of sweeps share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.sweep.ranking import SweepResult
from xfeat.head.sweep.results import RESULTS_FILE
from xfeat.head.sweep.runner import Sweep, TrialProgress
from xfeat.head.sweep.space import SweepSpec

MakeCache = Callable[..., FeatureCache]
SPEC = SweepSpec(
    axes={
        "lr": (1e-3, 0.012345678),
        "hidden": ((8,), ()),
        "epochs": (2,),
        "batch_size": (8,),
        "weight_decay": (0.0, 0.01),
    }
)
# What SPEC asks for, as it is typed.
TYPED = ["--lr", "1e-3,0.012345678", "--hidden", "8;linear", "--epochs", "2", "--batch-size", "8"]
TYPED += ["--weight-decay", "0,0.01", "--dropout", "0.4"]


def run_sweep(
    cache: FeatureCache,
    spec: SweepSpec,
    *,
    time_limit_s: float | None = None,
    progress: TrialProgress | None = None,
    **where: Any,
) -> SweepResult:
    return Sweep(cache, spec, **where).run(time_limit_s=time_limit_s, progress=progress)


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / RESULTS_FILE).open(newline="") as file:
        return list(csv.DictReader(file))

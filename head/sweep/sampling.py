"""The trials of a sweep in rounds: all at once, or as Optuna proposes them from the finished ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xfeat.head.sweep.space import SPREAD, SweepSpec
from xfeat.head.sweep.trials import Settings, Trial, TrialSpec

# Combinations that are proposed at a time: a smaller round learns sooner, a larger one fills the blocks.
ROUND = 8


def rounds(spec: SweepSpec, trials: Sequence[Trial]) -> Iterator[list[TrialSpec]]:
    """Give all trials, or, with Optuna, the first rounds of them, and one more each time.

    Args:
        spec: what to try.
        trials: the finished ones, to which those of a round are added before the next is asked for.
    """
    if spec.sampler == SPREAD:
        yield list(spec.trial_specs())
        return
    from xfeat.head.sweep.optuna_sampler import propose

    tried: list[Settings] = []
    specs: list[TrialSpec] = []
    combinations = spec.planned // spec.seeds
    while len(tried) < combinations:
        new = propose(spec, tried, trials, min(ROUND, combinations - len(tried)))
        tried += new
        specs += [trial for settings in new for trial in spec.with_seeds(settings)]
        yield list(specs)

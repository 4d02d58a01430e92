"""The trials of a sweep in rounds: all in one round, or as Optuna proposes them from finished trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xfeat.head.sweep.space import SPREAD, SweepSpec
from xfeat.head.sweep.trials import Settings, Trial, TrialSpec

# Combinations per round: smaller rounds use results earlier, larger ones train more heads at the same time.
ROUND = 8


def rounds(spec: SweepSpec, trials: Sequence[Trial]) -> Iterator[list[TrialSpec]]:
    """Yield all trials at once, or, with Optuna, all rounds so far, with one more round each time.

    Args:
        spec: what to try.
        trials: finished trials; the caller adds those of a round before asking for the next.
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

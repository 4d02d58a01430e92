"""The trials of a sweep in rounds: all in one round, or as Optuna proposes them from finished trials.

No study is stored: each round depends only on the results of earlier rounds and on the seed, so that an interrupted
sweep resumes as if it had not been interrupted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xfeat.featurize.errors import MissingExtraError
from xfeat.head.sweep.space import SPREAD, Axis, Range, SweepSpec
from xfeat.head.sweep.trials import Settings, Trial, TrialSpec

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

# Combinations per round: smaller rounds use results earlier, larger ones train more heads at the same time.
ROUND = 8
# After this many repeated proposals, the next untried combination of the grid is used.
_MAX_REPEATS = 50


def rounds(spec: SweepSpec, trials: Sequence[Trial]) -> Iterator[list[TrialSpec]]:
    """Yield all trials at once, or, with Optuna, all rounds so far, with one more round each time.

    Args:
        spec: what to try.
        trials: finished trials; the caller adds those of a round before asking for the next.
    """
    if spec.sampler == SPREAD:
        yield list(spec.trial_specs())
        return
    tried: list[Settings] = []
    specs: list[TrialSpec] = []
    combinations = spec.planned // spec.seeds
    while len(tried) < combinations:
        new = propose(spec, tried, trials, min(ROUND, combinations - len(tried)))
        tried += new
        specs += [trial for settings in new for trial in spec.with_seeds(settings)]
        yield list(specs)


def propose(spec: SweepSpec, tried: Sequence[Settings], trials: Sequence[Trial], count: int) -> list[Settings]:
    """Propose more combinations with a tree-structured Parzen estimator.

    Args:
        spec: the sweep; its ranking metric is optimised.
        tried: the combinations of all earlier rounds.
        trials: finished trials, one per combination and seed.
        count: how many to propose.

    Returns:
        ``count`` untried combinations, or fewer if there are no more.

    Raises:
        MissingExtraError: if Optuna is not installed.

    Source:
        Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011, as implemented by Optuna's TPESampler.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "--sampler optuna needs optuna, which is not installed", fix="pip install 'xfeat-onnx[optuna]'"
        ) from error
    seed = int(np.random.SeedSequence([spec.first_seed, len(tried)]).generate_state(1)[0])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant_liar, needed to ask for several at a time, is marked experimental
        study = optuna.create_study(
            direction="minimize" if spec.rank == "loss" else "maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        )
        _tell(study, spec, tried, trials)
        return _ask(study, spec, tried, count)


def _tell(study: Study, spec: SweepSpec, tried: Sequence[Settings], trials: Sequence[Trial]) -> None:
    from optuna.trial import TrialState, create_trial

    by_number = {trial.number: trial for trial in trials}
    for place, settings in enumerate(tried):
        seeds = [by_number[place * spec.seeds + seed] for seed in range(spec.seeds)]
        values = [trial.metrics[spec.rank] for trial in seeds if spec.rank in trial.metrics]
        converged = len(values) == spec.seeds
        study.add_trial(
            create_trial(
                params={
                    name: settings[name] if isinstance(axis, Range) else axis.index(settings[name])
                    for name, axis in spec.axes.items()
                },
                distributions={name: _distribution(axis) for name, axis in spec.axes.items()},
                value=float(np.mean(values)) if converged else None,
                state=TrialState.COMPLETE if converged else TrialState.PRUNED,  # pruned ranks below all complete ones
            )
        )


def _ask(study: Study, spec: SweepSpec, tried: Sequence[Settings], count: int) -> list[Settings]:
    found: list[Settings] = []
    distributions = {name: _distribution(axis) for name, axis in spec.axes.items()}
    for _ in range(count):
        for _ in range(_MAX_REPEATS):
            choices = study.ask(distributions).params
            settings = {
                name: axis.rounded(choices[name]) if isinstance(axis, Range) else axis[choices[name]]
                for name, axis in spec.axes.items()
            }
            if settings not in tried and settings not in found:
                found.append(settings)
                break
        else:
            found += [one for one in spec.combinations() if one not in tried and one not in found][:1]
    return found


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(axis, Range):
        return FloatDistribution(axis.low, axis.high, log=axis.logarithmic)
    return CategoricalDistribution(range(len(axis)))

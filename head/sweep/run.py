"""A whole sweep: its trials are trained, ranked and recorded, and the best one is written as a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence

from xfeat.featurize.errors import DivergedError
from xfeat.head.sweep.ranking import Combination, SweepResult, rank_combinations, setting_text
from xfeat.head.sweep.results import RESULTS_FILE, SWEEP_FILE
from xfeat.head.sweep.runner import Sweep, TrialProgress
from xfeat.head.sweep.space import SweepSpec, axis_text
from xfeat.head.sweep.trials import POOLING, Trial
from xfeat.head.tracking.backends import Tracking, tracked
from xfeat.head.tracking.tracker import Tracker, cache_parameters, final_metrics, head_parameters

logger = logging.getLogger(__name__)


def sweep_run(
    work: Sweep,
    trackers: Sequence[Tracker],
    *,
    time_limit_s: float | None,
    progress: Callable[[int, int], None] | None,
) -> SweepResult:
    """Run a sweep and record it; each new best combination is logged.

    Args:
        work: the sweep.
        trackers: where it is recorded.
        time_limit_s: no block of heads is started after this time.
        progress: called with the number of finished trials and of all.

    Raises:
        DivergedError: if every combination diverged.
        XfeatError: as :meth:`xfeat.head.sweep.runner.Sweep.run` says.
    """
    default_name, spec = work.default_name, work.spec
    key = hashlib.sha256(f"{work.name or ''} {default_name}".encode()).hexdigest()[:16]
    axes = {key: axis_text(key, axis) for key, axis in spec.axes.items()}
    choices = {"seeds": spec.seeds, "sampler": spec.sampler, "rank": spec.rank}
    parameters = {**cache_parameters(work.cache), **axes, **choices}
    with tracked(trackers, work.name or default_name, parameters, key=key) as tracking:
        result = work.run(time_limit_s=time_limit_s, progress=_trial_reporter(spec, progress, tracking))
        _track_end(tracking, result)
    if not result.combinations:
        more = "" if result.state == "complete" else ", or run the same command again to resume"
        raise DivergedError(
            "the sweep has no result: every combination diverged",
            path=result.folder,
            expected="a loss that is a number",
            found=f"{result.diverged} of {len(result.trials)} trials diverged",
            fix=f"lower learning rates with --lr{more}",
        )
    return result


def _trial_reporter(spec: SweepSpec, advance: Callable[[int, int], None] | None, tracking: Tracking) -> TrialProgress:
    """Return what reports progress, sends finished trials to the trackers, and logs each new best one."""
    reported = 0
    best: Combination | None = None

    def report(trials: list[Trial], planned: int) -> None:
        nonlocal reported, best
        if advance is not None:
            advance(len(trials), planned)
        tracking.begin()
        _track(tracking, trials[reported:])
        reported = len(trials)
        combinations = rank_combinations(trials, spec)
        if combinations and combinations[0] != best:
            best = combinations[0]
            settings = setting_text(spec, best)
            logger.info("%d of %d: best so far %s, %s", reported, planned, settings, best.metrics_text)

    return report


def _track(tracking: Tracking, trials: Sequence[Trial]) -> None:
    for trial in trials:
        metrics = {f"valid/{name}": value for name, value in trial.metrics.items()}
        head, train, pooling = trial.spec
        parameters = {**head_parameters(head, train), POOLING: pooling, "status": trial.status}
        tracking.child(f"trial-{trial.number:05d}", parameters, {**metrics, "best_epoch": trial.best_epoch})


def _track_end(tracking: Tracking, result: SweepResult) -> None:
    """Record trials of earlier calls, which may not have been tracked, and the best run with its files."""
    _track(tracking, result.trials)
    files = [result.folder / name for name in (RESULTS_FILE, SWEEP_FILE)]
    if result.run is None:
        tracking.end({}, files)
    else:
        tracking.end(final_metrics(result.run), [*files, result.run.folder])

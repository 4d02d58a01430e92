"""Many trials on one cache: train in blocks, rank on the validation images, write the best as a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from featurize.cache import FeatureCache
from featurize.errors import DivergedError, Interrupted, MismatchError
from featurize.versions import library_versions
from head.batched import FittedBlock, fit_blocks
from head.batched_training import Job, Outcome
from head.metrics import classification_metrics
from head.predictions import softmax
from head.rows import AnyRows
from head.run import RUN_FILE, Run, open_run
from head.specs import MemorySpec
from head.splits import Split, split_rows
from head.sweep_ranking import COMPLETE, INTERRUPTED, TIME_IS_UP, Setting, SweepResult, rank_settings
from head.sweep_results import SweepFolder, Trial
from head.sweep_space import RANKINGS, SweepSpec
from head.train import split_reading, train_run

# Called as trials finish, with all finished ones and the number in all.
Progress = Callable[[list[Trial], int], None]


def run_sweep(
    cache: FeatureCache,
    spec: SweepSpec,
    *,
    runs: Path,
    name: str | None = None,
    time_limit_s: float | None = None,
    memory: MemorySpec | None = None,
    split: Split | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Train all trials of a sweep that are not finished, rank them, and write the best one as a run.

    Trials are ranked on the validation images; the test images are looked at once, with the best. All trials share one
    split. The best is trained once more, alone, so that its folder holds to the bit what training it alone gives.

    Args:
        cache: the features.
        spec: what to try.
        runs: the folder of all runs; the sweep's own folder is made there.
        name: of the sweep; by default one that the same cache and spec lead to again.
        time_limit_s: after which no more is trained but the best.
        memory: what features may take; rows that take more are read from the disk, in another order.
        split: what :func:`head.splits.split_rows` gives for the spec's first seed, if it is there already.
        progress: called as trials finish.

    Raises:
        DataError: if the cache's labels or splits do not allow training.
        MismatchError: if there is another sweep of that name.
        BusyError: if another process is at this sweep.
        Interrupted: on Ctrl-C; what is finished is kept, and the same call goes on.
    """
    start = time.monotonic()
    split = split or split_rows(cache, seed=spec.first_seed)
    identity = sweep_identity(spec, cache, split, memory)
    folder = SweepFolder(runs / (name or default_name(identity)))
    with folder.locked():
        planned = spec.planned
        trials = [trial for trial in folder.begin(identity) if trial.number < planned]
        work = _Work(cache, split, [], planned, folder, memory)
        try:
            for jobs in spec.rounds(trials):
                work.go_on_with(jobs, trials)
                left = None if time_limit_s is None else max(0.0, time_limit_s - (time.monotonic() - start))
                work.train_rest(trials, left, progress)
                if len(trials) < len(work.jobs):
                    break
            settings = rank_settings(trials, spec)
            run = work.write_best(settings) if settings else None
        except KeyboardInterrupt as stop:
            folder.save_facts({"identity": identity, "state": INTERRUPTED})
            raise Interrupted(
                f"stopped: {len(trials)} of {planned} trials are in {folder.folder}",
                mend="run the same command again to go on",
            ) from stop
        result = SweepResult(
            folder=folder.folder,
            spec=spec,
            planned=planned,
            trials=trials,
            settings=settings,
            state=COMPLETE if len(trials) == planned else TIME_IS_UP,
            valid_images=len(work.split.rows["valid"]),
            run=run,
            seconds=time.monotonic() - start,
        )
        folder.save_facts({"identity": identity, **work.facts(result)})
    return result


def sweep_identity(spec: SweepSpec, cache: FeatureCache, split: Split, memory: MemorySpec | None) -> dict[str, Any]:
    """Return what makes a sweep this one; rows that are read in blocks come in an order of their own."""
    identity = {**spec.identity, "cache_sha256": cache.content_sha256}
    reading = split_reading(cache, split, memory)
    return identity if reading.block_rows is None else {**identity, "reading": reading.to_dict()}


def default_name(identity: dict[str, Any], kind: str = "sweep") -> str:
    """Return a name that the same cache and spec lead to again."""
    return f"{kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class _Work:
    """What all steps of a sweep need."""

    cache: FeatureCache
    split: Split
    jobs: list[Job]
    planned: int
    folder: SweepFolder
    memory: MemorySpec | None

    def go_on_with(self, jobs: list[Job], trials: list[Trial]) -> None:
        """Take the specs of the trials.

        Raises:
            MismatchError: if a finished one was made with others, as another version may have proposed them.
        """
        self.jobs[:] = jobs
        if any((trial.head, trial.train) != jobs[trial.number] for trial in trials if trial.number < len(jobs)):
            raise MismatchError(
                "the finished trials have other settings than this version would try",
                path=self.folder.folder,
                mend="choose another --name, or delete that folder",
            )

    @cached_property
    def parts(self) -> tuple[AnyRows, AnyRows]:
        """Training and validation rows."""
        reading = split_reading(self.cache, self.split, self.memory)
        train, valid = (reading.load(self.cache, self.split.rows[part]) for part in ("train", "valid"))
        return train, valid

    def train_rest(self, trials: list[Trial], time_limit_s: float | None, progress: Progress | None) -> None:
        """Train what ``trials`` lacks; add it there and to the folder, block by block."""
        done = {trial.number for trial in trials}
        rest = [number for number in range(len(self.jobs)) if number not in done]
        if not rest:
            return
        if progress is not None:
            progress(trials, self.planned)
        train, valid = self.parts
        jobs, classes = [self.jobs[number] for number in rest], len(self.cache.class_names)
        blocks = fit_blocks(jobs, train, valid, classes=classes, time_limit_s=time_limit_s)
        with closing(blocks):
            for block in blocks:
                new = self._as_trials(block, rest, valid)
                self.folder.append(new)
                trials += new
                if progress is not None:
                    progress(trials, self.planned)

    def _as_trials(self, block: FittedBlock, rest: list[int], valid: AnyRows) -> list[Trial]:
        share = block.seconds / len(block.outcomes)
        return [self._as_trial(rest[place], outcome, valid, share) for place, outcome in block.outcomes.items()]

    def _as_trial(self, number: int, outcome: Outcome, valid: AnyRows, seconds: float) -> Trial:
        if isinstance(outcome, DivergedError):
            return Trial(number, "diverged", *self.jobs[number], 0, {}, seconds)
        probabilities = softmax(outcome.logits_of(valid).numpy())
        figures = classification_metrics(valid.labels.numpy(), probabilities, self.cache.class_names)
        metrics = {name: figures[name] for name in RANKINGS if figures[name] is not None}
        return Trial(number, "ok", *self.jobs[number], outcome.best_epoch, metrics, seconds)

    def write_best(self, settings: list[Setting]) -> Run:
        """Write the best setting's best seed as a run, unless an earlier call did."""
        best, runs = settings[0].best_trial, self.folder.folder.parent
        name = f"{self.folder.folder.name}-trial{best.number}"
        if (runs / name / RUN_FILE).is_file():
            run = open_run(runs / name)
            same_cache = run.cache["content_sha256"] == self.cache.content_sha256
            if same_cache and (run.head_spec, run.train_spec) == (best.head, best.train):
                return run
        return train_run(self.cache, best.head, best.train, runs=runs, name=name, split=self.split, memory=self.memory)

    def facts(self, result: SweepResult) -> dict[str, Any]:
        """Return what sweep.json says of a result."""
        return {
            "state": result.state,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "cache": str(self.cache.path.resolve()),
            "split": self.split.source,
            "planned": result.planned,
            "finished": len(result.trials),
            "diverged": result.diverged,
            "best_trial": result.settings[0].best_trial.number if result.settings else None,
            "run": result.run.name if result.run else None,
            "versions": library_versions(),
        }

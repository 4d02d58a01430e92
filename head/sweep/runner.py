"""Many trials on one cache: train in batches, rank by validation metrics, write the best as a run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import unchanged
from xfeat.featurize.errors import CacheError, DivergedError, Interrupted, MismatchError
from xfeat.featurize.system.devices import resolve_device
from xfeat.featurize.system.versions import library_versions
from xfeat.head.batched.scheduler import FittedBlock, Task, fit_tasks, tasks_on, threads_for
from xfeat.head.data.counter_rng import GENERATOR
from xfeat.head.data.pooling import pooled
from xfeat.head.data.rows import AnyRows, Rows
from xfeat.head.data.splits import split_rows
from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.runs.origin import origin_of, stored_origin
from xfeat.head.runs.reader import RUN_FILE, Run, open_run
from xfeat.head.runs.resumable import deterministic_name
from xfeat.head.runs.writer import checked_name
from xfeat.head.specs import MemorySpec
from xfeat.head.sweep.ranking import COMPLETE, INTERRUPTED, TIME_IS_UP, SweepResult, rank_combinations
from xfeat.head.sweep.results import SweepFolder
from xfeat.head.sweep.sampling import rounds
from xfeat.head.sweep.space import SweepSpec
from xfeat.head.sweep.trials import RANKINGS, Trial, TrialSpec
from xfeat.head.train import TrainOptions, split_reading, train_run

logger = logging.getLogger(__name__)

TrialProgress = Callable[[list[Trial], int], None]
"""Called when trials finish, with all finished trials and the planned number."""


class Sweep:
    """Many trials on one cache, stored in one folder.

    Trials are ranked on the validation images and share one split; only the best one is tested on the test images. It
    is trained again, alone, so that its run folder is identical, to the bit, to that of a single training.

    Args:
        cache: the features.
        spec: what to try.
        runs: the folder of all runs; the sweep's folder is created there.
        name: of the sweep; by default one that is the same for the same cache and spec.
        memory: limit for features; more are read from the disk, in another order.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``. A sweep may resume on another device: results agree within
            float tolerance.

    Attributes:
        spec: what to try, completed with the pooling of the cache.
        name: as given.
        planned: number of trials.
        identity: the settings that identify the sweep.

    Raises:
        DataError: if the labels or splits do not allow training.
        MismatchError: if the cache does not hold the features of a pooling.
        RunError: if the name is invalid.
        DeviceError: if there is no such GPU.
    """

    def __init__(
        self,
        cache: FeatureCache,
        spec: SweepSpec,
        *,
        runs: Path,
        name: str | None = None,
        memory: MemorySpec = MemorySpec(),  # noqa: B008  frozen
        device: str = "cpu",
    ) -> None:
        self.name, self._device = name, resolve_device(device)
        self._backend = None if self._device == "cpu" else self._device
        self.cache, self.spec = cache, spec.for_cache(cache)
        self.planned = self.spec.planned
        self._memory, self._split = memory, split_rows(cache, seed=spec.first_seed)
        self.identity = {**self.spec.identity, "cache_sha256": cache.corrected_sha256, "random_numbers": GENERATOR}
        # Rows that are read in blocks are trained in another order.
        reading = split_reading(pooled(cache, self.spec.poolings[-1]), self._split, memory)
        if reading.block_rows is not None:
            self.identity["reading"] = reading.to_dict()
        self._folder = SweepFolder(runs / (self.default_name if name is None else checked_name(name)))

    @property
    def default_name(self) -> str:
        """A name that is the same for the same cache and spec."""
        return deterministic_name(self.identity, "sweep")

    def run(self, *, time_limit_s: float | None = None, progress: TrialProgress | None = None) -> SweepResult:
        """Train all unfinished trials, rank them, and write the best one as a run.

        Args:
            time_limit_s: no block of heads is started after this time. Started blocks are finished, and at least one
                is trained, so that each call makes progress.
            progress: called when trials finish.

        Raises:
            MismatchError: if another sweep has this name.
            BusyError: if another process is using this sweep.
            CacheError: if the file changes during training; trials of this call are discarded.
            Interrupted: on Ctrl-C; finished trials are stored, and the same call resumes.
        """
        start = time.monotonic()
        deadline = math.inf if time_limit_s is None else start + time_limit_s
        combinations, wanted = self.planned // self.spec.seeds, self.spec.trials or 0
        if combinations < wanted:
            logger.warning("there are only %d different combinations, not %d", combinations, wanted)
        with self._folder.locked():
            trials = self._folder.begin(self.identity)
            finished_before = list(trials)
            try:
                with unchanged(self.cache):
                    self._train(trials, deadline, progress or (lambda trials, planned: None))
                    ranked = rank_combinations(trials, self.spec)
                    run = self._write_best(ranked[0].best_trial) if ranked else None
            except CacheError:  # it is unknown which of the new trials used changed rows
                self._folder.rewrite(finished_before)
                raise
            except KeyboardInterrupt as stop:
                if not trials:
                    raise
                self._folder.save_facts({"identity": self.identity, "state": INTERRUPTED})
                raise Interrupted(
                    f"stopped: {len(trials)} of {self.planned} trials are stored in {self._folder.folder}",
                    fix="run the same command again to resume",
                ) from stop
            result = SweepResult(
                folder=self._folder.folder,
                spec=self.spec,
                planned=max(self.planned, len(trials)),  # an earlier call may have planned more
                trials=trials,
                combinations=ranked,
                state=COMPLETE if not self._missing(trials, self.planned) else TIME_IS_UP,
                valid_images=len(self._split.rows["valid"]),
                run=run,
                seconds=time.monotonic() - start,
            )
            self._folder.save_facts({"identity": self.identity, **self._facts(result)})
        return result

    def _train(self, trials: list[Trial], deadline: float, progress: TrialProgress) -> None:
        """Train the unfinished trials round by round; add them to ``trials`` and to the folder."""
        at_least = 1
        for specs in rounds(self.spec, trials):
            if any(trial.spec != specs[trial.number] for trial in trials if trial.number < len(specs)):
                raise MismatchError(
                    "the finished trials were proposed by another version, with other settings",
                    path=self._folder.folder,
                    fix="choose another --name, or delete that folder",
                )
            rest = {number: specs[number] for number in sorted(self._missing(trials, len(specs)))}
            if not rest:
                continue
            progress(trials, self.planned)
            threads = min(threads_for(train, self._backend) for train, _ in self._parts.values())
            tasks = _before(deadline, self._tasks(rest, threads), at_least=at_least)
            with closing(fit_tasks(tasks, classes=len(self.cache.class_names), threads=threads)) as blocks:
                for block in blocks:
                    new = self._as_trials(block, rest)
                    self._folder.append(new)
                    trials += new
                    progress(trials, self.planned)
            at_least = 0
            if self._missing(trials, len(specs)):  # the time is up
                return

    @staticmethod
    def _missing(trials: Sequence[Trial], count: int) -> set[int]:
        return set(range(count)) - {trial.number for trial in trials}

    def _tasks(self, rest: Mapping[int, TrialSpec], threads: int) -> list[Task]:
        classes, tasks = len(self.cache.class_names), []
        for pooling, parts in self._parts.items():
            jobs = {number: (spec.head, spec.train) for number, spec in rest.items() if spec.pooling == pooling}
            tasks += tasks_on(jobs, *parts, classes=classes, threads=threads, backend=self._backend)
        # If the time is up early, heads of every shape have been tried.
        return sorted(tasks, key=lambda task: min(task.jobs))

    @cached_property
    def _parts(self) -> dict[str, tuple[AnyRows, AnyRows]]:
        """Training and validation rows of each pooling."""
        parts: dict[str, tuple[AnyRows, AnyRows]] = {}
        wider: Sequence[AnyRows] = ()
        for pooling in reversed(self.spec.poolings):
            cache = pooled(self.cache, pooling)
            columns, reading = cache.features.shape[-1], split_reading(cache, self._split, self._memory)
            # A view of the first columns needs no more memory.
            views = [Rows(rows.features[..., :columns], rows.labels) for rows in wider if isinstance(rows, Rows)]
            own = (reading.load(cache, self._split.rows[part]) for part in ("train", "valid"))
            train, valid = views or own
            parts[pooling] = wider = train, valid
        return parts

    def _as_trials(self, block: FittedBlock, rest: Mapping[int, TrialSpec]) -> list[Trial]:
        seconds, trials = block.seconds / len(block.outcomes), []
        for number, outcome in block.outcomes.items():
            spec = rest[number]
            if isinstance(outcome, DivergedError):
                trials.append(Trial(number, "diverged", spec, 0, {}, seconds))
                continue
            _, valid = self._parts[spec.pooling]
            probabilities = softmax(outcome.logits_of(valid).numpy())
            names = self.cache.class_names
            figures: Mapping[str, Any] = classification_metrics(valid.labels.numpy(), probabilities, names)
            metrics = {name: figures[name] for name in RANKINGS if figures[name] is not None}
            trials.append(Trial(number, "ok", spec, outcome.best_epoch, metrics, seconds))
        return trials

    def _write_best(self, best: Trial) -> Run:
        """Write a trial as a run, unless an earlier call has done so."""
        runs, name = self._folder.folder.parent, f"{self._folder.folder.name}-trial{best.number}"
        if (runs / name / RUN_FILE).is_file():
            run = open_run(runs / name)
            same_cache = run.cache["content_sha256"] == self.cache.content_sha256
            if same_cache and TrialSpec(run.head_spec, run.train_spec, run.feature_spec.pooling) == best.spec:
                return run
        cache, (head, train, pooling) = self.cache, best.spec
        options = TrainOptions(split=self._split, memory=self._memory)
        return train_run(pooled(cache, pooling), head, train, runs=runs, name=name, options=options)

    def _facts(self, result: SweepResult) -> dict[str, Any]:
        """Return the content of sweep.json."""
        return {
            "state": result.state,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "cache": stored_origin(origin_of(self.cache), self._folder.folder),
            "split": self._split.source,
            "device": self._device,
            "planned": result.planned,
            "finished": len(result.trials),
            "diverged": result.diverged,
            "best_trial": result.combinations[0].best_trial.number if result.combinations else None,
            "run": result.run.name if result.run else None,
            "versions": library_versions(),
        }


def _before(deadline: float, tasks: Iterable[Task], *, at_least: int) -> Iterator[Task]:
    """Yield tasks until the time is up, but at least so many."""
    for place, task in enumerate(tasks):
        if place >= at_least and time.monotonic() >= deadline:
            return
        yield task

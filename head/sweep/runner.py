"""Many trials on one cache: train in blocks, rank on the validation images, write the best as a run."""

from __future__ import annotations

import logging
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
from xfeat.head.batched.training import Outcome
from xfeat.head.data.counter_rng import GENERATOR
from xfeat.head.data.pooling import pooled
from xfeat.head.data.rows import AnyRows, Rows, labelled_blocks
from xfeat.head.data.splits import split_rows
from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.runs.names import deterministic_name
from xfeat.head.runs.reader import RUN_FILE, Run, open_run
from xfeat.head.runs.writer import checked_name
from xfeat.head.specs import MemorySpec
from xfeat.head.sweep.ranking import COMPLETE, INTERRUPTED, TIME_IS_UP, SweepResult, rank_settings
from xfeat.head.sweep.results import SweepFolder
from xfeat.head.sweep.sampling import rounds
from xfeat.head.sweep.space import SweepSpec
from xfeat.head.sweep.trials import RANKINGS, Trial, TrialSpec
from xfeat.head.train import TrainOptions, split_reading, train_run

logger = logging.getLogger(__name__)

# Called as trials finish, with all finished ones and the number in all.
Progress = Callable[[list[Trial], int], None]


class Sweep:
    """Many trials on one cache, in a folder of their own.

    Trials are ranked on the validation images; the test images are looked at once, with the best. All trials share one
    split. The best is trained once more, alone, so that its folder holds to the bit what training it alone gives.

    Args:
        cache: the features.
        spec: what to try.
        runs: the folder of all runs; the sweep's own folder is made there.
        name: of the sweep; by default one that the same cache and spec lead to again.
        memory: what features may take; rows that take more are read from the disk, in another order.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``. A sweep may go on elsewhere: results agree within float
            tolerance.

    Attributes:
        spec: what to try, with what the cache decides where nothing was said.
        planned: number of trials.
        identity: what makes it this sweep.

    Raises:
        DataError: if the cache's labels or splits do not allow training.
        MismatchError: if the cache does not hold the features that were asked for.
        RunError: if that is no name for a folder.
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
        self._device = resolve_device(device)
        self.cache, self.spec = cache, spec.on(cache)
        self.planned = self.spec.planned
        self._memory, self._split = memory, split_rows(cache, seed=spec.first_seed)
        self.identity = {**self.spec.identity, "cache_sha256": cache.content_sha256, "random_numbers": GENERATOR}
        # Rows that are read in blocks come in an order of their own.
        reading = split_reading(pooled(cache, self.spec.poolings[-1]), self._split, memory)
        if reading.block_rows is not None:
            self.identity["reading"] = reading.to_dict()
        self._folder = SweepFolder(runs / (self.default_name if name is None else checked_name(name)))

    @property
    def default_name(self) -> str:
        """A name that is the same for the same cache and spec."""
        return deterministic_name(self.identity, "sweep")

    def run(self, *, time_limit_s: float | None = None, progress: Progress | None = None) -> SweepResult:
        """Train all trials that are not finished, rank them, and write the best one as a run.

        Args:
            time_limit_s: after which no block of heads is begun. Those at work are finished, and one is trained in any
                case, so that each call gets on.
            progress: called as trials finish.

        Raises:
            MismatchError: if there is another sweep of that name.
            BusyError: if another process is at this sweep.
            CacheError: if features are not finite, or the file is written to in the meantime; trials of this call go.
            Interrupted: on Ctrl-C; what is finished is kept, and the same call goes on.
        """
        start = time.monotonic()
        self._say_what_exists()
        turns = _Turns(None if time_limit_s is None else start + time_limit_s)
        with self._folder.locked():
            trials = self._folder.begin(self.identity)
            finished_before = list(trials)
            try:
                with unchanged(self.cache):
                    if self._missing(trials, self.planned):
                        for _ in labelled_blocks(self.cache, self._split.rows["test"]):
                            pass  # they are looked at last, and would throw away all trials if they cannot be
                    self._train(trials, turns, progress)
                    settings = rank_settings(trials, self.spec)
                    run = self._write_best(settings[0].best_trial) if settings else None
            except CacheError:  # nobody knows which of the new trials saw what
                self._folder.rewrite(finished_before)
                raise
            except KeyboardInterrupt as stop:
                if not trials:
                    raise
                self._folder.save_facts({"identity": self.identity, "state": INTERRUPTED})
                raise Interrupted(
                    f"stopped: {len(trials)} of {self.planned} trials are in {self._folder.folder}",
                    fix="run the same command again to go on",
                ) from stop
            result = SweepResult(
                folder=self._folder.folder,
                spec=self.spec,
                planned=max(self.planned, len(trials)),  # an earlier call may have asked for more
                trials=trials,
                settings=settings,
                state=COMPLETE if not self._missing(trials, self.planned) else TIME_IS_UP,
                valid_images=len(self._split.rows["valid"]),
                run=run,
                seconds=time.monotonic() - start,
            )
            self._folder.save_facts({"identity": self.identity, **self._facts(result)})
        return result

    def _say_what_exists(self) -> None:
        combinations, wanted = self.planned // self.spec.seeds, self.spec.trials or 0
        if combinations < wanted:
            logger.warning("there are only %d different combinations, not %d", combinations, wanted)

    def _train(self, trials: list[Trial], turns: _Turns, progress: Progress | None) -> None:
        """Train what ``trials`` lacks, round by round; add it there and to the folder.

        Raises:
            MismatchError: if a finished one was made with other settings, as another version may have proposed them.
        """
        for specs in rounds(self.spec, trials):
            if any(trial.spec != specs[trial.number] for trial in trials if trial.number < len(specs)):
                raise MismatchError(
                    "the finished trials have other settings than this version would try",
                    path=self._folder.folder,
                    fix="choose another --name, or delete that folder",
                )
            self._train_rest(specs, trials, turns, progress)
            if self._missing(trials, len(specs)):  # the time is up
                return

    @staticmethod
    def _missing(trials: Sequence[Trial], count: int) -> set[int]:
        return set(range(count)) - {trial.number for trial in trials}

    def _train_rest(
        self, specs: Sequence[TrialSpec], trials: list[Trial], turns: _Turns, progress: Progress | None
    ) -> None:
        rest = {number: specs[number] for number in sorted(self._missing(trials, len(specs)))}
        if not rest:
            return
        if progress is not None:
            progress(trials, self.planned)
        threads = min(threads_for(train, self._backend) for train, _ in self._parts.values())
        blocks = fit_tasks(turns.of(self._tasks(rest, threads)), classes=len(self.cache.class_names), threads=threads)
        with closing(blocks):
            for block in blocks:
                new = self._as_trials(block, rest)
                self._folder.append(new)
                trials += new
                if progress is not None:
                    progress(trials, self.planned)

    def _tasks(self, rest: Mapping[int, TrialSpec], threads: int) -> list[Task]:
        classes, tasks = len(self.cache.class_names), []
        for pooling, parts in self._parts.items():
            jobs = {number: (spec.head, spec.train) for number, spec in rest.items() if spec.pooling == pooling}
            tasks += tasks_on(jobs, *parts, classes=classes, threads=threads, backend=self._backend)
        # A sweep whose time is up has tried something of every shape.
        return sorted(tasks, key=lambda task: min(task.jobs))

    @property
    def _backend(self) -> str | None:
        return None if self._device == "cpu" else self._device

    @cached_property
    def _parts(self) -> dict[str, tuple[AnyRows, AnyRows]]:
        """Training and validation rows of each pooling."""
        parts: dict[str, tuple[AnyRows, AnyRows]] = {}
        wider: dict[str, AnyRows] = {}
        for pooling in reversed(self.spec.poolings):
            cache = pooled(self.cache, pooling)
            columns = cache.features.shape[-1]
            reading = split_reading(cache, self._split, self._memory)
            own: dict[str, AnyRows] = {}
            for part in ("train", "valid"):
                there = wider.get(part)
                if isinstance(there, Rows):  # some columns of what is in memory already take no more of it
                    own[part] = Rows(there.features[..., :columns], there.labels)
                else:
                    own[part] = reading.load(cache, self._split.rows[part])
            parts[pooling] = own["train"], own["valid"]
            wider = own
        return parts

    def _as_trials(self, block: FittedBlock, rest: Mapping[int, TrialSpec]) -> list[Trial]:
        share = block.seconds / len(block.outcomes)
        return [self._as_trial(number, rest[number], outcome, share) for number, outcome in block.outcomes.items()]

    def _as_trial(self, number: int, spec: TrialSpec, outcome: Outcome, seconds: float) -> Trial:
        if isinstance(outcome, DivergedError):
            return Trial(number, "diverged", spec, 0, {}, seconds)
        _, valid = self._parts[spec.pooling]
        probabilities = softmax(outcome.logits_of(valid).numpy())
        figures = classification_metrics(valid.labels.numpy(), probabilities, self.cache.class_names)
        metrics = {name: figures[name] for name in RANKINGS if figures[name] is not None}
        return Trial(number, "ok", spec, outcome.best_epoch, metrics, seconds)

    def _write_best(self, best: Trial) -> Run:
        """Write a trial as a run, unless an earlier call did."""
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
        """Return what sweep.json says of a result."""
        return {
            "state": result.state,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "cache": str(self.cache.path.resolve()),
            "split": self._split.source,
            "device": self._device,
            "planned": result.planned,
            "finished": len(result.trials),
            "diverged": result.diverged,
            "best_trial": result.settings[0].best_trial.number if result.settings else None,
            "run": result.run.name if result.run else None,
            "versions": library_versions(),
        }


class _Turns:
    """Hands out blocks of heads until the time is up, and one in any case."""

    def __init__(self, until: float | None) -> None:
        self._until, self._any = until, False

    def of(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            if self._any and self._until is not None and time.monotonic() >= self._until:
                return
            self._any = True
            yield task

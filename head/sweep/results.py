"""The folder ``runs/<sweep>/``: results.csv with one line per trial, and sweep.json. Finished trials are never lost."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import MismatchError, RunError
from xfeat.featurize.system.atomic import flush, output_error, replacing
from xfeat.featurize.system.locks import HELD
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import parse_json
from xfeat.head.runs.digests import damage_of
from xfeat.head.runs.resumable import ELSEWHERE, LOCK_FILE, resumable_folder
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.sweep.space import axis_text, parse_widths
from xfeat.head.sweep.trials import RANKINGS, SETTINGS, Trial, TrialSpec

FORMAT = "xfeat.sweep"
SCHEMA_VERSION = 1
SWEEP_FILE, RESULTS_FILE = "sweep.json", "results.csv"

_OTHER_NAME = "choose another --name, or delete that folder"
_COLUMNS = ("trial", "status", *SETTINGS, "seed", "best_epoch", *(f"valid_{name}" for name in RANKINGS), "seconds")
_DIGEST = "line_sha256"  # of the other cells and of what the sweep is


class SweepFolder:
    """The folder of one sweep, read and written.

    Args:
        folder: ``runs/<sweep>``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._identity = ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and lock it; a new folder without a finished trial is deleted at the end.

        Raises:
            BusyError: if another process is using this sweep.
        """
        existed = self.folder.exists()
        with resumable_folder(self.folder, "sweep", keep_if=lambda: existed or self._has_trials()):
            yield

    def _has_trials(self) -> bool:
        try:
            return read_regular(self.folder / RESULTS_FILE).count(b"\n") > 1
        except OSError:
            return False

    def begin(self, identity: dict[str, Any]) -> list[Trial]:
        """Start the sweep, or resume it.

        Returns:
            The trials that are already finished.

        Raises:
            MismatchError: if the folder holds another sweep.
            RunError: if it is damaged, of another version, or no sweep.
        """
        facts = self._read_facts()
        self._identity = json.dumps(identity, sort_keys=True)
        if facts is None:
            if {file.name for file in self.folder.iterdir()} - {LOCK_FILE, LOCK_FILE + HELD, RESULTS_FILE}:
                raise RunError("not a sweep folder", path=self.folder, expected=f"a {SWEEP_FILE}", fix=_OTHER_NAME)
            self.rewrite([])
            self.save_facts({"identity": identity, "state": "running"})
            return []
        if (found := facts.get("identity")) != identity:
            old = found if isinstance(found, dict) else {}
            differ = [key for key in {**old, **identity} if old.get(key) != identity.get(key)]
            raise MismatchError(
                f"a sweep with this name has other settings: {', '.join(differ)}", path=self.folder, fix=_OTHER_NAME
            )
        return self.read_trials()

    def _read_facts(self) -> dict[str, Any] | None:
        """Return the content of sweep.json, or ``None`` if there is none."""
        file = self.folder / SWEEP_FILE
        if not file.is_file():
            return None
        with damage_of(file, fix=_OTHER_NAME):
            facts: dict[str, Any] = parse_json(file.read_bytes())
            found = facts.get("format"), facts.get("schema_version")
        if found != (FORMAT, SCHEMA_VERSION):
            raise RunError("a sweep of another format or version", path=file, found=str(found), fix=_OTHER_NAME)
        return facts

    def save_facts(self, facts: dict[str, Any]) -> None:
        """Write sweep.json, whole or not at all, with format and version."""
        content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **facts}
        with replacing(self.folder / SWEEP_FILE, elsewhere=ELSEWHERE) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_trials(self) -> list[Trial]:
        """Read results.csv; an incomplete last line is removed from the file.

        Raises:
            RunError: if the file is damaged otherwise.
        """
        file = self.folder / RESULTS_FILE
        with damage_of(file, "damaged results", fix=_OTHER_NAME):
            content = read_regular(file)
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                with replacing(file) as partial:
                    partial.write_bytes(whole)
            rows = list(csv.DictReader(io.StringIO(whole.decode(), newline="")))
            for row in rows:
                if row.get(_DIGEST, digest := self._digest(row[name] for name in _COLUMNS)) != digest:
                    raise ValueError(f"trial {row['trial']} has changed since it was saved")
            trials = [_trial(row) for row in rows]
            if len({trial.number for trial in trials}) < len(trials):
                raise ValueError("a trial has two lines")
            if any(_DIGEST not in row for row in rows):  # of an earlier version
                self.rewrite(trials)
            return trials

    def rewrite(self, trials: Sequence[Trial]) -> None:
        """Replace results.csv by these trials."""
        self._write_table("w", [[*_COLUMNS, _DIGEST], *map(self._line, trials)])

    def append(self, trials: Sequence[Trial]) -> None:
        """Add finished trials; they are on the disk when this returns."""
        self._write_table("a", [self._line(trial) for trial in trials])

    def _line(self, trial: Trial) -> list[str]:
        cells = [str(cell) for cell in _cells(trial)]
        return [*cells, self._digest(cells)]

    def _digest(self, cells: Iterable[str]) -> str:
        return hashlib.sha256("\n".join([self._identity, *cells]).encode()).hexdigest()[:16]

    def _write_table(self, mode: str, lines: Sequence[Sequence[Any]]) -> None:
        file = self.folder / RESULTS_FILE
        try:
            with file.open(mode, newline="", encoding="utf-8") as stream:
                csv.writer(stream, lineterminator="\n").writerows(lines)
            flush(file)
        except OSError as error:
            raise output_error(file, error, elsewhere=ELSEWHERE) from error


def _cells(trial: Trial) -> list[Any]:
    settings = {**trial.spec.settings, "hidden": axis_text("hidden", (trial.spec.head.hidden,))}
    return [
        trial.number,
        trial.status,
        *settings.values(),
        trial.spec.train.seed,
        trial.best_epoch,
        *(trial.metrics.get(name, "") for name in RANKINGS),
        f"{trial.seconds:.3f}",
    ]


def _trial(row: dict[str, str]) -> Trial:
    defaults = TrialSpec(HeadSpec(), TrainSpec()).settings
    kinds: dict[str, Callable[[str], Any]] = {name: type(value) for name, value in defaults.items()}
    kinds["hidden"] = parse_widths
    return Trial(
        int(row["trial"]),
        row["status"],
        TrialSpec.of({name: kind(row[name]) for name, kind in kinds.items()}, int(row["seed"])),
        int(row["best_epoch"]),
        {name: float(row[f"valid_{name}"]) for name in RANKINGS if row[f"valid_{name}"]},
        float(row["seconds"]),
    )

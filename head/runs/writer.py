"""Writing the run folder ``runs/<run>/``: it appears whole or not at all."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import BusyError, RunError, XfeatError
from xfeat.featurize.system.atomic import flush, output_error, replace
from xfeat.featurize.system.filesystem import SYMBOLIC_LINKS, is_missing
from xfeat.featurize.system.locks import Lock
from xfeat.head.runs.reader import HEAD_FILE, LATEST, PREDICTIONS_FILE, prediction_columns
from xfeat.head.runs.resumable import ELSEWHERE

if TYPE_CHECKING:
    from torch import nn

    from xfeat.head.evaluation.predictions import Predictions

_HOST = platform.node()
# File systems allow 255 bytes; the names of locks, of a sweep's best trial and of this machine are appended.
_MAX_NAME_BYTES = 150


def checked_name(name: str) -> str:
    """Return ``name`` if it is valid for a run.

    Raises:
        RunError: if it is not.
    """
    if not name or name != Path(name).name or name.startswith(".") or name == LATEST:
        raise RunError(
            "not a valid name for a run", expected="letters, digits, - and _", found=name, fix="choose another --name"
        )
    if (length := len(os.fsencode(name))) > _MAX_NAME_BYTES:
        raise RunError(
            "the name of the run is too long",
            expected=f"at most {_MAX_NAME_BYTES} bytes",
            found=f"{length} bytes",
            fix="choose a shorter --name",
        )
    return name


class RunWriter:
    """Builds a run folder under a hidden name and renames it when it is complete.

    Args:
        runs: the folder of all runs.
        name: of this run.
        latest: whether to point ``runs/latest`` to it.

    Raises:
        RunError: if the name is invalid or taken.
        BusyError: on entering, if another training is using the name.
    """

    def __init__(self, runs: Path, name: str, *, latest: bool = True) -> None:
        self.target, self._latest = runs / checked_name(name), latest
        self._refuse_existing()
        # Containers and machines may share a disk: the folder is unique, and its lock belongs to this machine.
        self.folder = runs / f".{name}.{_HOST}-{secrets.token_hex(4)}.tmp"
        self._lock = Lock(runs / f".{name}.{_HOST}-name.lock")
        self._is_locked = False
        self._made = [folder for folder in (runs, *runs.parents) if not folder.exists()]

    def __enter__(self) -> RunWriter:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.target.parent)
            self._is_locked = self._lock.acquire()
            if not self._is_locked:
                raise BusyError(
                    "another training is using this name",
                    path=self.target,
                    found=self._lock.holder(),
                    fix="choose another --name, or wait until it has finished",
                )
            self._refuse_existing()
            self.folder.mkdir()
        except OSError as error:
            self._clean_up()
            if isinstance(error, XfeatError):
                raise
            raise output_error(self.target, error, elsewhere=ELSEWHERE) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._publish()
        except XfeatError:
            raise
        except OSError as problem:
            raise output_error(self.target, problem, elsewhere=ELSEWHERE) from problem
        finally:
            self._clean_up()
        if isinstance(error, OSError) and not isinstance(error, XfeatError):
            raise output_error(self.target, error, elsewhere=ELSEWHERE) from error

    def _refuse_existing(self) -> None:
        if self.target.exists():
            raise RunError(
                "a run with this name already exists", path=self.target, fix="choose another --name, or delete it"
            )

    def save_head(self, model: nn.Module) -> str:
        """Write the head's weights; return the file's SHA-256."""
        from safetensors.torch import save

        content = save({key: value.contiguous() for key, value in model.state_dict().items()})
        (self.folder / HEAD_FILE).write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def save_json(self, file_name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        (self.folder / file_name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def save_text(self, file_name: str, text: str) -> None:
        """Write a text file."""
        (self.folder / file_name).write_text(text, encoding="utf-8", errors="surrogateescape")

    def _publish(self) -> None:
        for path in (*self.folder.iterdir(), self.folder):
            flush(path)
        self._refuse_existing()  # another machine may have written it, where the lock has no effect
        self.folder.rename(self.target)
        if self._latest:
            self._point_latest()
        flush(self.target.parent)

    def _point_latest(self) -> None:
        link = self.target.parent / f".{LATEST}.{secrets.token_hex(8)}"
        try:
            link.symlink_to(self.target.name, target_is_directory=True)
            replace(link, self.target.parent / LATEST)
        except OSError as error:
            is_missing(SYMBOLIC_LINKS, error, link)  # latest_run compares times instead
            for earlier in (link, self.target.parent / LATEST):  # it would name an older run
                if earlier.is_symlink():
                    earlier.unlink()

    def _clean_up(self) -> None:
        """Remove unfinished files, and the folders created for them if they are empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._is_locked:
            _remove(self._lock)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def _remove_abandoned(runs: Path) -> None:
    """Remove the temporary folders of killed trainings on this machine, whose locks the system has released."""
    for file in runs.glob(f".*.{glob.escape(_HOST)}-name.lock"):
        lock = Lock(file)
        with suppress(OSError):
            if lock.acquire():  # no training is running
                for folder in runs.glob(f"{glob.escape(file.stem.removesuffix('name'))}????????.tmp"):
                    shutil.rmtree(folder, ignore_errors=True)
                _remove(lock)


def _remove(lock: Lock) -> None:
    lock.release()
    with suppress(OSError):  # another training may be waiting to use it
        lock.file.unlink()


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header line."""
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def save_predictions(writer: RunWriter, predictions: Predictions, class_names: Sequence[str]) -> None:
    """Write predictions.csv: probabilities after the temperature, and predicted classes."""
    table = (
        # str of a float32 preserves every bit, so that an exported model can be compared with it
        [path, split, class_names[label], class_names[predicted], *(str(p) for p in probabilities)]
        for path, split, label, predicted, probabilities in zip(
            predictions.paths,
            predictions.split,
            predictions.labels,
            predictions.decisions,
            predictions.probabilities,
            strict=True,
        )
    )
    write_table(writer.folder / PREDICTIONS_FILE, prediction_columns(class_names), table)

"""Predictions as a CSV, JSONL or parquet file, a row as soon as it is known."""

from __future__ import annotations

import csv
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xfeat.featurize.datasets.file_lookup import name_as_text
from xfeat.featurize.errors import BusyError, Interrupted, OutputError, SpecError, XfeatError
from xfeat.featurize.sources.parquet_table import arrow
from xfeat.featurize.system.atomic import output_error, replacing
from xfeat.serve.inference.results import Result, SkippedImage

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".jsonl", ".parquet")
_ROW_GROUP = 4096
_FIRST, _LAST = ("path", "label"), ("ood", "in_distribution", "error")

Write = Callable[[Result], None]


def check_output(path: Path, *, overwrite: bool, inputs: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Check what can be known of a table of predictions before there are any.

    Args:
        path: the file.
        overwrite: whether it may exist.
        inputs: what is read, which it may never be.

    Raises:
        SpecError: if its suffix says no kind of table, or it is among the inputs.
        OutputError: if it exists.
        MissingExtraError: if it is of parquet, and pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        expected = f"a name that ends in {', '.join(SUFFIXES)}; or - for CSV on stdout"
        raise SpecError("unknown kind of table", expected=expected, found=str(path))
    if path.suffix.lower() == ".parquet":
        arrow()
    if not os.path.exists(path) or stat.S_ISFIFO(path.stat().st_mode) or stat.S_ISCHR(path.stat().st_mode):
        return
    if any(os.path.exists(each) and os.path.samefile(path, each) for each in inputs):
        raise SpecError("the output is one of the inputs", found=str(path), fix="choose another place with -o")
    if not overwrite or path.is_dir():
        fix = "choose another place with -o" + ", or add --overwrite" * (not path.is_dir())
        raise OutputError(f"{'a folder' if path.is_dir() else 'a file'} of that name exists", path=path, fix=fix)


@contextmanager
def open_rows(path: Path, class_names: Sequence[str]) -> Iterator[Write]:
    """Yield a function that writes a result as a row; docs/formats.md says of which columns.

    CSV and JSONL go to the file itself, one row at a time: whatever happens, it has complete rows, and at most a part
    of one more if the process is killed. A parquet file appears when it is whole.

    Args:
        path: the file, which is replaced.
        class_names: of the model.

    Raises:
        OutputError: if it cannot be written.
        BusyError: if another process writes it.
        Interrupted: in place of KeyboardInterrupt, with the number of rows.
    """
    rows = 0
    opener = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[path.suffix.lower()]
    try:
        with opener(path, class_names) as write:

            def counted(result: Result) -> None:
                nonlocal rows
                write(result)
                rows += 1

            yield counted
    except KeyboardInterrupt as stop:
        if opener is _parquet_rows:
            raise
        raise Interrupted(f"stopped; {path} has the first {rows} images, each row complete") from stop
    except Exception as error:
        if opener is not _parquet_rows and rows:
            logger.warning("%s has the first %d images", path, rows)
        if isinstance(error, OSError) and not isinstance(error, XfeatError):
            raise output_error(path, error) from error
        raise


def csv_rows(write: Callable[[str], Any], class_names: Sequence[str]) -> Write:
    """Write the header of a CSV table, and return a function that writes a result as a row.

    Args:
        write: takes a whole row, with its line end.
        class_names: of the model.
    """
    # With the writer's own line ends, a carriage return in a name is quoted.
    writer = csv.writer(SimpleNamespace(write=lambda row: write(row.removesuffix("\r\n") + "\n")))
    writer.writerow([*_FIRST, *(f"p_{name}" for name in class_names), *_LAST])

    def write_result(result: Result) -> None:
        cells = _cells(result, class_names)
        writer.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells])

    return write_result


def _row(result: Result) -> dict[str, Any]:
    """Return a result with the same keys whether it is a prediction or not."""
    if isinstance(result, SkippedImage):
        nothing = dict.fromkeys(("label", "probabilities", "ood", "ood_threshold", "in_distribution"))
        return {"path": result.path, **nothing, "error": result.reason}
    return {**result.to_dict(), "error": None}


def _cells(result: Result, class_names: Sequence[str]) -> list[Any]:
    """Return a result as the values of a table's columns."""
    row = _row(result)
    shares = row["probabilities"] or dict.fromkeys(class_names)
    return [row["path"], row["label"], *shares.values(), *(row[name] for name in _LAST)]


@contextmanager
def _csv_rows(path: Path, class_names: Sequence[str]) -> Iterator[Write]:
    with _open_lines(path) as write:
        yield csv_rows(write, class_names)


@contextmanager
def _json_rows(path: Path, class_names: Sequence[str]) -> Iterator[Write]:
    with _open_lines(path) as write:
        yield lambda result: write(json.dumps(_row(result)) + "\n")


@contextmanager
def _open_lines(path: Path) -> Iterator[Callable[[str], None]]:
    """Open a text file to which whole lines are written at once; a line that does not fit is taken back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = 0
    with path.open("ab", buffering=0) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _require_alone(file, path)
            file.truncate(0)

        def write(text: str) -> None:
            nonlocal complete
            rest = line = text.encode("utf-8", "surrogateescape")
            while rest:
                rest = rest[file.write(rest) or 0 :]
            complete += len(line)

        try:
            yield write
        except BaseException:
            with suppress(OSError):  # a pipe
                file.truncate(complete)
            raise


def _require_alone(file: FileIO, path: Path) -> None:
    """Reject a file to which another process writes, where the system can tell: their rows would mix."""
    with suppress(ModuleNotFoundError):  # Windows
        from fcntl import LOCK_EX, LOCK_NB, flock

        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            fix = "wait until it has finished, or choose another place with -o"
            raise BusyError("another process is writing this file", path=path, fix=fix) from error
        except OSError:
            logger.debug("%s cannot be locked", path, exc_info=True)


@contextmanager
def _parquet_rows(path: Path, class_names: Sequence[str]) -> Iterator[Write]:
    pa = arrow()
    from pyarrow import parquet

    kinds = dict.fromkeys(_FIRST, pa.string()) | {f"p_{name}": pa.float64() for name in class_names}
    schema = pa.schema([*kinds.items(), *zip(_LAST, (pa.float64(), pa.bool_(), pa.string()), strict=True)])
    rows: list[tuple[Any, ...]] = []
    with replacing(path) as partial, parquet.ParquetWriter(partial, schema) as file:

        def flush() -> None:
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            file.write_batch(pa.RecordBatch.from_arrays([pa.array(*each) for each in columns], schema=schema))
            rows.clear()

        def write(result: Result) -> None:
            path, *others = _cells(result, class_names)
            rows.append((name_as_text(path), *others))
            if len(rows) == _ROW_GROUP:
                flush()

        yield write
        if rows:
            flush()

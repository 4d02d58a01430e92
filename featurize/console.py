"""The command-line behaviour that all four commands share.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 a problem, reported in one message; 2 wrong
usage; 3 done, but not for all images (xserve predict); 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from xfeat.featurize.errors import Interrupted, SpecError, XfeatError
from xfeat.featurize.images.decoder_warnings import ignore_decoder_warnings
from xfeat.featurize.system.atomic import no_temporary_folder
from xfeat.featurize.system.stop_signals import EXIT_INTERRUPTED, STOPPED, stop_on_signals
from xfeat.featurize.system.streams import discard_stdout, prepare_streams
from xfeat.featurize.text import printable, printable_lines
from xfeat.featurize.urls import Root, is_url, root_of

EXIT_PROBLEM = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
_PLAIN_LINE_SECONDS = 5.0
_WITHOUT_CURSOR = ("dumb", "unknown")  # terminals on which a bar would be a new line each time it moves
_NOT_WRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF)
# What os.stat raises for a path that may be there; pathlib takes other errors for "no such file".
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE, errno.ENOTCONN)
_MAX_HELP = 300  # characters, longer than the first sentence of any help


class _LocalPath(click.Path):
    """A path of this machine; of an address, Python's would be another one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            self.fail("an address, where a path of this machine is needed.", param, ctx)
        return super().convert(value, param, ctx)


class _Data(click.ParamType[Root]):
    """Images, here or at an address."""

    name = "data"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Root:
        return root_of(value)


PATH = _LocalPath(path_type=Path)
DATA = _Data()
FILE = click.Path(path_type=Path, dir_okay=False)
COUNT = click.IntRange(min=1)


class _FiniteRange(click.FloatRange):
    """A range of numbers; in click's own, NaN is within every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


NOT_NEGATIVE = _FiniteRange(min=0)
POSITIVE = _FiniteRange(min=0, min_open=True)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Printed = tuple[dict[str, Any], Sequence[str]]
"""What a command prints with ``--json``, and its lines without it."""


class Commands(click.Group):
    """A click group whose commands report problems in one message instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, on whatever stdout and stderr are."""
        prepare_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # Files that this program writes have a name, and errors of their own.
            if error.filename is not None or error.errno not in _NOT_WRITABLE:
                raise
            discard_stdout()
            _print_and_exit(f"error: cannot write the output: {error.strerror}", EXIT_PROBLEM)

    def invoke(self, ctx: click.Context) -> Any:
        _start_logging()
        ignore_decoder_warnings()
        try:
            with stop_on_signals():
                _require_current_folder()
                return super().invoke(ctx)
        except Interrupted as stop:
            _print_and_exit(str(stop), EXIT_INTERRUPTED)
        except (KeyboardInterrupt, click.exceptions.Abort):
            _print_and_exit(STOPPED, EXIT_INTERRUPTED)
        except click.ClickException as problem:
            # It quotes arguments, which may be names of files. Without file=, click writes UTF-8 to an ASCII stream.
            vars(problem)["message"] = printable(problem.message)
            problem.show(file=sys.stderr)
            sys.exit(problem.exit_code)
        except XfeatError as problem:
            usage = isinstance(problem, SpecError) and problem.file is None
            _print_and_exit(f"error: {problem}", EXIT_USAGE if usage else EXIT_PROBLEM)
        except OSError as problem:
            if (known := no_temporary_folder(problem) or _no_access(problem)) is None:
                raise
            _print_and_exit(f"error: {known}", EXIT_PROBLEM)
        except ModuleNotFoundError as problem:
            _print_and_exit(
                f"error: {problem.name} is not installed\n  fix:      pip install 'xfeat-onnx[all]'", EXIT_PROBLEM
            )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each, where click would cut it off."""
        rows = [(name, command.get_short_help_str(_MAX_HELP)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _no_access(error: OSError) -> XfeatError | None:
    """Return what to report if the system does not give access to a path; ``None`` for any other error."""
    if error.errno not in _NO_ACCESS or not isinstance(error.filename, str):
        return None
    fix = f"check it, and the rights of each folder in it: namei -l {error.filename}"
    return XfeatError(f"cannot be used: {error.strerror}", path=error.filename, fix=fix)


def _require_current_folder() -> None:
    """Refuse to run in a folder that was deleted, where torch and Pillow fail with other reasons."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise XfeatError("the current folder was deleted", fix="change to another folder") from error


def program(text: str, *commands: click.Command) -> Commands:
    """Return the group of a program's commands, with ``text`` as its help."""
    settings = {"help_option_names": ["-h", "--help"], "show_default": True}
    group = Commands("main", help=text, commands=commands, context_settings=settings)
    return click.version_option(package_name="xfeat-onnx")(group)


json_flag = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else there."
)


def json_option(command: Callable[..., Printed]) -> Callable[..., Any]:
    """Add ``--json`` to a command that returns :data:`Printed`."""

    @json_flag
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> None:
        result, lines = command(*args, **kwargs)
        print_result(result, lines, as_json=as_json)

    return wrapped


def print_result(result: dict[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    """Write a result to stdout: a JSON object, or printable lines."""
    # Without file=, click writes UTF-8 to an ASCII stream.
    click.echo(json.dumps(result) if as_json else "\n".join(map(printable, lines)), file=sys.stdout)


def spec_option(spec: type[Any], name: str, kind: Any, text: str, *, flag: str = "", **more: Any) -> Decorator:
    """Return the option of a spec's field, with the spec's default and ``text`` as its help.

    Its name is that of the field with hyphens, unless ``flag`` names another. The click type ``bool`` makes a pair of
    flags, ``--name/--no-name``. Other arguments are those of :func:`click.option`.
    """
    flag = flag or "--" + name.replace("_", "-")
    pair = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    return click.option(pair, name, **{"type": kind, "default": getattr(spec, name), "help": text, **more})


def combined(*options: Decorator) -> Decorator:
    """Return one decorator for several options, which the help lists in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


layout_option = click.option(
    "--layout",
    type=click.Choice(["splits", "classes", "flat"]),
    help="What the folders are: splits with classes in them, classes, or neither.  [default: what they allow; refused "
    "if they can be read in two ways]",
)


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--metadata`` and ``--columns`` to a command that lists the images of a data set."""
    metadata = click.option(
        "--metadata",
        type=PATH,
        metavar="FILE",
        help="Table (CSV or Excel) of further columns, such as age or hospital, joined by path, base name or group.",
    )
    columns = click.option(
        "--columns",
        metavar="NAME=COLUMN,COLUMN:KIND",
        help="What the columns of tables are: path=filename,label=finding,group=patient; sex=Geschlecht renames one; "
        "age:number sets its kind (number, category, text, date, date-dmy, date-mdy, or ignore).",
    )
    return metadata(columns(command))


corrections_option = click.option(
    "--corrections",
    type=PATH,
    metavar="FILE",
    help="Table of images to exclude, relabel or give another group, as the page of xfeat audit makes it. Features are "
    "kept: without this option, the next run has the images back.",
)


def comma_list(text: str | None) -> list[str] | None:
    """Split ``A,B`` at its commas; ``None`` stays ``None``."""
    return [part.strip() for part in text.split(",") if part.strip()] if text is not None else None


@contextlib.contextmanager
def progress_bar(what: str, unit: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar with rate and time left on a terminal, a line every few seconds elsewhere.

    Args:
        what: the activity, such as ``featurizing``.
        unit: unit of the rate; without it no rate is shown.

    Yields:
        A function to call with the number done and the total.
    """
    rate = _rate_in(unit)
    if not sys.stderr.isatty() or os.environ.get("TERM") in _WITHOUT_CURSOR:
        yield _plain_lines(what, rate)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")
        yield lambda done, total: bar.update(task, completed=done, total=total or None, rate=rate(done))


# Units of the rate, where an activity has one.
_UNITS = {
    "downloading weights": "bytes",
    "downloading onnxruntime-web": "bytes",
    "dividing": "files",
    "training": "epochs",
    "cross-validating": "heads",
    "baselines": "fits",
    "sweep": "trials",
    "checking": None,
    "benchmarking": None,
    "quantising": "nodes",
}


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar after another, as :func:`progress_bar` does: for the public functions.

    Yields:
        A function to call with the activity, the number done and the total. Another activity ends the bar of the last.
    """
    with contextlib.ExitStack() as stack:
        shown: dict[str, Callable[[int, int], None]] = {}

        def advance(activity: str, done: int, total: int) -> None:
            if activity not in shown:
                stack.close()
                shown.clear()
                shown[activity] = stack.enter_context(progress_bar(activity, _UNITS.get(activity, "images")))
            shown[activity](done, total)

        yield advance


def say(text: str) -> None:
    """Write printable lines to stderr, above a running progress bar. If stderr is gone, the work goes on."""
    # rich replaces sys.stderr while a bar runs; err=True would bypass it and write into the line of the bar.
    with contextlib.suppress(OSError):
        click.echo(printable_lines(text), file=sys.stderr)


def warn(warnings: Iterable[str]) -> None:
    """Write warnings to stderr, a line each."""
    for warning in warnings:
        say(f"warning: {printable(warning)}")


def _plain_lines(what: str, rate: Callable[[int], str]) -> Callable[[int, int], None]:
    last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        per_second = rate(done)
        if time.monotonic() - last >= _PLAIN_LINE_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done} of {total or '?'}" + (f" ({per_second})" if per_second else ""))

    return advance


def _rate_in(unit: str | None) -> Callable[[int], str]:
    """Return a function that writes units per second since its first call, so that start-up does not count.

    It returns an empty text until something was done since then.
    """
    first: tuple[float, int] | None = None

    def rate(done: int) -> str:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = (now, done)
        since, before = first
        if unit is None or done <= before or now <= since:
            return ""
        per_second = (done - before) / (now - since)
        return f"{per_second:.{0 if per_second >= 10 else 1}f} {unit}/s"

    return rate


class _StderrHandler(logging.Handler):
    """Write each log message of the library to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else "warning: "
        # Names of files and classes are made one line each; errors have lines of their own.
        args = tuple(printable(arg) if isinstance(arg, str | Path) else arg for arg in record.args or ())
        say(prefix + (str(record.msg) % args if args else record.getMessage()))


def _start_logging() -> None:
    logger = logging.getLogger("xfeat")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)


def _print_and_exit(message: str, code: int) -> None:
    say(message)
    sys.exit(code)

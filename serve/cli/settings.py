"""Settings of ``xserve start`` from a file and from the environment. No heavy import here: ``--help`` loads it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import click

from xfeat.featurize.errors import SpecError
from xfeat.featurize.system.time_limit import TimeLimitError, limited

# A pipe is read as well, such as bash gives for <(pass show key); one that nobody writes to is given up.
_WAIT_S = 10.0
_MAX_BYTES = 1 << 20
PREFIX = "XSERVE_"
KEY_VARIABLE = f"{PREFIX}API_KEY"
# Source: kubernetes.io, Service, Environment variables.
_OF_KUBERNETES = re.compile(f"{PREFIX}(SERVICE|PORT)_")
_WRITE_KEY = "write one: openssl rand -hex 24 > key"
_WRITE_SETTINGS = "write lines such as: port = 8080"


def name_environment(command: click.Command) -> click.Command:
    """Let ``XSERVE_<OPTION>`` set every option of a command, and show this in its help."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name:
            parameter.envvar = PREFIX + parameter.name.upper()
            parameter.show_envvar = True
    return command


def unknown_variables(command: click.Command) -> list[str]:
    """Return a warning for each variable ``XSERVE_…`` that is no setting: a misspelt limit would be ignored silently.

    Kubernetes sets variables for a service called xserve; those are passed over.
    """
    known = {KEY_VARIABLE, *(parameter.envvar for parameter in command.params)}
    given = (name for name in sorted(os.environ) if name.startswith(PREFIX) and not _OF_KUBERNETES.match(name))
    return [f"{name} is no setting of xserve {command.name}, and has no effect" for name in given if name not in known]


def read_file(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Read defaults from a TOML file (a click callback). Options and environment variables override them.

    Raises:
        SpecError: if the file cannot be read, or has an unknown setting.
    """
    if path is None:
        return
    text = _read_text(path, "settings file", _WRITE_SETTINGS)
    try:
        settings = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError("not a TOML file", path=path, found=str(error), fix=_WRITE_SETTINGS) from error
    options = {option.name: option for option in ctx.command.params if option.name != parameter.name}
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    if unknown := sorted(set(given) - options.keys()):
        known = ", ".join(sorted(str(name).replace("_", "-") for name in options))
        raise SpecError(f"unknown setting {unknown[0].replace('_', '-')}", path=path, expected=known)
    for name, value in given.items():
        _check_kind(options[name], value, path)
    ctx.default_map = {**(ctx.default_map or {}), **given}


def _check_kind(option: click.Parameter, value: object, path: Path) -> None:
    """Check a value for which click has no message: it takes true for 1 and 2.5 for 2, and fails on objects."""
    if isinstance(option, click.Option) and option.multiple:
        expected, good = "a list of texts", isinstance(value, list) and all(isinstance(each, str) for each in value)
    elif isinstance(option.type, click.types.BoolParamType):
        expected, good = "true or false", isinstance(value, bool)
    else:
        kinds = str | int | float if isinstance(option.type, click.FloatRange) else str | int
        expected, good = "a text or a number", isinstance(value, kinds) and not isinstance(value, bool)
    if not good:
        name = str(option.name).replace("_", "-")
        raise SpecError(f"setting {name} has another type", path=path, expected=expected, found=repr(value)[:80])


def log_as(ctx: click.Context, parameter: click.Parameter, kind: str) -> str:
    """Start the log on stderr (a click callback), so that errors in the other options are in it, too."""
    if kind != "off":
        from xfeat.serve.http.stderr_log import log_to_stderr

        ctx.find_root().with_resource(log_to_stderr(kind))  # it outlives this context, as messages of errors do
    return kind


def read_key(path: Path | None) -> str | None:
    """Return the API key from a file, or else from the environment; ``None`` if there is neither.

    Raises:
        SpecError: if the file cannot be read, or the key is empty or cannot be sent.
    """
    key = os.environ.get(KEY_VARIABLE)
    if path is not None:
        key = _read_text(path, "API key file", _WRITE_KEY)
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise SpecError("the API key is empty", path=path, fix=_WRITE_KEY)
    if not key.isprintable():
        raise SpecError("the API key has several lines, or invisible characters", path=path, fix=_WRITE_KEY)
    return key


def _read_text(path: Path, what: str, fix: str) -> str:
    try:
        content = _read(path)
        if len(content) > _MAX_BYTES:
            raise SpecError(f"{what} is larger than 1 MiB", path=path, fix=fix)
        return content.decode()
    except OSError as error:
        raise SpecError(f"{what} cannot be read: {error.strerror}", path=path, fix=fix) from error
    except TimeLimitError as error:
        found = "a pipe that nobody writes to, or a disk that does not answer"
        raise SpecError(f"{what} was {error.what}", path=path, found=found, fix=fix) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{what} is not UTF-8 text", path=path, fix=fix) from error


@limited(_WAIT_S, "read")
def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1)

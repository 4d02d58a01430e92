"""Publishes the files of a model: written beside their targets, flushed to disk, renamed over them one by one."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xfeat.export.parity.certificate import certificate_path
from xfeat.featurize.errors import OutputError, XfeatError
from xfeat.featurize.system.atomic import flush, output_error, replace

_UNFINISHED = ".unfinished"
# No export takes this long: an older folder was left by a killed one.
_ABANDONED_AFTER_S = 24 * 60 * 60


def output_paths(output: Path) -> tuple[dict[str, Path], Path]:
    """Return the models to write, variant to path, and the path of their certificate; check that they can be written.

    Raises:
        OutputError: if ``output`` is not a valid name for a model, one of the three paths is a folder, or nothing can
            be written there.
    """
    targets = {"full": output, "core": output.with_suffix(".core.onnx")}
    certificate = certificate_path(output)
    try:
        _check_writable(output, [*targets.values(), certificate])
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise output_error(output, error) from error
    return targets, certificate


def _check_writable(output: Path, files: list[Path]) -> None:
    if output.is_dir() or output.suffix != ".onnx":
        raise OutputError(
            "not a file name for a model", path=output, expected="a name that ends in .onnx", fix="name a file with -o"
        )
    if output.name.endswith(".core.onnx"):
        raise OutputError(
            "names ending in .core.onnx are reserved for the core model",
            path=output,
            expected="the name of the full model; the core model is written beside it",
            fix=f"-o {output.name.removesuffix('.core.onnx')}.onnx",
        )
    for path in files:
        if path.is_dir():
            raise OutputError("output path is a folder", path=path, fix="choose another name with -o")
    above = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not above.exists():
        raise OutputError("output path is a broken symbolic link", path=above, fix="choose another path with -o")
    os.rmdir(tempfile.mkdtemp(dir=above, prefix=f".{output.name}.", suffix=_UNFINISHED))


@contextmanager
def publish(targets: list[Path]) -> Iterator[Path]:
    """Yield a folder beside the targets; if the body succeeds, its files replace the targets of the same names.

    They do so in order, the certificate last. A process killed in between leaves new models beside an older
    certificate, which has other digests: ``xexport verify`` refuses them until the same command has run again.

    Raises:
        OutputError: if a file cannot be written.
    """
    parent = targets[0].parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(targets[0])
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{targets[0].name}.", suffix=_UNFINISHED))
    except OSError as error:
        raise output_error(targets[0], error) from error
    try:
        yield folder
        for target in targets:
            flush(folder / target.name)
        for target in targets:
            replace(folder / target.name, target)
        flush(parent)
    except XfeatError:
        raise
    except OSError as error:
        raise output_error(targets[0], error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*{_UNFINISHED}"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)

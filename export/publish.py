"""The files of a model: written beside their targets, flushed to disk, and put in place one after the other."""

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
from xfeat.featurize.system.atomic import flush, output_error

_UNFINISHED = ".unfinished"
# No export takes this long: what is older was left by one that was killed.
_ABANDONED_AFTER_S = 24 * 60 * 60


def output_paths(output: Path) -> tuple[dict[str, Path], Path]:
    """Return the models to write, variant to path, and the path of their certificate, before any work is done for them.

    Raises:
        OutputError: if ``output`` is no name for a model, a folder is in the way of any of the three, or nothing can be
            written there.
    """
    targets = {"full": output, "core": output.with_suffix(".core.onnx")}
    certificate = certificate_path(output)
    try:
        _check_place(output, [*targets.values(), certificate])
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise output_error(output, error) from error
    return targets, certificate


def _check_place(output: Path, files: list[Path]) -> None:
    if output.is_dir() or output.suffix != ".onnx":
        raise OutputError(
            "not a name for a model", path=output, expected="a file that ends in .onnx", fix="name one with -o"
        )
    if output.name.endswith(".core.onnx"):
        raise OutputError(
            "the name of a core model, which would replace the one of another",
            path=output,
            expected="the name of a full model; the core model goes beside it",
            fix=f"-o {output.name.removesuffix('.core.onnx')}.onnx",
        )
    for path in files:
        if path.is_dir():
            raise OutputError("a folder of that name is in the way", path=path, fix="choose another name with -o")
    above = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not above.exists():
        raise OutputError("a link that leads nowhere is in the way", path=above, fix="choose another place with -o")
    os.rmdir(tempfile.mkdtemp(dir=above, prefix=f".{output.name}.", suffix=_UNFINISHED))


@contextmanager
def publish(targets: list[Path]) -> Iterator[Path]:
    """Give a folder beside the targets; if the body ends well, its files of their names replace them, in order.

    The certificate goes last. Whoever is killed between two replacements thus leaves new models beside an older
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
            os.replace(folder / target.name, target)
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

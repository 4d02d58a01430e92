"""The lines on packages: versions, extras, decoders, and the weights of the backbones."""

from __future__ import annotations

import importlib
import io
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from xfeat.featurize.backbones.registry import FALLBACK, PREFERRED
from xfeat.featurize.backbones.weights import cached_weights, check_connection, weights_address
from xfeat.featurize.doctor.report import FAIL, NOTE, OK, Line
from xfeat.featurize.errors import WeightsError
from xfeat.featurize.system.versions import library_versions

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PROJECT = "xfeat-onnx"
_OF_DEVELOPERS = ("dev", "all", "ray-serve")


def versions() -> Iterator[Line]:
    """Say which versions run, and whether two packages are in conflict."""
    found = library_versions()
    yield Line("xfeat", OK, f"{found.pop('xfeat', 'not installed')} on {platform.platform(terse=True)}")
    yield Line("libraries", OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    if {"onnxruntime", "onnxruntime-gpu"} <= set(found):
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        yield Line("onnxruntime", FAIL, "two packages share a folder, and one has overwritten the other", fix)


def extras() -> Iterator[Line]:
    """Say which extras are installed as a whole, what the others lack, and which packages have a wrong version."""
    complete, absent, broken = [], [], set()
    base = set(_needs(_PROJECT, ""))
    for extra in ("", *(metadata.metadata(_PROJECT).get_all("Provides-Extra") or [])):
        if extra in _OF_DEVELOPERS:
            continue
        asked = set(_needs(_PROJECT, extra)) - base if extra else base
        versions = {need: _version(need.name) for need in asked}
        missing = sorted(need.name for need, there in versions.items() if there is None)
        install = f"pip install '{_PROJECT}[{extra}]'" if extra else f"pip install {_PROJECT}"
        for need, there in versions.items():
            if there is not None and not need.specifier.contains(there, prereleases=True):
                yield Line(need.name, FAIL, f"{there}, where {need.specifier} is needed", install)
            if there is not None and _lacks_files(need.name):
                broken.add(need.name)
        if extra and len(missing) == len(asked):
            absent.append(extra)
        elif missing:
            yield Line(extra or _PROJECT, NOTE if extra else FAIL, f"lacks {', '.join(missing)}", install)
        elif extra:
            complete.append(extra)
    for name in sorted(broken):
        yield Line(name, FAIL, "its files are missing", f"pip install --force-reinstall {name}")
    yield Line("extras", OK, ", ".join(complete) or "none")
    if absent:
        yield Line("other extras", NOTE, f"not installed: {', '.join(absent)}", f"pip install '{_PROJECT}[NAME]'")


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    """Yield what a package asks for with an extra, and what it asks for through extras of others."""
    from packaging.requirements import Requirement

    for need in map(Requirement, metadata.requires(name) or []):
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            if need.name != _PROJECT:
                yield need
            for more in need.extras if _version(need.name) is not None else ():
                yield from (inner for inner in _needs(need.name, more) if "extra" in str(inner.marker))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lacks_files(name: str) -> bool:
    """Say whether a package is registered as installed, without the files that make it importable."""
    modules = [file for file in metadata.files(name) or [] if len(file.parts) == 2 and file.name == "__init__.py"]
    return not all(os.path.exists(file.locate()) for file in modules)


def decoders() -> Iterator[Line]:
    """Say which formats can be decoded: a small image of each is written and read."""
    from PIL import Image, features

    from xfeat.featurize.images.decode import DEFAULT_SPEC, FORMATS, decode

    works, missing = [], []
    for name in FORMATS:
        content = io.BytesIO()
        try:
            Image.new("L", (8, 8), 128).save(content, name)
            decode(content.getvalue(), DEFAULT_SPEC)
        except (OSError, KeyError, ValueError):  # of ValueError: the project's ImageError
            missing.append(name)
        else:
            works.append(name)
    turbo = " (libjpeg-turbo)" if features.check("libjpeg_turbo") else ""
    yield Line("images", OK, ", ".join(works).replace("JPEG,", f"JPEG{turbo},", 1))
    if missing:
        yield Line("images", FAIL, f"Pillow was built without {', '.join(missing)}", "pip install --upgrade pillow")
    for name, modules, extra in _MORE_DECODERS:
        try:
            for module in modules:
                importlib.import_module(module)
        except ModuleNotFoundError:
            yield Line(name, NOTE, "cannot be read", f"pip install '{_PROJECT}[{extra}]'")
        except ImportError as error:
            yield Line(name, FAIL, str(error), f"pip install --force-reinstall {' '.join(modules)}")
        else:
            yield Line(name, OK, " and ".join(f"{module} {_version(module) or ''}".strip() for module in modules))


_MORE_DECODERS = (("DICOM", ("pydicom", "imagecodecs"), "dicom"), ("HEIC", ("pi_heif",), "heic"))


def weights(*, connect: bool) -> Iterator[Line]:
    """Say where the weights of the preferred backbones are; without torch nothing needs them.

    Args:
        connect: also try to reach the address that they would be downloaded from.
    """
    for name in (PREFERRED, FALLBACK) if find_spec("torch") is not None else ():
        path, address = cached_weights(name), weights_address(name)
        if path is not None:
            yield Line(name, OK, str(path))
        elif address is None:
            yield Line(name, NOTE, "not installed", f"pip install '{_PROJECT}[train]'")
        elif not connect:
            yield Line(name, NOTE, f"not here; the first use downloads {address}", "xfeat doctor --connect tries it")
        else:
            try:
                check_connection(address)
                yield Line(name, OK, f"not here; {address} answers, and the first use downloads it")
            except WeightsError as error:
                fix = f"download it elsewhere and give --weights FILE, or take --backbone {FALLBACK}"
                yield Line(name, NOTE, f"not here, and {error.what}", fix)

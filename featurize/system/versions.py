"""Versions of the libraries that results depend on."""

from __future__ import annotations

import importlib.metadata
import sys


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that results depend on."""
    versions = {"python": sys.version.split()[0]}
    for name in ("xfeat-onnx", "torch", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow", "h5py", "scikit-learn"):
        try:
            versions[name.removesuffix("-onnx")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

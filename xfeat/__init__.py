"""Image classifiers from a frozen network: featurize, head, export, serve. The public names: docs/python.md."""

import os
import sys

from xfeat.featurize.system.privacy import turn_off_telemetry

turn_off_telemetry()  # here, since every command, worker and import of this package begins with this file

# NVIDIA's libraries read it when they load. Where no other plan builds, onnxruntime's convolutions take TF32 although
# they are told not to (onnxruntime/core/providers/cuda/nn/conv.cc): features would have 10 bits, without a word.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

# Ctrl-C while a program is still importing its modules: no traceback. Its commands have handlers of their own.
if os.path.basename("".join(sys.argv[:1])) in ("xfeat", "xhead", "xexport", "xserve"):
    import signal  # not above: with python -m xfeat, it could still be a file of the current folder

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

# The public names, by the module that has them. __init__.pyi has their types, for editors and type checkers.
_MODULES = {
    "xfeat.featurize.encoders.plugins": ("EncoderPlugin",),
    "xfeat.featurize.errors": ("XfeatError",),
    "xfeat.featurize.extractor": ("FeatureExtractor",),
    "xfeat.featurize.public": ("audit", "doctor", "dump", "extract", "load", "open_cache", "split"),
    "xfeat.export.public": (
        *("bench", "describe", "explain", "export_onnx", "export_run", "quantize", "sign", "verify", "write_card"),
        *("write_snippet", "write_triton"),
    ),
    "xfeat.head.classifier": ("HeadClassifier",),
    "xfeat.head.public": ("cross_validate", "sweep", "train"),
    "xfeat.head.public_runs": ("compare", "evaluate", "open_run", "write_figures"),
    "xfeat.serve.inference.predictor": ("Predictor",),
    "xfeat.serve.public": ("evaluate_model", "start_server", "write_page"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import the module of a public name when it is used: ``import xfeat`` alone imports none of them."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'xfeat' has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(_MODULE_OF[name])
    except ModuleNotFoundError as error:
        from xfeat.featurize.errors import MissingExtraError

        if (error.name or "xfeat").partition(".")[0] == "xfeat":
            raise
        raise MissingExtraError(
            f"xfeat.{name} needs {error.name}, which is not installed", fix="pip install 'xfeat-onnx[all]'"
        ) from error
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

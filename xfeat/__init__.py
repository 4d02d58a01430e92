"""Image classifiers from a frozen EfficientNet: featurize, head, export, serve."""

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

"""Switches off what libraries report to their makers. ``import xfeat`` does it, before any of them is imported.

Programs that are started later, workers and machines of a Ray cluster among them, inherit the variables.
"""

from __future__ import annotations

import os
import sys

# Every library that xfeat or one of its extras installs, that reports usage unless it is told not to, and the value that
# it understands. A library that reports only what somebody asked for is not here. docs/trust.md says what each would send.
# Sources, as installed: Privacy.md of onnxruntime 1.31 (since 1.29, on Linux, macOS and Windows), mlflow/telemetry/utils.py
# of 3.17, ray/_common/usage/usage_lib.py of 2.60.
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def turn_off_telemetry() -> None:
    """Set the variables of :data:`TELEMETRY_OFF` that the user has not set.

    onnxruntime reads its variable when it is imported. If it is there already, it has written its device id, and reports
    that it was started; what it would report of models is still switched off.
    """
    too_late = "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    if too_late:
        sys.modules["onnxruntime"].disable_telemetry_events()

"""Switches off what libraries report to their makers. ``import xfeat`` does it, before any of them is imported.

Programs that are started later, workers and machines of a Ray cluster among them, inherit the variables, and switch off
the modules when they import xfeat. docs/trust.md says what each library would report.
"""

from __future__ import annotations

import os
import sys

# Every library among the dependencies of xfeat and its extras that reports unless it is told not to, and the value that
# it understands. Sources, as installed: Privacy.md of onnxruntime 1.31 (it reports since 1.29, on all systems),
# mlflow/telemetry/utils.py of MLflow 3.17, ray/_common/usage/usage_lib.py of Ray 2.60, huggingface_hub/constants.py of
# huggingface_hub 2.4.
TELEMETRY_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# OpenVINO reports each import, and no variable of its own prevents that. It does without this package if it is missing.
# Source: openvino/tools/ovc/telemetry_utils.py of OpenVINO 2026.4.
_REPORTING_MODULES = ("openvino_telemetry",)


def turn_off_telemetry() -> None:
    """Switch off the reports of all libraries that are not imported yet; variables that the user has set stay.

    onnxruntime reads its variable when it is imported. If it was imported before, it has written a device id and will
    report that it was started; what it would report about models is still switched off.
    """
    too_late = "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ
    for variable, value in TELEMETRY_OFF.items():
        os.environ.setdefault(variable, value)
    for module in _REPORTING_MODULES:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]  # importing it raises ModuleNotFoundError
    if too_late:
        sys.modules["onnxruntime"].disable_telemetry_events()

"""float32 on a GPU is float32."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xfeat.featurize.system.cuda import cuda_provider

VARIABLE = "NVIDIA_TF32_OVERRIDE"
IN_A_CHILD = "subprocess.check_output([sys.executable, '-c', 'import os; print(os.environ[V])'.replace('V', repr(V))])"


@pytest.mark.parametrize(("module", "before"), [("xfeat", None), ("xfeat.featurize.cli", "1"), ("xfeat.serve.cli", "")])
def test_no_library_of_nvidia_may_choose_tf32(module: str, before: str | None) -> None:
    """In this process, whatever was set before, and in those that it starts."""
    code = f"import os, subprocess, sys; import {module}; V = {VARIABLE!r}; print(os.environ[V], {IN_A_CHILD})"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {} if before is None else {VARIABLE: before}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0 b'0\\n'\n"


def test_onnxruntime_is_asked_for_full_float32_on_the_gpu_named() -> None:
    name, options = cuda_provider(3)
    assert name == "CUDAExecutionProvider"
    assert (options["device_id"], options["use_tf32"]) == ("3", "0")

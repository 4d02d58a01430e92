"""All checks, by topic."""

from __future__ import annotations

from functools import partial

from xfeat.featurize.doctor import installed, machine
from xfeat.featurize.doctor.gpus import gpu_checks
from xfeat.featurize.doctor.report import Line, run


def examine(*, connect: bool = False) -> dict[str, list[Line]]:
    """Look at everything, and return topic to lines.

    Args:
        connect: also try to reach the server that weights are downloaded from.
    """
    gpus, choices = gpu_checks()  # their processes work while the other checks run
    others = {
        "installed": run({"versions": installed.versions, "extras": installed.extras}),
        "reading": run({"decoders": installed.decoders, "weights": partial(installed.weights, connect=connect)}),
        "machine": run(
            {
                "cores": machine.cores_and_memory,
                "folders": machine.folders,
                "file system": machine.file_system,
            }
        ),
    }
    return {**others, "GPU": run(gpus), "auto chooses": run(choices)}

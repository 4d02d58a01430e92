"""The backbone weights of a run."""

from __future__ import annotations

from pathlib import Path

from xfeat.featurize.backbones.weights import Weights, find_weights, sha256_of
from xfeat.featurize.errors import MismatchError, WeightsError
from xfeat.head.runs.reader import Run


def weights_of(run: Run, file: Path | None = None) -> Weights:
    """Find the backbone weights of a run: in ``file``, else where they were, else where ``xfeat`` finds them.

    Raises:
        WeightsError: if they cannot be found or downloaded, or ``file`` is missing.
        MismatchError: if the weights found are not those of the run.
    """
    name, wanted = run.feature_spec.backbone, run.feature_spec.weights_sha256
    used = Path(run.cache["weights_path"])
    if file is None and used.is_file() and sha256_of(used) == wanted:
        return Weights(name, used, wanted)
    try:
        found = find_weights(name, file=file)
    except WeightsError as error:
        if file is not None:
            raise
        raise WeightsError(
            f"the weights of {name} used by the run are missing", path=used, found=error.what, fix=error.fix
        ) from error
    if found.sha256 != wanted:
        raise MismatchError(
            "these are not the backbone weights of the run",
            path=found.path,
            expected=f"SHA-256 {wanted[:16]}…",
            found=f"{found.sha256[:16]}…",
            fix="give the right file with --weights FILE",
        )
    return found

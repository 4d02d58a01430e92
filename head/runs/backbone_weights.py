"""The backbone's weights that a run was made with."""

from __future__ import annotations

from pathlib import Path

from xfeat.featurize.backbones.weights import Weights, find_weights, sha256_of
from xfeat.featurize.errors import MismatchError, WeightsError
from xfeat.head.runs.reader import Run


def weights_of(run: Run, file: Path | None = None) -> Weights:
    """Find the weights of the backbone of a run: in ``file``, where they were, or where ``xfeat`` finds them.

    Raises:
        WeightsError: if they cannot be had, or there is no such ``file``.
        MismatchError: if what is found are other weights.
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
            f"the weights of {name} that the run was made with are gone", path=used, found=error.what, fix=error.fix
        ) from error
    if found.sha256 != wanted:
        raise MismatchError(
            "other backbone weights than those of the run",
            path=found.path,
            expected=f"SHA-256 {wanted[:16]}…",
            found=f"{found.sha256[:16]}…",
            fix="name the right file with --weights FILE",
        )
    return found

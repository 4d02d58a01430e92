"""Does a model's output ``decision`` follow from its probabilities, also at a tie with the threshold?"""

from __future__ import annotations

import numpy as np

from xfeat.export.model.batches import BATCH_SIZE
from xfeat.export.model.file import INTACT_COPY, ModelFile
from xfeat.export.model.interface import Outputs
from xfeat.featurize.errors import ParityError
from xfeat.featurize.images.preprocess import Pixels


def require_decisions(model: ModelFile, outputs: Outputs, threshold: float | None = None) -> None:
    """Compare the decisions of a batch with :meth:`ModelMetadata.decide`; models of version 0.1 have none.

    Args:
        model: that was run.
        outputs: of the batch.
        threshold: that it was run with; ``None`` for its own.

    Raises:
        ParityError: if one differs.
    """
    if outputs.decision is None:
        return
    names = (*model.metadata.class_names, "no decision")
    for row, found in zip(outputs.probabilities, outputs.decision.tolist(), strict=True):
        expected = model.metadata.decide(row.tolist(), threshold) if np.isfinite(row).all() else names[-1]
        if not -1 <= found < len(names) - 1 or names[found] != expected:
            raise ParityError(
                "the output decision does not follow from the probabilities",
                path=model.path,
                expected=expected,
                found=names[found] if -1 <= found < len(names) - 1 else str(found),
                fix=INTACT_COPY,
            )


def check_decisions(model: ModelFile, pixels: Pixels) -> None:
    """Check that a model's threshold can be moved: to probabilities that it returns, and just above them.

    Args:
        model: the exported model.
        pixels: uint8 (n, S, S, 3); one batch is run.

    Raises:
        ParityError: if a decision differs.
    """
    if not model.optional_inputs or model.metadata.positive is None:
        return
    batch = pixels[:BATCH_SIZE]
    positive = model.metadata.class_names.index(model.metadata.positive)
    at = np.sort(model.run(batch).probabilities[:, positive])[len(batch) // 2]
    for threshold in (at, np.nextafter(at, np.float32(2))):
        require_decisions(model, model.run(batch, threshold=threshold), float(threshold))

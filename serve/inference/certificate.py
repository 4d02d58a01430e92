"""Whether a model file is the one that its certificate was written for."""

from __future__ import annotations

import logging

from xfeat.export.model.file import ModelFile
from xfeat.export.parity.certificate import matching_certificate
from xfeat.featurize.errors import MismatchError, ModelError

logger = logging.getLogger(__name__)


def compare_with_certificate(model: ModelFile, *, allow_unverified: bool) -> str:
    """Compare digest and metadata of a model with the certificate beside it.

    Returns:
        ``matches``, ``none`` if there is no certificate, or ``differs`` if that is allowed.

    Raises:
        MismatchError: if the certificate does not belong to the file.
        ModelError: if the certificate cannot be read.
    """
    try:
        return "none" if matching_certificate(model) is None else "matches"
    except (MismatchError, ModelError) as error:
        if not allow_unverified:
            fix = f"{error.fix}, or accept the file with --allow-unverified"
            raise type(error)(
                error.what, path=error.file, expected=error.expected, found=error.found, fix=fix
            ) from error
        logger.warning("%s: %s; it is used because of --allow-unverified", model.path, error.what)
        return "differs"

"""Whether a model file is the one that its certificate was written for, and who signed that."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from xfeat.export.model.file import ModelFile
from xfeat.export.parity.certificate import matching_certificate, require_certificate
from xfeat.featurize.errors import MismatchError, ModelError, SpecError

if TYPE_CHECKING:
    from minisign import PublicKey

logger = logging.getLogger(__name__)


def compare_with_certificate(model: ModelFile, *, allow_unverified: bool, public_key: PublicKey | None) -> str:
    """Compare digest and metadata of a model with the certificate beside it.

    Args:
        model: the open file.
        allow_unverified: warn, instead of raising, if it does not match.
        public_key: whose signature is required.

    Returns:
        ``signed`` (if that is required), ``matches``, ``none`` if there is no certificate, or ``differs`` if that is
        allowed.

    Raises:
        MismatchError: if the certificate does not belong to the file, or the signature is not valid.
        ModelError: if the certificate cannot be read, or has no signature.
        SpecError: if a signature is required, and models without are allowed.
    """
    if allow_unverified and public_key is not None:
        raise SpecError("--allow-unverified cannot be combined with --require-signature", fix="leave out one of them")
    if public_key is not None:
        require_certificate(model, public_key=public_key)
        return "signed"
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

"""Opens a model file, and compares it with the certificate beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.export.model.file import ModelFile
from xfeat.export.parity.certificate import certificate_path, matching_certificate, read_certificate, require_match
from xfeat.export.parity.ood_kinds import OodKind
from xfeat.featurize.errors import MismatchError, ModelError, SpecError

if TYPE_CHECKING:
    from minisign import PublicKey

logger = logging.getLogger(__name__)


def open_certified(
    path: Path, opener: Callable[..., ModelFile], *, allow_unverified: bool, public_key: PublicKey | None
) -> tuple[ModelFile, str, dict[str, OodKind]]:
    """Open a model file whose digest and metadata are those of its certificate.

    Args:
        path: of the file.
        opener: :func:`xfeat.export.model.file.open_model` with all arguments but ``path`` and ``digests``.
        allow_unverified: warn, instead of raising, if it does not match.
        public_key: whose signature is required. The file reaches onnxruntime only if it is signed.

    Returns:
        The model, and ``signed`` (if that is required), ``matches``, ``none`` if there is no certificate, or
        ``differs`` if that is allowed. Then what the certificate says of the out-of-distribution score.

    Raises:
        MismatchError: if the certificate does not belong to the file, or the signature is not valid.
        ModelError: if the model or its certificate cannot be read, or there is no signature.
        SpecError: if a signature is required, and models without are allowed.
    """
    if public_key is not None:
        if allow_unverified:
            raise SpecError("--allow-unverified cannot be combined with --require-signature", fix="leave out one")
        certificate = read_certificate(certificate_path(path), public_key)
        model = opener(path, digests=certificate.models.values())
        require_match(model, certificate)
        return model, "signed", certificate.ood_kinds
    model = opener(path)
    try:
        found = matching_certificate(model)
        return (model, "none", {}) if found is None else (model, "matches", found.ood_kinds)
    except (MismatchError, ModelError) as error:
        if not allow_unverified:
            fix = f"{error.fix}, or accept the file with --allow-unverified"
            raise type(error)(
                error.what, path=error.file, expected=error.expected, found=error.found, fix=fix
            ) from error
        logger.warning("%s: %s; it is used because of --allow-unverified", model.path, error.what)
        return model, "differs", {}

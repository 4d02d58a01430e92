"""Signatures of certificates in minisign's format: a certificate has the digests of its models, and so covers them.

Source: https://jedisct1.github.io/minisign/, "Signature format".
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import MismatchError, MissingExtraError, ModelError, SpecError
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.regular_files import open_regular

if TYPE_CHECKING:
    from minisign import PublicKey

# A signature has two comments, the longer one of at most 8 KiB.
_MAX_BYTES = 16 * 1024
_MAKE_KEYS = "make a pair of keys with minisign -G"
_MAKE_PLAIN_KEYS = f"{_MAKE_KEYS} -W"


def signature_path(certificate: Path) -> Path:
    """Return the path of a certificate's signature, where minisign writes it: ``model.certificate.json.minisig``."""
    return certificate.with_name(f"{certificate.name}.minisig")


def as_public_key(key: str | os.PathLike[str] | PublicKey | None) -> PublicKey | None:
    """Return a public key, read from its file if it is a path; errors as for :func:`read_public_key`."""
    return read_public_key(Path(key)) if isinstance(key, str | os.PathLike) else key


def read_public_key(path: Path) -> PublicKey:
    """Read a public key, such as ``minisign.pub``.

    Raises:
        SpecError: if it cannot be read, or is another file.
        MissingExtraError: if py-minisign is not installed.
    """
    minisign, fix = _minisign(), f"name a public key such as minisign.pub, or {_MAKE_KEYS}"
    try:
        content = _read(path)
        return minisign.PublicKey.from_bytes(content)
    except OSError as error:
        raise SpecError("public key cannot be read", path=path, found=error.strerror, fix=fix) from error
    except minisign.Error as error:
        comment = content.partition(b"\n")[0]
        found = "a secret key" if b"secret key" in comment and b"signature" not in comment else str(error)
        raise SpecError("not a public key of minisign", path=path, found=found, fix=fix) from error


def check_signature(certificate: Path, content: bytes, key: PublicKey) -> None:
    """Require that the signature beside a certificate is by a key, and of this content.

    Args:
        certificate: the file.
        content: what was read from it.
        key: whose signature is required.

    Raises:
        ModelError: if there is no signature, or it cannot be read.
        MismatchError: if it is of another content, by another key, or its trusted comment has changed.
        MissingExtraError: if py-minisign is not installed.
    """
    minisign, path = _minisign(), signature_path(certificate)
    fix = f"sign the certificate with the key that is trusted: minisign -Sm {certificate}"
    try:
        signature = minisign.Signature.from_bytes(_read(path))
        key.verify(content, signature)
    except FileNotFoundError as error:
        raise ModelError("the certificate has no signature", path=path, fix=fix) from error
    except OSError as error:
        raise ModelError("signature cannot be read", path=path, found=error.strerror, fix=fix) from error
    except minisign.VerifyError as error:
        wanted, by = _key_id(bytes(key)), _key_id(bytes(signature))
        raise MismatchError(
            "the signature is not valid",
            path=path,
            expected=f"a signature of {certificate.name} by the key {wanted}",
            found=f"one by the key {by}" if by != wanted else "one of another content, or with another trusted comment",
            fix=fix,
        ) from error
    except minisign.Error as error:
        raise ModelError("not a signature of minisign", path=path, found=str(error), fix=fix) from error


def sign_certificate(certificate: Path, content: bytes, key: Path) -> Path:
    """Sign a certificate with a secret key that has no password; return the path of the signature.

    Args:
        certificate: the file.
        content: what was read from it.
        key: the file of the secret key.

    Raises:
        SpecError: if the key cannot be read, is another file, or has a password.
        OutputError: if the signature cannot be written.
        MissingExtraError: if py-minisign is not installed.
    """
    minisign = _minisign()
    try:
        secret = minisign.SecretKey.from_bytes(_read(key))
    except OSError as error:
        raise SpecError("secret key cannot be read", path=key, found=error.strerror, fix=_MAKE_PLAIN_KEYS) from error
    except minisign.Error as error:
        raise SpecError("not a secret key of minisign", path=key, found=str(error), fix=_MAKE_PLAIN_KEYS) from error
    with secret:
        if secret.is_encrypted():
            fix = f"minisign -S -s {key} -m {certificate} asks for it"
            raise SpecError("the secret key has a password", path=key, fix=fix)
        signature = secret.sign(content)
    path = signature_path(certificate)
    with replacing(path, elsewhere="copy the model and its certificate to another folder") as partial:
        partial.write_bytes(bytes(signature) + b"\n")
    return path


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_MAX_BYTES)  # a longer file has too many lines, or a line that is too long


def _key_id(encoded: bytes) -> str:
    """Return the id of the key in a public key or a signature, as minisign prints it."""
    return base64.b64decode(encoded.splitlines()[1])[2:10][::-1].hex().upper()


def _minisign() -> Any:
    try:
        import minisign
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "signatures need py-minisign, which is not installed", fix="pip install 'xfeat-onnx[sign]'"
        ) from error
    return minisign

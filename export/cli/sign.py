"""``xexport sign``."""

from __future__ import annotations

from pathlib import Path

import click

from xfeat.export.cli.options import model_argument
from xfeat.featurize.console import PATH, Printed, json_option


@click.command()
@model_argument
@click.option("--key", type=PATH, required=True, help="Secret key without a password, from minisign -G -W.")
@json_option
def sign(model: Path, key: Path) -> Printed:
    """Sign the certificate of MODEL, in minisign's format, after comparing the two.

    The certificate has the digests of the model and its core model, so its signature covers them. minisign -Sm
    model.certificate.json does the same, also with a password. xserve --require-signature checks it.
    """
    from xfeat.export.model.file import open_model
    from xfeat.export.parity.certificate import certificate_path, read_certificate, require_match
    from xfeat.export.parity.signature import sign_certificate

    certificate = read_certificate(certificate_path(model))
    require_match(open_model(model), certificate)
    signature = sign_certificate(certificate.path, certificate.content, key)
    return {"model": str(model), "signature": str(signature)}, [f"{signature} written"]

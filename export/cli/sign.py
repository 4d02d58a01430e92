"""``xexport sign``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
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
    signature = xfeat.sign(model, key)
    return {"model": str(model), "signature": str(signature)}, [f"{signature} written"]

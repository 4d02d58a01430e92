"""Warnings of the image decoders; commands and decoding processes switch them off when they start."""

from __future__ import annotations

import logging
import warnings


def ignore_decoder_warnings() -> None:
    """Ignore what Pillow and pydicom warn about unusual or damaged files; a data set can have thousands of them.

    The filters apply to the whole process and cannot be changed safely while threads decode. So they are set once, by
    the code that owns the process, and never when a module is imported.
    """
    for package in ("PIL", "pydicom"):
        warnings.filterwarnings("ignore", module=rf"{package}\.")
        logging.getLogger(package).addHandler(logging.NullHandler())

"""The single file, opened in Chromium and Firefox without a network: DICOM and pictures as ``Predictor`` reads them.

The files are those of tests/inputs/dicom, so that what is added there is tried in the browsers, too.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

from tests.inputs.dicom.files import compressed, dataset, dicom_file, put_streams, to_bytes
from tests.inputs.dicom.test_dicom import FRAMES, FULL, GREY, PADDED, PICTURE, TWELVE
from tests.inputs.dicom.test_dicom_colour import COLOUR, IN_COLOUR
from tests.inputs.dicom.test_dicom_refused import REFUSED, rle_bomb
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.static_site.single_file import write_single

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

READY = "document.querySelector('#loading')?.innerText.includes('No connection is needed')"


def as_jpeg(values, photometric, rows=PICTURE.shape[0], **options):
    """Return a DICOM file of a JPEG as Pillow writes it: with JFIF, and with fewer colours than pixels."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=90, **options)
    picture = dataset(values, photometric)
    put_streams(picture, "baseline", [file.getvalue()])
    return to_bytes(picture, picture.file_meta.TransferSyntaxUID)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


OURS = {
    "JPEG in 4:2:0": lambda: as_jpeg(COLOUR, "YBR_FULL_422", subsampling=2),
    "JPEG in 4:2:2, whose tag says RGB": lambda: as_jpeg(COLOUR, "RGB", subsampling=1),
    "JPEG with colours as they are": lambda: as_jpeg(COLOUR, "RGB", keep_rgb=True),
    "JPEG with an EXIF turn": lambda: as_jpeg(COLOUR, "YBR_FULL", exif=turned()),
    "progressive JPEG": lambda: as_jpeg(PICTURE, "MONOCHROME2", progressive=True),
    "JPEG, inverted, with a window": lambda: compressed(
        "baseline", [PICTURE], "MONOCHROME1", WindowCenter=90, WindowWidth=99
    ),
    "sigmoid": lambda: dicom_file(TWELVE, VOILUTFunction="SIGMOID", WindowCenter=1800, WindowWidth=900),
    "narrow window": lambda: dicom_file(
        TWELVE, WindowCenter=2000, WindowWidth=300, RescaleSlope="1.7", RescaleIntercept="-90"
    ),
    **{
        f"{kind} frames": lambda kind=kind: compressed(kind, FRAMES, WindowCenter=128, WindowWidth=256)
        for kind in ("rle", "baseline")
    },
    "plain frames": lambda: dicom_file(np.stack(FRAMES), NumberOfFrames=4),
}
BOMB = {"RLE of one place": rle_bomb}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the folder of the files, and what each of them is."""
    folder = tmp_path_factory.mktemp("dicom")
    kinds = {**GREY, **{way: write for way, (write, _) in IN_COLOUR.items()}, **OURS, **BOMB}
    kinds |= {
        f"padding {way}": lambda values=values, tags=tags: dicom_file(values, **tags)
        for way, (values, tags) in PADDED.items()
    }
    kinds |= {f"refused: {way}": write for way, (write, _) in REFUSED.items()}
    names = {f"{number:03}.dcm": way for number, way in enumerate(kinds)}
    for name, way in names.items():
        (folder / name).write_bytes(kinds[way]())
    return folder, names


async def saved(browser, paths):
    """Return the rows that the page saves for these files, by file name."""
    await browser.until(READY)
    await browser.choose(*paths)
    while not (await browser.text("#status")).startswith(f"{len(paths)} image"):
        await asyncio.sleep(0.2)
    return {row["File"]: row for row in csv.DictReader(io.StringIO((await browser.save()).lstrip("\ufeff")))}


def test_it(write_pixel_model, runtime, tmp_path, browse_offline, files):
    model = write_pixel_model(positive="covid", threshold=0.4, preprocess={"frames": "middle"})
    write_single(model, tmp_path / "page.html", runtime)
    folder, names = files
    seen = {}

    async def visit(browser):
        seen.update(await saved(browser, [folder / name for name in names]))
        print(browser.complaints, {url[:10] for url in browser.requests})

    browse_offline(tmp_path / "page.html", visit)
    predictor = Predictor.open(model, device="cpu")
    for name, way in names.items():
        row = seen[name]
        try:
            [p] = predictor.predict_bytes([(folder / name).read_bytes()])
        except Exception as e:
            p = e
        if hasattr(p, "probabilities"):
            if row["Problem"]:
                print("ONLY HERE", way, "|", row["Problem"])
            else:
                d = max(abs(float(row[c]) - s) for c, s in p.probabilities.items())
                if d > 2e-5:
                    print("DIFF", way, d)
        else:
            if not row["Problem"]:
                print("NOT REFUSED", way, p)
            else:
                print("both", way, "|", row["Problem"], "|", getattr(p, "reason", p))

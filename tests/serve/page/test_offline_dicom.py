"""The single file, opened in Chromium and Firefox without a network: DICOM and pictures as ``Predictor`` reads them.

The files are those of tests/inputs/dicom, so that what is added there is tried in the browsers, too.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("imagecodecs", reason="needs the extra dicom")

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.inputs.dicom.files import compressed, dataset, dicom_file, put_streams, to_bytes
from tests.inputs.dicom.test_dicom import FRAMES, GREY, PADDED, PICTURE, TWELVE
from tests.inputs.dicom.test_dicom_colour import COLOUR, IN_COLOUR
from tests.inputs.dicom.test_dicom_refused import REFUSED, rle_bomb
from tests.serve.page.firefox import FIREFOX, firefox
from xfeat.serve.cli import main
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.static_site.single_file import write_single

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

READY = "document.querySelector('#loading')?.innerText.includes('No connection is needed')"


TRY_TO_SEND = """Promise.all([
  new Promise((done) => document.addEventListener('securitypolicyviolation', (said) => done(said.effectiveDirective))),
  fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused'),
])"""


def as_jpeg(values, photometric, **options):
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


def with_icon(*, is_compressed):
    """Return a file whose sequences have no lengths; in one of them is a small picture, before the large one."""
    icon = dataset(PICTURE[:8, :8])
    if is_compressed:
        put_streams(icon, "baseline", [b"\xff\xd8" + bytes(30) + b"\xff\xd9"])
    item = Dataset()
    item.update(icon)
    item.is_undefined_length_sequence_item = True
    picture = dataset(TWELVE, IconImageSequence=Sequence([item]), ReferencedStudySequence=Sequence([Dataset()]))
    picture["IconImageSequence"].is_undefined_length = True
    return to_bytes(picture)


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
    "12 bits in extended JPEG": lambda: compressed("extended", [TWELVE]),
    "an icon with pixels of its own": lambda: with_icon(is_compressed=False),
    "an icon with compressed pixels": lambda: with_icon(is_compressed=True),
    "bytes after the pixels": lambda: dicom_file(TWELVE) + b"\xfc\xff\xfc\xff\4\0\0\0abcd",
    "plain frames": lambda: dicom_file(np.stack(FRAMES), NumberOfFrames=4),
}
# What a server reads and a browser does not: words in the names above, and what the page says.
REFUSED_HERE = {
    "big endian": "in Explicit VR Big Endian cannot be read in a browser. Save it uncompressed",
    "deflated": "in Deflated Explicit VR Little Endian cannot be read",
    "jpeg-ls|JPEG-LS|pieces$|extended table": "in JPEG-LS Lossless cannot be read",
    "lossless|Lossless|pieces, ": "in JPEG Lossless cannot be read",
    "jpeg2000|JPEG 2000": "in JPEG 2000 Lossless cannot be read",
    "htj2k|HTJ2K": "in High-Throughput JPEG 2000 cannot be read",
    "extended JPEG": "in JPEG Extended with 12 bits per channel cannot be read",
    "32 bits": "with 32 bits stored in 32 cannot be read",
    "float|double|not a number|infinite": "with floating-point values cannot be read in a browser. Use a server",
    "segments": "with a segmented palette cannot be read",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the folder of the files, and what each of them is."""
    folder = tmp_path_factory.mktemp("dicom")
    kinds = {
        **GREY,
        **{way: write for way, (write, _) in IN_COLOUR.items()},
        **OURS,
        "refused: RLE of one place": rle_bomb,
    }
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
    return {row["path"]: row for row in csv.DictReader(io.StringIO((await browser.save()).lstrip("\ufeff")))}


def test_dicom_is_predicted_as_the_server_does_or_refused_by_its_name(
    write_pixel_model, runtime, tmp_path, browse_offline, files
):
    """Reference: :class:`Predictor`. The outputs of the model depend on every pixel, so that a wrong one shows."""
    model = write_pixel_model(positive="covid", threshold=0.4, preprocess={"frames": "middle"})
    write_single(model, tmp_path / "page.html", runtime)
    folder, names = files
    seen = {}

    async def visit(browser):
        seen.update(await saved(browser, [folder / name for name in names]))
        assert browser.complaints == []

    browse_offline(tmp_path / "page.html", visit)
    read = {}
    for name, way in names.items():
        words = [said for pattern, said in REFUSED_HERE.items() if re.search(pattern, way)]
        problem = seen[name]["error"]
        if way.startswith("refused: "):
            assert re.match("DICOM|not an image|[0-9]+×", problem), (way, problem)
            assert not re.search(r"undefined|null|NaN|Error|not a function|Invalid", problem), (way, problem)
        elif words:
            assert words[0] in problem, way
        else:
            assert problem == "", way
            read[name] = way
    assert len(read) > 100
    predictor = Predictor.open(model, device="cpu")
    for prediction in predictor.predict_paths([folder / name for name in read]):
        row = seen[Path(prediction.path).name]
        found = [float(row[f"p_{label}"]) for label in prediction.probabilities]
        expected = list(prediction.probabilities.values())
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=read[row["path"]])
        assert float(row["ood"]) == pytest.approx(prediction.ood, abs=2e-5)
        assert row["label"] == prediction.label


def test_the_file_opens_without_a_network_shows_dicom_and_connects_to_nothing(
    write_pixel_model, runtime, tmp_path, browse_offline
):
    """Reference: the command ``xserve predict --json``."""
    model = write_pixel_model(positive="covid", threshold=0.4)
    write_single(model, tmp_path / "page.html", runtime)
    values = np.tile(TWELVE, (50, 50))
    (tmp_path / "chest.dcm").write_bytes(dicom_file(values, "MONOCHROME1", WindowCenter=2000, WindowWidth=3000))
    Image.fromarray(COLOUR).save(tmp_path / "drawing.png")
    paths = [tmp_path / "chest.dcm", tmp_path / "drawing.png"]
    command = ["predict", *map(str, paths), "--model", str(model), "--json"]
    answers = json.loads(CliRunner().invoke(main, command).stdout)["predictions"]

    async def visit(browser):
        rows = await saved(browser, paths)
        for answer in answers:
            row = rows[Path(answer["path"]).name]
            found = {label: float(row[f"p_{label}"]) for label in answer["probabilities"]}
            assert found == pytest.approx(answer["probabilities"], abs=1e-4)
            assert row["label"] == answer["label"]
        shown = "[...document.querySelectorAll('.card .image')].map((each) => each.naturalWidth)"
        await browser.until(f"{shown}.join() === '1024,32'")
        assert {address.partition(":")[0] for address in browser.requests} <= {"file", "blob", "data"}
        assert browser.complaints == []
        assert await browser.value(TRY_TO_SEND) == ["connect-src", "refused"]

    browse_offline(tmp_path / "page.html", visit)


def test_a_browser_that_changes_pixels_gives_a_reason_in_place_of_a_wrong_prediction(
    write_pixel_model, runtime, tmp_path
):
    """DICOM that is not compressed needs no canvas. The browser also refuses to store anything."""
    if FIREFOX is None:
        pytest.skip("needs Firefox")
    write_single(write_pixel_model(), tmp_path / "page.html", runtime)
    (tmp_path / "plain.dcm").write_bytes(dicom_file(TWELVE))
    (tmp_path / "jpeg.dcm").write_bytes(compressed("baseline", [PICTURE]))
    Image.fromarray(COLOUR).save(tmp_path / "drawing.png")
    rows = {}

    async def visit(browser):
        rows.update(await saved(browser, [tmp_path / name for name in ("plain.dcm", "jpeg.dcm", "drawing.png")]))

    strict = {"privacy.resistFingerprinting": True, "network.cookie.cookieBehavior": 2}
    with firefox(tmp_path, strict) as drive:
        drive((tmp_path / "page.html").as_uri(), visit)
    assert rows["plain.dcm"]["error"] == ""
    for name in ("jpeg.dcm", "drawing.png"):
        assert "changes the pixels that a page reads" in rows[name]["error"]


def test_a_file_that_is_cut_short_says_so(write_pixel_model, runtime, tmp_path, browse):
    file = tmp_path / "page.html"
    write_single(write_pixel_model(), file, runtime)
    file.write_bytes(file.read_bytes()[:-100_000])

    async def visit(browser):
        await browser.until("document.querySelector('.failed') !== null")
        assert "damaged or cut short" in await browser.text(".failed")

    browse(file.as_uri(), visit)

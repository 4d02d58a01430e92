"""The page without a server, in a real browser: the same predictions as the server's, and no image is sent anywhere."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.serve.inference.heatmap_png import draw_heatmap
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.static_site.write import write_site

pytestmark = pytest.mark.slow

LOADED = "document.querySelector('#loading')?.innerText.includes('No connection is needed')"


def noise(size, mode="RGB", seed=0):
    """Return a picture in which no two neighbours are alike, so that a wrong pixel shows."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert(mode)


def draw_all(folder):
    """Write a file of each kind that the page reads, of shapes that Pillow resizes in either order, and return them."""
    folder.mkdir()
    wide, tall, small = noise((200, 90)), noise((60, 240), seed=1), noise((20, 24), seed=2)
    wide.save(folder / "wide.png")
    tall.save(folder / "tall.png")
    small.save(folder / "small.png")
    wide.resize((32, 32)).save(folder / "same.png")
    wide.convert("L").save(folder / "grey.png")
    wide.convert("P").save(folder / "palette.png")
    wide.convert("1").save(folder / "two.png")
    wide.convert("RGBA").save(folder / "opaque.png")
    wide.save(folder / "gamma.png", icc_profile=b"not a profile")
    wide.save(folder / "plain.bmp")
    wide.save(folder / "plain.webp", lossless=True)
    wide.save(folder / "half.jpg", quality=80)
    wide.convert("L").save(folder / "grey.jpg", quality=60)
    tall.save(folder / "late.jpg", progressive=True)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        wide.save(folder / f"turned{turn}.jpg", exif=exif, quality=95)
    return sorted(folder.iterdir())


def predictions_of_the_page(model, files, runtime, folder, browse, serve_folder):
    """Return the rows that the page saves for these files, by file name."""
    write_site(model, folder / "site", runtime)
    seen = {}

    async def visit(browser):
        await browser.until(LOADED)
        await browser.choose(*files)
        while not (await browser.text("#status")).startswith(f"{len(files)} image"):
            await asyncio.sleep(0.2)
        seen["csv"] = await browser.save()
        assert browser.complaints == []

    with serve_folder(folder) as address:
        browse(address + "site/", visit)  # below the root, as on GitHub Pages
    return {row["path"]: row for row in csv.DictReader(io.StringIO(seen["csv"].lstrip("\ufeff")))}


@pytest.mark.parametrize(
    "preprocess",
    [{}, {"crop": 0.12, "interpolation": "bicubic"}, {"resize": "crop", "crop": 0.0625}, {"crop": 0.49}],
    ids=str,
)
def test_the_browser_predicts_as_the_server_does(
    preprocess, write_pixel_model, runtime, tmp_path, browse, serve_folder
):
    """Reference: :class:`Predictor`, which the server uses, on the same files.

    Lossless files must agree but for the rounding of float32. JPEG and EXIF are decoded by the browser's own decoder;
    Chromium's was found to give the same pixels as Pillow's, and a grey level of difference is allowed here.
    """
    model = write_pixel_model(positive="covid", threshold=0.4, preprocess=preprocess)
    files = draw_all(tmp_path / "images")
    answers = predictions_of_the_page(model, files, runtime, tmp_path, browse, serve_folder)
    for file, prediction in zip(files, Predictor.open(model, device="cpu").predict_paths(files), strict=True):
        answer = answers[file.name]
        tolerance = 0.02 if file.suffix == ".jpg" else 2e-5
        found = [float(answer[f"p_{name}"]) for name in prediction.probabilities]
        np.testing.assert_allclose(found, list(prediction.probabilities.values()), atol=tolerance, err_msg=file.name)
        assert float(answer["ood"]) == pytest.approx(prediction.ood, abs=tolerance), file.name
        if file.suffix != ".jpg":
            assert answer["label"] == prediction.label


@pytest.mark.skipif("XFEAT_PAGE_MODEL" not in os.environ, reason="needs XFEAT_PAGE_MODEL and XFEAT_PAGE_IMAGES")
def test_a_model_and_images_of_ones_own_get_the_same_predictions(runtime, tmp_path, browse, serve_folder, capsys):
    """Reference: :class:`Predictor` on the files of the folder ``XFEAT_PAGE_IMAGES``; prints the largest difference."""
    model = Path(os.environ["XFEAT_PAGE_MODEL"])
    files = list_images([os.environ["XFEAT_PAGE_IMAGES"]])
    answers = predictions_of_the_page(model, files, runtime, tmp_path, browse, serve_folder)
    largest = {}
    for file, prediction in zip(files, Predictor.open(model, device="cpu").predict_paths(files), strict=True):
        answer = answers[file.name]
        assert answer["label"] == prediction.label, file.name
        difference = max(abs(float(answer[f"p_{name}"]) - share) for name, share in prediction.probabilities.items())
        largest[file.suffix] = max(difference, largest.get(file.suffix, 0.0))
    with capsys.disabled():
        print(f"\n{len(files)} files, largest difference of a probability: {largest}")  # noqa: T201
    assert max(largest.values()) < 0.02


def test_the_heatmap_is_the_one_that_the_server_draws(runtime, tmp_path, write_model, browse, serve_folder):
    """Reference: :func:`xfeat.serve.inference.heatmap_png.draw_heatmap`, laid over grey. Levels in between may round
    the other way."""
    rng = np.random.default_rng(0)
    levels = rng.random((7, 7)).astype(np.float32)
    levels[0, 0] = np.nan
    write_site(write_model(heatmap=True), tmp_path / "site", runtime)
    numbers = ", ".join("NaN" if np.isnan(level) else repr(float(level)) for level in levels.ravel())
    script = f"""import('./heatmap.js')
      .then((module) => module.drawHeatmap({{ levels: new Float32Array([{numbers}]), height: 7, width: 7 }}, 64))
      .then((blob) => blob.arrayBuffer()).then((file) => btoa(String.fromCharCode(...new Uint8Array(file))))"""
    seen = {}

    async def visit(browser):
        seen["png"] = base64.b64decode(await browser.value(script))

    with serve_folder(tmp_path / "site") as address:
        browse(address, visit)
    grey = Image.new("RGBA", (64, 64), (128, 128, 128, 255))
    found, wanted = (
        np.asarray(Image.alpha_composite(grey, Image.open(io.BytesIO(file)).convert("RGBA"))).astype(int)
        for file in (seen["png"], draw_heatmap(levels, 64))
    )
    assert np.abs(found - wanted).max() <= 2


def test_without_a_connection_the_page_shows_predictions_heatmap_warning_table_and_reasons(
    write_model, runtime, tiny, tmp_path, browse, serve_folder
):
    audit = {"audited": True, "passed": True, "failures": [], "warnings": ["the border shows the label"]}
    model = write_model(ood=True, ood_threshold=0.5, heatmap=True, audit=audit)
    write_site(model, tmp_path / "site", runtime)
    (tmp_path / "dark.png").write_bytes(tiny.draw((0, 90, 0)))
    (tmp_path / "bright.png").write_bytes(tiny.draw((255, 200, 250)))
    (tmp_path / "text.png").write_bytes(b"text")

    async def visit(browser):
        await browser.until(LOADED)
        assert "93.8 % of 16 images" in await browser.text("#description")
        assert "leakage none found; shortcuts unknown; 1 warning" in await browser.text("#description")
        assert "1 warning about the training data" in await browser.text("#warnings")
        serving.close()
        await browser.choose(*(tmp_path / name for name in ("dark.png", "bright.png", "text.png")))
        await browser.until_status("3 images:")
        assert await browser.text("#status") == (
            "3 images: 1 normal, 1 pneumonia, 1 without a prediction, 1 out of distribution"
        )
        dark, bright, broken = [await browser.text(f".card:nth-child({at})") for at in (1, 2, 3)]
        assert "No sign of being out of distribution" in dark
        assert "Do not rely on this prediction" in bright
        assert "No prediction: not a JPEG, PNG, BMP, WebP or DICOM image" in broken
        await browser.until("document.querySelector('.card .heat').naturalWidth === 32")
        await browser.value("document.getElementById('view').click()")
        names = "[...document.querySelectorAll('#table td:first-child')].map((cell) => cell.textContent)"
        assert await browser.value(names) == ["bright.png", "dark.png", "text.png"]
        assert "no prediction: not a JPEG" in await browser.text("#table .problem")

    with contextlib.ExitStack() as serving:
        browse(serving.enter_context(serve_folder(tmp_path / "site")), visit)


def test_the_page_shows_the_progress_of_loading(model, runtime, tmp_path, browse, serve_folder):
    write_site(model, tmp_path / "site", runtime)

    async def visit(browser):
        slow = {"offline": False, "latency": 0, "downloadThroughput": 6 * 2**20, "uploadThroughput": -1}
        await browser.call("Network.emulateNetworkConditions", **slow)
        await browser.call("Page.reload", ignoreCache=True)
        await browser.until("/^[1-9].* of 14 MiB$/.test(document.querySelector('#loaded')?.innerText)")
        assert 0 < await browser.value("document.getElementById('progress').position") <= 1
        assert "Loading the model" in await browser.text("#loading")
        await browser.until(LOADED)

    with serve_folder(tmp_path / "site") as address:
        browse(address, visit)


def odd_files(folder):
    """Return files that a browser would decode otherwise than the server, with a word of what the page says of each."""
    grey = np.full((40, 40), 300, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    two_frames = {"save_all": True, "append_images": [noise((40, 40), seed=1)]}
    glass = noise((40, 40), "RGBA")
    glass.putalpha(200)
    pictures = {
        "deep.png": (Image.fromarray(grey), {}, "16-bit"),
        "scan.tif": (noise((40, 40)), {}, "TIFF"),
        "print.jpg": (noise((40, 40), "CMYK"), {}, "CMYK"),
        "turned.webp": (noise((40, 40)), {"exif": exif}, "EXIF"),
        "glass.png": (glass, {}, "transparent"),
        "still.gif": (noise((40, 40)), {}, "GIF cannot be read in a browser. Save it as"),
        "scan.jp2": (noise((40, 40)), {}, "JPEG 2000 cannot be read in a browser. Save it as"),
        "plain.ppm": (noise((40, 40)), {}, "PPM cannot be read in a browser. Save it as"),
        "film.avif": (noise((40, 40)), {}, "AVIF cannot be read in a browser. Save it as"),
        "moving.png": (noise((40, 40)), two_frames, "animation"),
        "moving.webp": (noise((40, 40)), two_frames, "animation"),
    }
    for name, (picture, options, _) in pictures.items():
        picture.save(folder / name, **options)
    (folder / "chest.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.jpg").write_bytes((folder / "print.jpg").read_bytes()[:-2])
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40) + b"IEND")
    words = {"chest.dcm": "without an image", "cut.png": "cut short", "half.jpg": "cut short"}
    words |= {"bad.png": "cannot decode it", "empty.png": "empty"}
    return words | {name: word for name, (*_, word) in pictures.items()}


def test_files_that_a_browser_decodes_differently_are_rejected_with_the_reason(
    model, runtime, tmp_path, browse, serve_folder
):
    write_site(model, tmp_path / "site", runtime)
    words = odd_files(tmp_path)

    async def visit(browser):
        await browser.until(LOADED)
        await browser.choose(*(tmp_path / name for name in words))
        await browser.until_status(f"{len(words)} images: {len(words)} without")
        for number, (name, word) in enumerate(words.items(), start=1):
            assert word in await browser.text(f".card:nth-child({number}) .decision"), name

    with serve_folder(tmp_path / "site") as address:
        browse(address, visit)


def test_without_a_connection_an_image_that_the_model_fails_on_does_not_affect_the_next(
    write_model, runtime, tiny, tmp_path, browse, serve_folder
):
    write_site(write_model(fails_above=True), tmp_path / "site", runtime)
    (tmp_path / "white.png").write_bytes(tiny.draw((255, 255, 255)))
    (tmp_path / "dark.png").write_bytes(tiny.draw((0, 90, 0)))

    async def visit(browser):
        await browser.until(LOADED)
        serving.close()
        await browser.choose(tmp_path / "white.png", tmp_path / "dark.png")
        await browser.until_status("2 images: 1 normal, 1 without")
        assert await browser.text(".card:nth-child(1) .decision") == "No prediction: the model failed on it"

    with contextlib.ExitStack() as serving:
        browse(serving.enter_context(serve_folder(tmp_path / "site")), visit)


def test_a_worker_that_has_crashed_is_replaced(model, runtime, tiny, tmp_path, browse, serve_folder):
    """Its session is modified to fail on everything after the first image, as WebAssembly without memory does."""
    write_site(model, tmp_path / "site", runtime)
    worker = tmp_path / "site" / "worker.js"
    once = "if (session.used) throw new Error('out of memory'); session.used = true;\n  const outputs ="
    worker.write_text(worker.read_text().replace("const outputs =", once))
    for name in ("one.png", "two.png", "three.png"):
        (tmp_path / name).write_bytes(tiny.draw((0, 90, 0)))

    async def visit(browser):
        await browser.until(LOADED)
        await browser.choose(*(tmp_path / name for name in ("one.png", "two.png", "three.png")))
        await browser.until_status("3 images: 2 normal, 1 without")
        assert await browser.text(".card:nth-child(2) .decision") == "No prediction: the model failed on it"

    with serve_folder(tmp_path / "site") as address:
        browse(address, visit)


@pytest.mark.parametrize("lacking", ["model.json", "onnxruntime.wasm", "onnxruntime.js"])
def test_a_site_that_lacks_a_file_names_it(model, runtime, tmp_path, browse, serve_folder, lacking):
    write_site(model, tmp_path / "site", runtime)
    (tmp_path / "site" / lacking).unlink()

    async def visit(browser):
        await browser.until("document.querySelector('.failed') !== null")
        word = "cannot run the model" if lacking.endswith("js") else f"{lacking} cannot be loaded"
        assert word in await browser.text(".failed")

    with serve_folder(tmp_path / "site") as address:
        browse(address, visit)


def test_neither_the_page_nor_its_worker_can_connect_to_another_address(model, runtime, tmp_path, browse, serve_folder):
    """Control: a worker whose address is a file of the site can, because file servers send no policy with it."""
    asked = []
    with serve_folder(tmp_path, asked) as elsewhere, serve_folder(tmp_path / "site") as address:
        write_site(model, tmp_path / "site", runtime)
        worker = tmp_path / "site" / "worker.js"
        leak = f'await fetch("{elsewhere}from-" + self.location.protocol, {{ mode: "no-cors" }}).catch(() => {{}});\n'
        worker.write_text(worker.read_text() + leak)

        async def visit(browser):
            await browser.until(LOADED)
            ours = {address.rstrip("/"), "blob:" + address.rstrip("/")}
            assert {url.rpartition("/")[0] for url in browser.requests} <= ours
            assert await browser.value(f"fetch('{elsewhere}').then(() => 'sent', () => 'refused')") == "refused"
            control = "new Worker('worker.js', { type: 'module' }).postMessage({ task: 'none' })"
            await browser.value(f"window.control = {control}")
            for _ in range(100):
                await browser.value("new Promise((wake) => setTimeout(wake, 100))")
                if asked:
                    return

        browse(address, visit)
    assert set(asked) == {"/from-http:"}


def test_opened_as_a_file_the_page_says_what_to_do(model, runtime, tmp_path, browse):
    write_site(model, tmp_path / "site", runtime)

    async def visit(browser):
        await browser.until("performance.now() > 3000")  # it is hidden at first, lest it flash where the page starts
        assert "python -m http.server" in await browser.text("#not-started")

    browse((tmp_path / "site" / "index.html").as_uri(), visit)

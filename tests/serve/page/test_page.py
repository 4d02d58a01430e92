"""The page with a server, in a real browser."""

from __future__ import annotations

import base64
import csv
import io

from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServeSpec

AUDIT = {"audited": True, "passed": False, "failures": ["patients are in two splits"], "warnings": []}


def test_the_page_shows_predictions_heatmap_warning_table_and_reasons(write_model, serve_model, tiny, tmp_path, browse):
    predictor = Predictor.open(write_model(ood=True, ood_threshold=0.5, heatmap=True, audit=AUDIT), device="cpu")
    colours = {"dark.png": (0, 90, 0), "bright.png": (255, 200, 250)}
    for name, colour in colours.items():
        (tmp_path / name).write_bytes(tiny.draw(colour))
    (tmp_path / "text.png").write_bytes(b"text")

    async def visit(browser):
        await browser.until("document.querySelector('#description')?.innerText.includes('93.8 % of 16 images')")
        assert "patients are in two splits" in await browser.text("#audit")
        await browser.choose(*(tmp_path / name for name in (*colours, "text.png")))
        await browser.until_status("3 images:")
        assert await browser.text("#status") == (
            "3 images: 1 normal, 1 pneumonia, 1 without a prediction, 1 out of distribution"
        )
        dark, bright, broken = [await browser.text(f".card:nth-child({at})") for at in (1, 2, 3)]
        assert "No sign of being out of distribution" in dark
        assert "Do not rely on this prediction" in bright
        assert "No prediction: text, not a JPEG" in broken
        await browser.until("document.querySelector('.card .heat').naturalWidth === 32")
        await browser.press("h")
        assert await browser.value("getComputedStyle(document.querySelector('.card .heat')).opacity") == "0.5"
        await browser.value("document.getElementById('view').click()")
        names = "[...document.querySelectorAll('#table td:first-child')].map((cell) => cell.textContent)"
        assert await browser.value(names) == ["bright.png", "dark.png", "text.png"]
        await browser.value("document.querySelector('#table th:nth-child(4) button').click()")
        assert await browser.value(names) == ["dark.png", "bright.png", "text.png"]
        sort = "document.querySelector('#table th:nth-child(4)').getAttribute('aria-sort')"
        assert await browser.value(sort) == "descending"
        csv = "import('./table.js').then((m) => m.asCsv([{file: {name: '=1+1.png'}, problem: 'a, b'}], ['x']))"
        assert await browser.value(csv) == 'path,label,p_x,ood,in_distribution,error\r\n\'=1+1.png,,,,,"a, b"\r\n'
        close = "({ood: 1.0872, ood_threshold: 1.0854, in_distribution: false})"
        said = await browser.value(f"import('./cards.js').then((m) => m.oodText{close})")
        assert "score 1.087, threshold 1.085." in said

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)


def test_the_page_asks_for_the_key_until_it_is_right(predictor, serve_model, browse):
    def give(key):
        return (
            "(() => { const form = document.getElementById('key-form');"
            f"form.elements.key.value = '{key}'; form.requestSubmit(); }})()"
        )

    async def visit(browser):
        shown = "document.getElementById('key-form')?.hidden === false"
        await browser.until(shown)
        await browser.value(give("wrong"))
        await browser.until(shown)
        await browser.value(give("right"))
        await browser.until("document.querySelector('#classes').innerText === 'covid, normal or pneumonia'")

    with serve_model(predictor, api_key="right") as client:
        browse(str(client.base_url), visit)


def test_images_can_be_dropped_and_pasted(predictor, serve_model, tiny, browse):
    content = base64.b64encode(tiny.draw((255, 0, 0))).decode()

    def give(kind, name, carrier):
        return f"""(() => {{
          const bytes = Uint8Array.from(atob("{content}"), (letter) => letter.charCodeAt(0));
          const given = new DataTransfer();
          given.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
          document.dispatchEvent(new {kind}Event("{name}", {{ bubbles: true, cancelable: true, {carrier}: given }}));
        }})()"""

    async def visit(browser):
        await browser.until("document.querySelector('#description')?.innerText.includes('Test accuracy')")
        await browser.value(give("Drag", "drop", "dataTransfer"))
        await browser.until_status("1 image: 1 covid")
        await browser.value(give("Clipboard", "paste", "clipboardData"))
        await browser.until_status("2 images: 2 covid")
        names = "[...document.querySelectorAll('.card h2')].map((name) => name.innerText)"
        assert await browser.value(names) == ["pasted image 1.png", "image.png"]

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)


def test_the_csv_file_holds_unrounded_numbers(predictor, serve_model, tiny, tmp_path, browse):
    """Reference: the answer of ``POST /predict`` to the same file."""
    (tmp_path / "red.png").write_bytes(tiny.draw((255, 0, 0)))

    async def visit(browser):
        await browser.until("document.querySelector('#description')?.innerText.includes('Test accuracy')")
        await browser.choose(tmp_path / "red.png")
        await browser.until_status("1 image: 1 covid")
        seen["csv"] = await browser.save()

    seen = {}
    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)
        with (tmp_path / "red.png").open("rb") as file:
            (expected,) = client.post("/predict", files={"files": file}).json()["predictions"]
    (row,) = csv.DictReader(io.StringIO(seen["csv"].lstrip("\ufeff")))
    assert {name: float(row[f"p_{name}"]) for name in tiny.classes} == expected["probabilities"]
    assert (row["path"], row["label"], row["error"]) == ("red.png", "covid", "")


def test_the_page_says_which_model_is_the_default_and_when_it_was_removed(write_model, serve_model, tmp_path, browse):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a", "b"):
        write_model(f"{name}.tmp").replace(folder / f"{name}.onnx")
    models = ModelRegistry(folder, lambda path: [Predictor(path, "cpu")], ServeSpec(), default="b")

    async def visit(browser):
        await browser.loaded()
        shown = await browser.value("[...document.getElementById('names')].map((each) => each.text)")
        assert shown == ["a", "b (default)"]
        assert await browser.value("document.getElementById('names').value") == "b"

    async def visit_again(browser):
        said = "document.getElementById('classes').textContent"
        await browser.until(f"{said}.includes('the default model b was removed')")
        assert "this server has: a" in await browser.value(said)

    with serve_model(None, models=models) as client:
        browse(str(client.base_url), visit)
        (folder / "b.onnx").unlink()
        models.reload()
        browse(str(client.base_url), visit_again)

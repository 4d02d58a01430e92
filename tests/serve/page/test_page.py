"""The page with a server behind it, in a real browser."""

from __future__ import annotations

from serve.app import Door
from serve.predictor import Predictor

AUDIT = {"audited": True, "passed": False, "failures": ["patients are in two splits"], "warnings": []}


def test_images_are_answered_on_the_page_with_heatmap_warning_table_and_reasons(
    write_model, serve_model, tiny, tmp_path, browse
):
    predictor = Predictor.open(write_model(ood=True, ood_threshold=0.5, heatmap=True, audit=AUDIT), device="cpu")
    colours = {"dark.png": (0, 90, 0), "bright.png": (255, 200, 250)}
    for name, colour in colours.items():
        (tmp_path / name).write_bytes(tiny.draw(colour))
    (tmp_path / "text.png").write_bytes(b"text")

    async def visit(browser):
        await browser.until("document.querySelector('#facts')?.innerText.includes('93.8 % of 16 images')")
        assert "patients are in two splits" in await browser.text("#audit")
        await browser.choose(*(tmp_path / name for name in (*colours, "text.png")))
        await browser.until_status("3 images:")
        assert await browser.text("#status") == (
            "3 images: 1 normal, 1 pneumonia, 1 without an answer, 1 unlike the training images"
        )
        dark, bright, broken = [await browser.text(f".card:nth-child({at})") for at in (1, 2, 3)]
        assert "Resembles the training images" in dark
        assert "Do not rely on this answer" in bright
        assert "No answer: not a JPEG" in broken
        await browser.until("document.querySelector('.card .heat').naturalWidth === 32")
        assert await browser.value("getComputedStyle(document.querySelector('.card .heat')).opacity") == "0.5"
        await browser.value("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'h', bubbles: true}))")
        assert await browser.value("getComputedStyle(document.querySelector('.card .heat')).opacity") == "0"
        await browser.value("document.getElementById('view').click()")
        names = "[...document.querySelectorAll('#table td:first-child')].map((cell) => cell.textContent)"
        assert await browser.value(names) == ["bright.png", "dark.png", "text.png"]
        await browser.value("document.querySelector('#table th:nth-child(4) button').click()")
        assert await browser.value(names) == ["dark.png", "bright.png", "text.png"]
        sort = "document.querySelector('#table th:nth-child(4)').getAttribute('aria-sort')"
        assert await browser.value(sort) == "descending"
        csv = "import('./table.js').then((m) => m.asCsv([{file: {name: '=1+1.png'}, problem: 'a, b'}], ['x']))"
        assert await browser.value(csv) == 'File,Decision,x,Problem\r\n\'=1+1.png,,,"a, b"\r\n'

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

    with serve_model(predictor, door=Door(api_key="right")) as client:
        browse(str(client.base_url), visit)

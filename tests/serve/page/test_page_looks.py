"""What the page shows of a model and its predictions, and when: heatmaps, warnings, formats, sizes."""

from __future__ import annotations

import pytest

from xfeat.serve.inference.predictor import Predictor

pytestmark = pytest.mark.slow

SHOWN = "[...document.querySelectorAll('.card .heat')].filter((each) => each.checkVisibility()).length"
WARNINGS = {"audited": True, "passed": True, "failures": [], "warnings": ["from the border alone", "only 16 images"]}


def visible(selector):
    return f"(document.querySelector({selector!r})?.checkVisibility() ?? false)"


def test_heatmaps_are_off_until_asked_for_and_say_what_they_show(open_page, three_images):
    async def visit(browser):
        await browser.loaded()
        await browser.choose(*three_images[:2])
        await browser.until_status("2 images:")
        assert not await browser.value(f"{SHOWN} || {visible('#heat')} || {visible('#legend')}")
        await browser.press("h")
        assert await browser.value(SHOWN) == 2
        assert await browser.text(".card:nth-child(1) .heat-class") == "Heatmap for normal"
        assert await browser.text(".card:nth-child(2) .heat-class") == "Heatmap for pneumonia"
        assert await browser.value(f"{visible('#heat')} && {visible('#ramp')}")
        assert "low\nhigh" in (legend := await browser.text("#legend"))
        assert "Not a probability" in legend
        await browser.choose(three_images[0])  # the setting holds for later images
        await browser.until_status("3 images:")
        assert await browser.value(SHOWN) == 3
        await browser.press("t")
        assert not await browser.value(f"{visible('#heat-on')} || {visible('#legend')}")
        await browser.press("t")
        await browser.value("document.getElementById('clear').click()")
        await browser.until(f"!{visible('#legend')}")
        await browser.choose(*three_images)  # the third has no prediction, and so no heatmap
        await browser.until_status("3 images:")
        assert await browser.value(SHOWN) == 2
        await browser.value("document.getElementById('heat-on').click()")
        assert not await browser.value(f"{SHOWN} || {visible('#legend')} || {visible('.heat-class')}")

    open_page(visit)


def test_a_model_without_heatmaps_has_no_control_for_them(open_page, three_images):
    async def visit(browser):
        await browser.loaded()
        await browser.choose(three_images[0])
        await browser.until_status("1 image:")
        await browser.press("h")
        assert not await browser.value(f"{visible('#heat-on')} || {visible('#legend')} || {visible('.heat-class')}")

    open_page(visit, heatmap=False)


@pytest.mark.parametrize(
    ("verdicts", "alarm", "is_open"),
    [
        ({"leakage": "none found", "shortcuts": "found"}, "the class can be predicted without the anatomy", True),
        ({"leakage": "found", "shortcuts": "none found"}, "The audit found leakage", False),
        ({"leakage": "found", "shortcuts": "found"}, "The audit found shortcuts", True),
        ({"leakage": "none found", "shortcuts": "none found"}, "", False),
        ({"leakage": "none found", "shortcuts": "not checked"}, "", True),
        (None, "", True),  # of a model of version 0.1, which does not say what its warnings are about
    ],
)
def test_what_the_audit_found_is_beside_the_accuracy(verdicts, alarm, is_open, write_model, serve_model, browse):
    async def visit(browser):
        await browser.loaded()
        (line,) = await browser.value(
            "[...document.querySelectorAll('#description > div')].map((each) => each.innerText)"
            ".filter((text) => text.startsWith('Test accuracy'))"
        )
        assert alarm in line
        assert "2 warnings about the training data" in line
        assert ("from the border alone" in line) == is_open

    audit = WARNINGS | ({"verdicts": verdicts} if verdicts else {})
    with serve_model(Predictor.open(write_model(audit=audit), device="cpu")) as client:
        browse(str(client.base_url), visit)


@pytest.mark.parametrize("size", [(28, 28), (800, 600), (300, 900), (900, 300)])
def test_thumbnails_on_a_phone_are_at_least_150_pixels_wide(size, tiny, tmp_path, predictor, serve_model, browse):
    (tmp_path / "image.png").write_bytes(tiny.draw((0, 90, 0), size))

    async def visit(browser):
        await browser.look(width=390, height=844)
        await browser.loaded()
        await browser.choose(tmp_path / "image.png")
        await browser.until_status("1 image: 1 normal")
        box = "(({ width, height }) => [width, height])(document.querySelector('.image').getBoundingClientRect())"
        width, height = await browser.value(box)
        assert width >= 150
        assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
        await browser.value("document.querySelector('.picture').click()")
        assert (await browser.value(box))[0] >= width
        assert await browser.value("document.documentElement.scrollWidth") <= 390

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)


def test_a_table_wider_than_its_box_says_that_it_scrolls(predictor, serve_model, three_images, browse):
    async def visit(browser):
        await browser.loaded()
        await browser.choose(*three_images)
        await browser.until_status("3 images:")
        await browser.press("t")
        for width, scrolls in ((1280, False), (390, True), (1280, False)):
            await browser.look(width=width)
            await browser.until(f"{visible('#more')} === {str(scrolls).lower()}")
            assert await browser.value("document.documentElement.scrollWidth") <= width
        await browser.press("t")
        assert not await browser.value(visible("#more"))

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)


@pytest.mark.parametrize("dicom", [True, False])
def test_dicom_is_named_and_can_be_chosen_where_the_server_reads_it(dicom, predictor, serve_model, browse, monkeypatch):
    if not dicom:
        monkeypatch.setattr("xfeat.serve.inference.description.find_spec", lambda name: None)

    async def visit(browser):
        await browser.loaded()
        assert ("DICOM" in await browser.text("#formats")) == dicom
        accepted = await browser.value("document.getElementById('files').accept")
        assert (accepted == "" or ".dcm" in accepted) == dicom  # without a list, all files can be chosen

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)

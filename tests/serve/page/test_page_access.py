"""Accessibility of both kinds of the page: keyboard, screen reader, low vision.

The rules are those of axe-core, WCAG 2.2 A and AA and its best practices; the versions of them that the installed
axe-core knows.
"""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
CHECK = f"""axe.run(document, {{ runOnly: {{ type: 'tag', values: {TAGS} }} }}).then((found) => ({{
  passes: found.passes.length,
  violations: found.violations.map((each) => each.help + ': ' + each.nodes.map((node) => node.html).join(' ')),
}}))"""


@pytest.fixture(scope="session")
def axe():
    """Return the source of axe-core: of the file that XFEAT_AXE names, else of the wheel axe-core-python."""
    if named := os.environ.get("XFEAT_AXE"):
        return Path(named).read_text()
    package = pytest.importorskip("axe_core_python", reason="needs axe-core-python, or XFEAT_AXE=axe.min.js")
    (source,) = importlib.resources.files(package).rglob("axe.min.js")
    return source.read_text()


def test_axe_finds_no_violation_in_light_and_dark_mode_on_desktop_and_phone(open_page, axe, three_images):
    async def visit(browser):
        await browser.loaded()
        await browser.value(f"{axe};0")
        await browser.choose(*three_images)
        await browser.until_status("3 images:")
        await browser.press("h")
        for dark in (False, True):
            for width in (1200, 360):
                await browser.look(width=width, dark=dark)
                for shown in ("cards", "table"):
                    found = await browser.value(CHECK)
                    assert found["passes"] > 20
                    assert found["violations"] == [], (shown, dark, width)
                    await browser.press("t")

    open_page(visit)


def test_nothing_has_to_be_scrolled_horizontally_on_a_narrow_screen(open_page, three_images):
    """320 px is what WCAG 1.4.10 asks for; tables are excepted, and scroll in a frame of their own."""

    async def visit(browser):
        await browser.look(width=320)
        await browser.loaded()
        await browser.choose(*three_images)
        await browser.until_status("3 images:")
        for _ in ("cards", "table"):
            assert await browser.value("document.documentElement.scrollWidth") <= 320
            await browser.press("t")

    open_page(visit)


def test_everything_works_with_the_keyboard(open_page, three_images):
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"

    async def tab_to(browser, wanted):
        for _ in range(40):
            await browser.press("Tab")
            if await browser.value(f"({focused}).startsWith('{wanted}')"):
                # The focus must be visible.
                ringed = "document.activeElement.id === 'files' ? drop : document.activeElement"
                assert await browser.value(f"getComputedStyle({ringed}).outlineStyle") != "none", wanted
                return
        pytest.fail(f"Tab does not lead to {wanted}; it is at {await browser.value(focused)}")

    async def visit(browser):
        await browser.loaded()
        await tab_to(browser, "files")
        await browser.choose(*three_images)
        await browser.until_status("3 images:")
        await tab_to(browser, "heat-on")
        await browser.press("Enter")
        await tab_to(browser, "heat")
        await browser.press("ArrowRight")
        assert await browser.value("document.documentElement.style.getPropertyValue('--heat')") == "0.51"
        await tab_to(browser, "picture")
        await browser.press("Enter")
        assert await browser.value("document.activeElement.getAttribute('aria-expanded')") == "true"
        await browser.value("document.getElementById('files').focus()")
        await tab_to(browser, "view")
        await browser.press("Enter")
        await tab_to(browser, "Decision")
        await browser.press("Enter")
        sort = "document.querySelector('th:nth-child(2)').getAttribute('aria-sort')"
        assert await browser.value(sort) == "ascending"
        await browser.press("Enter")
        assert await browser.value(sort) == "descending"

    open_page(visit)


def test_keyboard_shortcuts_can_be_turned_off_and_stay_off(open_page, three_images):
    pressed = "document.getElementById('view').getAttribute('aria-pressed')"

    async def visit(browser):
        await browser.loaded()
        for expected in ("true", "false"):
            await browser.choose(*three_images)
            await browser.until_status("3 images:")
            await browser.press("t")
            assert await browser.value(pressed) == expected
            await browser.value(
                "document.getElementById('shortcuts').checked && document.getElementById('shortcuts').click()"
            )
            await browser.call("Page.reload")
            await browser.loaded()

    open_page(visit)

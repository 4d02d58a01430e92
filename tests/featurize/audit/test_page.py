"""The page in a real browser, from the disk: what is ticked on it becomes a table that xfeat applies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.serve.page.conftest import SAVED_CSV
from tests.serve.page.conftest import browse as browse  # a fixture
from xfeat.featurize.cache.corrections import correct_cache
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main

CHOOSE = """(row, choice, group) => {
  const box = document.querySelector(`.correct[data-row="${row}"]`);
  const [select, input] = box.children;
  select.value = choice; select.dispatchEvent(new Event("change"));
  input.value = group; input.dispatchEvent(new Event("input"));
}"""


@pytest.mark.slow
def test_corrections_are_chosen_on_the_page_saved_and_applied(
    leaky: FeatureCache, tmp_path: Path, browse: Callable[..., None]
) -> None:
    file = Path(shutil.copy(leaky.path, tmp_path / "features.h5"))
    assert CliRunner().invoke(main, ["audit", str(file)]).exit_code == 0
    cache, saved = FeatureCache.open(file), {}

    async def visit(browser: Any) -> None:
        assert await browser.value("document.getElementById('corrections').hidden") is True
        rows = await browser.value(
            "[...new Set([...document.querySelectorAll('.correct')].map((e) => +e.dataset.row))]"
        )
        for row, choice, group in ((rows[0], "1", "p, 7"), (rows[1], "exclude", ""), (rows[2], "exclude", "")):
            await browser.value(f"({CHOOSE})({row}, {choice!r}, {group!r})")
        await browser.value(f"({CHOOSE})({rows[2]}, '', '')")  # taken back
        assert await browser.value("document.getElementById('count').textContent") == "3 corrections"
        saved.update(rows=rows, table=await browser.value(SAVED_CSV))
        await browser.value("document.querySelectorAll('.exclude-all').forEach((button) => button.click())")
        assert await browser.value("document.querySelectorAll('.chosen').length") > 2
        assert not browser.complaints
        assert all(address.startswith(("file:", "data:", "blob:")) for address in browser.requests)

    browse((tmp_path / "features.audit.html").as_uri(), visit)
    table = tmp_path / "corrections.csv"
    table.write_text(saved["table"], encoding="utf-8-sig", newline="")
    found = correct_cache(cache, table)
    first, second = saved["rows"][:2]
    assert {(one.path, one.action, one.value) for one in found.corrections} == {
        (cache.columns.path[first], "relabel", cache.class_names[1]),
        (cache.columns.path[first], "group", "p, 7"),
        (cache.columns.path[second], "exclude", ""),
    }
    assert all(one.reason.startswith(("leakage.", "duplicates.", "labels.")) for one in found.corrections)

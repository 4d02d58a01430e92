"""The colours of heatmaps. Reference: matplotlib's table of viridis."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from xfeat.export.model.heatmap import COLOURS, colour_heatmap

RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None]
PEAK = np.eye(4, dtype=np.float32)[1:2].reshape(2, 2)


def test_the_colours_are_viridis() -> None:
    colours, strength = colour_heatmap(RAMP, 256, 1)
    np.testing.assert_allclose(strength, RAMP, atol=1e-6)
    viridis = np.array(mpl.colormaps["viridis"].colors)  # type: ignore[attr-defined]
    assert np.abs(colours[0] - 255 * viridis).max() < 7


def test_the_page_has_the_same_colours() -> None:
    page = Path(__file__).parents[3] / "serve" / "page" / "colours.js"
    assert "".join(re.findall(r'"([0-9a-f]{6})"', page.read_text())) == COLOURS.tobytes().hex()


def test_every_step_is_lighter_than_the_one_before() -> None:
    """So that the order can be seen in grey, too."""
    assert (np.diff((COLOURS / 255) ** 2.2 @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.parametrize(
    ("heatmap", "covered"),
    [
        (np.zeros((7, 7), np.float32), 0),
        (np.full((7, 7), -2, np.float32), 0),
        (np.full((7, 7), np.nan, np.float32), 0),
        (np.full((7, 7), np.inf, np.float32), 0),
        (np.full((1, 1), 1e-30, np.float32), 1),
        (np.where(PEAK > 0, PEAK, np.nan), 1),
        (np.where(PEAK > 0, PEAK, -np.inf), 1),
        (PEAK * 1e-6, 1),
        (PEAK * 1e30, 1),
    ],
)
def test_a_heatmap_covers_the_image_at_its_highest_value_at_any_scale(heatmap: np.ndarray, covered: float) -> None:
    colours, strength = colour_heatmap(heatmap, 20, 10)
    assert colours.shape == (10, 20, 3)
    assert strength.shape == (10, 20)
    assert (strength.max(), strength.min() >= 0) == (covered, True)
    assert strength.argmax() in np.flatnonzero(strength == covered)

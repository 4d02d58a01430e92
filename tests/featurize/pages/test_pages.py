"""What all pages share: where a line may break, and what a title says of the data."""

from __future__ import annotations

import pytest

from xfeat.featurize.pages.templates import unbroken
from xfeat.featurize.pages.titles import described

PATIENTS = [f"p{number % 96}" for number in range(100)]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("accuracy 97.0 % (91.5 to 99.0)", "accuracy 97.0~% (91.5~to~99.0)"),
        ("91.5 to 99.0 %", "91.5~to~99.0~%"),
        ("95 % confidence intervals", "95~% confidence intervals"),
        ("at 1.0 % and 4.0 % to 99.0 %", "at 1.0~% and 4.0~%~to~99.0~%"),
        ("−2.1 (−4.0 to +0.3) points", "−2.1 (−4.0~to~+0.3) points"),
        ("it is 2.5 percentage points", "it is 2.5~percentage points"),
        ("77.1 % ± 2.3 over the folds", "77.1~%~±~2.3~over the folds"),
        ("180 images of 126 patients", "180~images of~126~patients"),
        ("if probability ≥ 0.4597", "if probability ≥~0.4597"),
        ("p &lt; 0.05, p 0.031", "p &lt;~0.05, p~0.031"),
        ("5 folds × 3 seeds", "5~folds ×~3~seeds"),
        ("64 kB, 12 mm, 300 ms, 37 °C", "64~kB, 12~mm, 300~ms, 37~°C"),
        ("97.0\n  % of 20 MB", "97.0~% of~20~MB"),
        ("<td>97.0</td> <td>%</td>", "<td>97.0</td> <td>%</td>"),
        ('<img alt="5 % noise">5 % noise', '<img alt="5 % noise">5~% noise'),
        ("<bdi>scan 5 of 7.png</bdi> 5 of 7", "<bdi>scan 5 of 7.png</bdi> 5~of~7"),
        ("<code>--crop 0.1 -o x</code>", "<code>--crop 0.1 -o x</code>"),
        ("<svg><text>97 %</text></svg>", "<svg><text>97 %</text></svg>"),
        ("<script>let a = 5 % b</script>", "<script>let a = 5 % b</script>"),
        ("on 2026-11-29 17:25", 'on <span class="date">2026-11-29</span> 17:25'),
        ("ages 40-65 of 70", 'ages <span class="date">40-65</span>~of~70'),
        ("<bdi>2026-11-29</bdi>, p486-1.jpg, a-1-2", "<bdi>2026-11-29</bdi>, p486-1.jpg, a-1-2"),
        ("no number, no change", "no number, no change"),
    ],
)
def test_a_line_never_ends_inside_a_number_and_names_are_copied_as_they_are(written: str, shown: str) -> None:
    assert unbroken(written) == shown.replace("~", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("names", "images", "groups", "more", "title"),
    [
        (["covid", "normal"], ", 100 test images", PATIENTS, {}, "covid against normal, 100 test images, 96 patients"),
        (["covid", "normal"], ", 1 image", [""], {}, "covid against normal, 1 image, no patients known"),
        (["a", "b"], ", 3 images", ["p", ""], {}, "a against b, 3 images, 1 patient and 1 image of unknown patients"),
        (["a", "b"], ", 1 image", ["p"], {"positive": "b"}, "b against a, 1 image, 1 patient"),
        (["a", "b"], " on 2 images of other", ["p", "q"], {}, "a against b on 2 images of other, 2 patients"),
        (["a", "b", "c"], ", 1 image", [""], {"more": ", 5 folds"},
         "3 classes: a, b, c, 1 image, no patients known, 5 folds"),
        ([f"c{n}" for n in range(14)], ", 9 images", ["p"], {}, "14 classes, 9 images, 1 patient"),
        (["x" * 60, "y"], ", 9 images", ["p"], {}, f"{'x' * 21}…{'x' * 10} against y, 9 images, 1 patient"),
        (["only"], ", 9 images", ["p"], {}, "1 class: only, 9 images, 1 patient"),
        ([], ", 0 images", [], {}, "0 classes, 0 images, no patients known"),
        (["a\nb", "肺炎"], ", 9 images", ["p"], {}, "a\\nb against 肺炎, 9 images, 1 patient"),
    ],
)  # fmt: skip
def test_a_title_says_classes_images_and_patients(
    names: list[str], images: str, groups: list[str], more: dict[str, str], title: str
) -> None:
    assert described(names, images, groups, **more)["title"] == title  # type: ignore[arg-type]

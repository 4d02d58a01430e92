"""The committed sample data: reproducible, small, whole patients in one split, and no trivial shortcut.

Facts about the files are checked with Pillow and numpy; only the facts about drawing import the script.
"""

import csv
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).parents[2] / "data"
SCRIPT = DATA / "draw_phantoms.py"
SPLITS = ("train", "valid", "test")
CLASSES = ("clear", "opacity")
MOST_FOR_ONE_NUMBER = 0.70  # best threshold over 160 images, all of them; pure luck reaches about 0.57


def pictures(root: Path) -> list[Path]:
    return sorted(path for split in SPLITS for path in root.glob(f"{split}/*/*") if path.is_file())


def best_threshold_accuracy(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the accuracy of the best rule `value > threshold`, in either direction, on all images."""
    accuracies = [np.mean((values > threshold) == positive) for threshold in values]
    return float(max(*accuracies, *(1 - accuracy for accuracy in accuracies)))


@pytest.fixture(scope="module")
def draw_phantoms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_phantoms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with open(DATA / "groups.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def grey() -> dict[str, np.ndarray]:
    """Every committed picture by its path relative to data/, as uint8 (height, width)."""
    planes = {}
    for path in pictures(DATA):
        with Image.open(path) as image:
            planes[path.relative_to(DATA).as_posix()] = np.asarray(image)
    return planes


@pytest.fixture(scope="module")
def is_opacity(grey: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([name.split("/")[1] == "opacity" for name in grey])


@pytest.mark.slow
def test_the_same_seed_redraws_the_committed_pixels(
    draw_phantoms: ModuleType, grey: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """All names and groups, and the pixels of every third picture: drawing all of them takes ten seconds."""
    phantoms = sorted(draw_phantoms.all_phantoms(0), key=lambda phantom: phantom.path)
    assert [phantom.path for phantom in phantoms] == sorted(grey)
    for phantom in phantoms[::3]:
        draw_phantoms.save(phantom, tmp_path, 0)
        with Image.open(tmp_path / phantom.path) as image:
            np.testing.assert_array_equal(np.asarray(image), grey[phantom.path], err_msg=phantom.path)
    draw_phantoms.write_groups(phantoms, tmp_path)
    assert (tmp_path / "groups.csv").read_bytes() == (DATA / "groups.csv").read_bytes()


def test_another_seed_draws_other_pixels(draw_phantoms: ModuleType) -> None:
    phantom = next(draw_phantoms.all_phantoms(0))
    assert not np.array_equal(draw_phantoms.draw(phantom, 0), draw_phantoms.draw(phantom, 1))


def test_a_second_seed_is_not_mixed_into_the_pictures_of_the_first(tmp_path: Path) -> None:
    stranger = tmp_path / "train" / "clear" / "mine.jpg"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"left alone")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mine.jpg" in done.stderr
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stranger]
    assert stranger.read_bytes() == b"left alone"


def test_the_class_changes_the_lungs_and_hardly_the_border(draw_phantoms: ModuleType) -> None:
    """The same patient drawn in both classes differs by the finding alone: size and pose stay."""
    first = next(draw_phantoms.all_phantoms(0))
    facts = {"split": "train", "number": first.number, "shot": 1, "suffix": ".png"}
    clear, opacity = (draw_phantoms.draw(draw_phantoms.Phantom(label=label, **facts), 0) for label in CLASSES)
    assert clear.shape == opacity.shape
    difference = np.abs(clear.astype(int) - opacity.astype(int))
    border = np.ones(clear.shape, bool)
    border[20:-20, 20:-20] = False
    assert difference[border].max() < 20 < difference.max()  # automatic exposure shifts the border a little


def test_the_whole_folder_is_at_most_2_mb() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 2_000_000


def test_every_picture_opens_and_is_8_bit_grey_of_190_to_330_px() -> None:
    for path in pictures(DATA):
        with Image.open(path) as image:
            image.load()
            assert image.mode == "L", path
            assert image.format == {".jpg": "JPEG", ".png": "PNG"}[path.suffix], path
            assert all(190 <= length <= 330 for length in image.size), path


def test_every_split_holds_as_many_clear_as_opacity(grey: dict[str, np.ndarray]) -> None:
    counts = {
        split: [sum(name.startswith(f"{split}/{label}/") for name in grey) for label in CLASSES] for split in SPLITS
    }
    assert counts == {"train": [48, 48], "valid": [16, 16], "test": [16, 16]}


def test_groups_csv_lists_exactly_the_pictures_that_are_there(
    rows: list[dict[str, str]], grey: dict[str, np.ndarray]
) -> None:
    assert list(rows[0]) == ["path", "label", "group"]
    assert [row["path"] for row in rows] == sorted(grey)
    for row in rows:
        assert row["label"] == row["path"].split("/")[1]
        assert row["group"] == Path(row["path"]).stem.split("-")[0]


def test_no_patient_lies_in_two_splits_or_two_classes(rows: list[dict[str, str]]) -> None:
    homes: dict[str, set[str]] = {}
    for row in rows:
        homes.setdefault(row["group"], set()).add(row["path"].rsplit("/", 1)[0])
    assert all(len(home) == 1 for home in homes.values())
    assert 1 < len(rows) / len(homes) < 3


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(lambda plane: plane.mean(), id="mean grey"),
        pytest.param(lambda plane: np.median(plane), id="median grey"),
        pytest.param(lambda plane: plane.std(), id="contrast"),
        pytest.param(lambda plane: plane.shape[0], id="height"),
        pytest.param(lambda plane: plane.shape[1], id="width"),
        pytest.param(lambda plane: plane[:, [0, 1, -2, -1]].mean(), id="border"),
    ],
)
def test_one_number_does_not_tell_the_class(
    measure: Callable[[np.ndarray], float], grey: dict[str, np.ndarray], is_opacity: np.ndarray
) -> None:
    values = np.array([measure(plane) for plane in grey.values()])
    assert best_threshold_accuracy(values, is_opacity) < MOST_FOR_ONE_NUMBER


def test_the_length_of_a_file_does_not_tell_the_class(grey: dict[str, np.ndarray], is_opacity: np.ndarray) -> None:
    lengths = np.array([(DATA / name).stat().st_size for name in grey])
    assert best_threshold_accuracy(lengths, is_opacity) < MOST_FOR_ONE_NUMBER


def test_both_classes_have_the_same_number_of_pngs(grey: dict[str, np.ndarray]) -> None:
    pngs = [name.split("/")[1] for name in grey if name.endswith(".png")]
    assert pngs.count("clear") == pngs.count("opacity") == 3

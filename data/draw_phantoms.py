"""Draw the sample data set: phantoms of chest X-rays, in two classes, `clear` and `opacity`.

These are drawings, not medical images. A phantom is a sum of soft shapes (torso, lungs, ribs, heart, vessels)
that stand for how much each part of a chest weakens the beam; a film curve turns the sum into grey. `opacity`
adds hazy patches inside the lungs and changes nothing else: pose, exposure, devices, size and file format
come from random streams that do not know the class.

    python data/draw_phantoms.py                # redraw the committed files
    python data/draw_phantoms.py --out /tmp/x --seed 1
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image

Point = tuple[float, float]
Plane = NDArray[np.float64]  # (height, width), float64: float32 would round differently on other machines

CLASSES = ("clear", "opacity")
IMAGES_PER_CLASS = {"train": 48, "valid": 16, "test": 16}
OPACITY_STRENGTH = (0.32, 0.56)  # beam weakening; tuned so that a linear model is good at it but not perfect
SIDES = (-1, 1)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One image of the data set; `number` is the patient, `shot` counts this patient's images from 1."""

    split: str
    label: str
    number: int
    shot: int
    suffix: str

    @property
    def group(self) -> str:
        return f"p{self.number:03d}"

    @property
    def path(self) -> str:
        return f"{self.split}/{self.label}/{self.group}-{self.shot}{self.suffix}"


def soft(distance: Plane, width: float = 0.01) -> Plane:
    """Return 1 where `distance` is positive, 0 where negative, and a smooth step within `width` of 0."""
    step = distance * (0.5 / width)
    step += 0.5
    np.clip(step, 0, 1, out=step)
    return step * step * (3 - 2 * step)


def ellipse(x: Plane, y: Plane, centre: Point, radii: Point, tilt: float = 0.0) -> Plane:
    """Return how deep each point lies in an ellipse: 1 at its centre, 0 on its rim, negative outside."""
    cos, sin = np.cos(tilt), np.sin(tilt)
    dx, dy = x - centre[0], y - centre[1]
    depth: Plane = 1 - np.sqrt(((cos * dx + sin * dy) / radii[0]) ** 2 + ((cos * dy - sin * dx) / radii[1]) ** 2)
    return depth


def curve(start: Point, bend: Point, end: Point) -> list[Point]:
    """Return six points along a quadratic Bézier curve."""
    t = np.linspace(0, 1, 6)[:, None]
    points = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
    return [(float(x), float(y)) for x, y in points]


def stroke(x: Plane, y: Plane, points: list[Point], width: float, edge: float = 0.01, taper: float = 0.0) -> Plane:
    """Return a polyline of half-width `width`, its end thinner by the share `taper`, as 0 to 1."""
    (left, top), (right, bottom), reach = np.min(points, axis=0), np.max(points, axis=0), width + edge
    near = (np.abs(2 * x - left - right) < right - left + 2 * reach) & (y > top - reach) & (y < bottom + reach)
    px, py = x[near], y[near]  # only the pixels around the line: most lines are small
    cover = np.zeros_like(px)
    for number, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        dx, dy = bx - ax, by - ay
        along = np.clip(((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.sqrt((px - ax - along * dx) ** 2 + (py - ay - along * dy) ** 2)
        cover = np.maximum(cover, soft(width * (1 - taper * number / len(points)) - distance, edge))
    plane = np.zeros_like(x)
    plane[near] = cover
    return plane


def cloud(rng: Generator, shape: tuple[int, int], cells: int) -> Plane:
    """Return smooth noise (mean about 0, deviation about 0.6) whose lumps are 1/`cells` of the image wide."""

    def weights(length: int) -> Plane:
        position = np.linspace(0, cells, length)[:, None] - np.arange(cells + 1)[None, :]
        near: Plane = np.clip(1 - np.abs(position), 0, 1)
        return near * near * (3 - 2 * near)

    # einsum, not @: BLAS may add in another order on another machine or with another number of threads.
    rows = np.einsum("yi,ij->yj", weights(shape[0]), rng.standard_normal((cells + 1, cells + 1)))
    plane: Plane = np.einsum("yj,xj->yx", rows, weights(shape[1]))
    return plane


def pose(rng: Generator, shape: tuple[int, int]) -> tuple[Plane, Plane]:
    """Return the x and y of every pixel in the chest's own coordinates, about -1 to 1, y downwards."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    angle, zoom = rng.normal(0, 0.035), rng.uniform(0.93, 1.1)
    x, y = zoom * (x + rng.normal(0, 0.035)), zoom * (y + rng.normal(0, 0.035))
    return np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y


def torso(rng: Generator, x: Plane, y: Plane) -> tuple[Plane, Plane, Plane]:
    """Return the body's thickness, the rib cage and the lungs as if there were no heart, each 0 to 1."""
    girth, depth, apex = rng.uniform(0.84, 1.0), rng.uniform(0.36, 0.56), rng.uniform(-0.88, -0.80)
    shoulder = np.clip((y + 1.04) / 0.30, 0, 1)
    half_width = 0.27 + (girth - 0.27) * np.sqrt(shoulder) + 0.05 * np.clip(y, -0.2, 1) ** 2
    body = soft(half_width - np.abs(x), 0.025) * (0.35 + 0.65 * np.sqrt(np.clip(1 - (x / half_width) ** 2, 0, 1)))
    width, arch = girth - rng.uniform(0.09, 0.15), rng.uniform(0.04, 0.09)
    cage, lungs = np.zeros_like(x), np.zeros_like(x)
    for side in SIDES:
        s = side * x
        floor = depth + 0.03 * side + 0.10 - 0.20 * soft(0.42 - s, 0.5) + 1.1 * np.clip(s - 0.40, 0, None) ** 2
        down = np.clip((y - apex) / (floor - apex), 0, 1)
        outer = width * (0.62 + 0.38 * down**0.8) * np.sqrt(1 - (1 - down) ** 4.5)
        inner = 0.12 + 0.05 * soft(down - 0.75, 0.3)
        if side > 0:  # the arch of the aorta and the artery below it push the left lung aside
            inner += arch * np.exp(-(((y + 0.33) / 0.09) ** 2)) + 0.6 * arch * np.exp(-(((y + 0.12) / 0.09) ** 2))
        inside = soft(outer - s, 0.025) * soft(s - inner, 0.035) * soft(floor - y, 0.022) * soft(y - apex, 0.03)
        cage += soft(outer + 0.03 - s, 0.03) * soft(s, 0.01)
        lungs += inside
    return body, cage, lungs


def ribs(rng: Generator, x: Plane, y: Plane) -> Plane:
    """Return the beam weakening of the spine and of the ribs' back and front parts."""
    gap, first, slope = rng.uniform(0.148, 0.172), rng.uniform(-0.82, -0.74), rng.uniform(0.22, 0.34)
    s = np.abs(x)
    reach = np.clip(s / 0.85, 0, 1)

    def nearest(start: Plane) -> Plane:
        """Return how far a point lies from the nearest of the ribs that leave `start` every `gap`."""
        return np.abs((y - start + gap / 2) % gap - gap / 2)

    back = nearest(first + slope * reach**2 - 0.10 * np.sin(np.pi * reach)) / (1 + 0.6 * reach)
    front = nearest(first + 0.10 + 0.34 * (1 - reach) ** 1.3)
    total = 0.12 * (soft(0.026 - back, 0.009) - 0.45 * soft(0.017 - back, 0.009)) * soft(s - 0.08, 0.03)
    total += 0.05 * soft(0.024 - front, 0.014) * soft(s - 0.36, 0.08) * soft(y + 0.55, 0.1)
    discs = 0.75 + 0.25 * np.cos(2 * np.pi * (y - first) / gap)
    return total * soft(0.55 - y, 0.2) + 0.14 * soft(0.085 - s, 0.025) * discs


def shoulders(rng: Generator, x: Plane, y: Plane) -> Plane:
    """Return the beam weakening of the clavicles and, in some, of the shoulder blades and the breasts."""
    total, blades, breasts = np.zeros_like(x), rng.random() < 0.5, rng.random() < 0.4
    tip, inset, sag = rng.uniform(-0.90, -0.80), rng.uniform(0.60, 0.74), rng.uniform(0.35, 0.50)
    for side in SIDES:
        collar = curve((side * 0.09, -0.60), (side * 0.40, -0.76), (side * 0.84, tip))
        total += 0.18 * (stroke(x, y, collar, 0.032, 0.014) - 0.4 * stroke(x, y, collar, 0.020, 0.012))
        if blades:
            edge = curve((side * 0.90, -0.75), (side * inset, -0.45), (side * 0.80, 0.0))
            total += 0.08 * stroke(x, y, edge, 0.014, 0.03)
        if breasts:
            total += 0.10 * soft(ellipse(x, y, (side * 0.46, sag - 0.22), (0.34, 0.30)), 0.2)
    return total


def heart(rng: Generator, x: Plane, y: Plane) -> Plane:
    """Return the heart and the great vessels, 0 to 1, less the windpipe, which holds air."""
    size, low, tilt = rng.uniform(0.85, 1.15), rng.uniform(0.22, 0.30), rng.uniform(0.45, 0.75)
    muscle = soft(ellipse(x, y, (0.14, low), (0.37 * size, 0.25 * size), tilt), 0.08)
    atrium = soft(ellipse(x, y, (-0.03, low - 0.04), (0.19 * size, 0.27 * size)), 0.09)
    trunk = soft(ellipse(x, y, (0.02, -0.10), (0.20, 0.34)), 0.3)
    windpipe = soft(0.045 - np.abs(x + 0.01), 0.02) * soft(-0.25 - y, 0.08)
    return np.maximum(np.maximum(muscle, atrium), 0.7 * trunk) - 0.35 * windpipe


def vessels(rng: Generator, x: Plane, y: Plane) -> Plane:
    """Return the hila and the vessels that fan out from them and thin towards the rim."""
    hila, fans = np.zeros_like(x), np.zeros_like(x)
    for side in SIDES:
        root = (side * 0.19, rng.uniform(-0.10, -0.02))
        hila += rng.uniform(0.08, 0.22) * soft(ellipse(x, y, root, (0.11, 0.20), -0.4 * side) - 0.3, 0.7)
        for angle in np.linspace(-1.25, 1.35, 10) + rng.normal(0, 0.10, 10):
            reach, bend = rng.uniform(0.30, 0.58), angle + rng.normal(0, 0.35)
            middle = (root[0] + side * np.cos(angle) * reach / 2, root[1] + np.sin(angle) * reach / 2)
            end = (middle[0] + side * np.cos(bend) * reach / 2, middle[1] + np.sin(bend) * reach / 2)
            fans = np.maximum(fans, stroke(x, y, curve(root, middle, end), 0.018, 0.016, taper=0.9))
    return hila + 0.09 * fans


def haze(rng: Generator, x: Plane, y: Plane) -> Plane:
    """Return the finding of class `opacity`: mottled patches in both lungs."""
    untouched, side = np.ones_like(x), rng.choice(SIDES)
    for _ in range(rng.integers(2, 6)):
        side = -side
        centre = (side * rng.uniform(0.32, 0.66), rng.uniform(-0.45, 0.40))
        radii = (rng.uniform(0.13, 0.25), rng.uniform(0.13, 0.30))
        mottle = 0.42 * cloud(rng, x.shape, 9) + 0.24 * cloud(rng, x.shape, 18)
        untouched *= 1 - soft(ellipse(x, y, centre, radii, rng.uniform(-0.7, 0.7)) - 0.1 + mottle, 0.75)
    return rng.uniform(*OPACITY_STRENGTH) * (1 - untouched)


def devices(rng: Generator, x: Plane, y: Plane) -> Plane:
    """Return what lies on the patient or the film: wires with electrodes, a catheter, a letter."""
    total = np.zeros_like(x)
    if rng.random() < 0.35:
        for side in SIDES:
            pad = (side * rng.uniform(0.45, 0.75), rng.uniform(-0.5, 0.4))
            wire = curve(pad, (side * rng.uniform(0.2, 1.1), rng.uniform(0.3, 0.7)), (rng.normal(0, 0.4), 1.2))
            total += 0.20 * stroke(x, y, wire, 0.006) + 0.30 * soft(ellipse(x, y, pad, (0.035, 0.035)), 0.3)
    if rng.random() < 0.3:
        side = rng.choice(SIDES)
        line = curve((side * 0.80, -0.55), (side * 0.30, -0.80), (side * 0.08, -0.50))
        total += 0.20 * stroke(x, y, [*line, *curve(line[-1], (-0.09, -0.30), (-0.09, 0.08))[1:]], 0.009)
    if rng.random() < 0.6:
        left, top = rng.choice(SIDES) * 0.80 - 0.03, rng.uniform(-0.88, -0.78)
        letter = [(left, top), (left, top + 0.12), (left + 0.07, top + 0.12)]
        if rng.random() < 0.5:  # an R instead of an L
            bowl = curve((left, top), (left + 0.15, top + 0.03), (left, top + 0.065))
            letter = [(left, top + 0.12), *bowl, (left + 0.08, top + 0.12)]
        total += 0.9 * stroke(x, y, letter, 0.011, 0.012)
    return total


def film(rng: Generator, beam: Plane) -> NDArray[np.uint8]:
    """Turn beam weakening into 8-bit grey, with exposure, contrast, uneven field, grain, perhaps a frame."""
    beam = beam + 0.04 * cloud(rng, beam.shape, 2)
    # Automatic exposure, as in a real machine: without it an opacity would brighten the whole film, and a
    # threshold on the mean grey level would tell the classes apart.
    middle = 0.9 * beam.mean() + rng.normal(0, 0.07)
    grey = 127.5 + 127.5 * np.tanh((beam - middle) / rng.uniform(0.40, 0.64))
    grain = rng.standard_normal(beam.shape)
    grain = 0.6 * grain + 0.4 * (np.roll(grain, 1, axis=0) + np.roll(grain, 1, axis=1))
    grey += rng.uniform(1.0, 3.6) * grain
    if rng.random() < 0.25:
        edge = int(rng.integers(3, 9))
        frame = np.full_like(grey, rng.uniform(4, 24))
        frame[edge:-edge, edge:-edge] = grey[edge:-edge, edge:-edge]
        grey = frame
    rounded: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return rounded


def draw(phantom: Phantom, seed: int) -> NDArray[np.uint8]:
    """Return one phantom's picture, uint8 (height, width); the same arguments give the same pixels."""
    # One stream for the body (the same in every shot), one for the finding, one for the shot. The class only
    # decides whether the finding is added, so it cannot leak into anything else.
    body_rng, haze_rng = (default_rng([seed, phantom.number, stream]) for stream in (1, 2))
    shot_rng = default_rng([seed, phantom.number, 3, phantom.shot])
    height, density = int(shot_rng.integers(200, 281)), shot_rng.uniform(0.85, 1.15)
    shape = (height, int(height * shot_rng.uniform(0.95, 1.15)))
    x, y = pose(shot_rng, shape)
    body, cage, lungs = torso(body_rng, x, y)
    middle = heart(body_rng, x, y)
    air = lungs * (1 - 0.85 * np.clip(middle, 0, 1))
    fat = body_rng.uniform(0.28, 0.40)
    beam = body * (fat + (0.95 - fat) * (1 - air)) + 0.06 * middle
    beam += cage * ribs(body_rng, x, y) + body * shoulders(body_rng, x, y) + air * vessels(body_rng, x, y)
    beam += 0.04 * body * cloud(body_rng, shape, 12)
    if phantom.label == "opacity":
        beam += air * haze(haze_rng, x, y) * density
    return film(shot_rng, beam + devices(shot_rng, x, y))


def all_phantoms(seed: int) -> Iterator[Phantom]:
    """Yield every image to draw: patients with one to three images, each patient in one split and class."""
    rng = default_rng([seed, 0])
    numbers = iter(rng.permutation(999) + 1)  # shuffled, so that a file's name does not tell its class
    for split, images in IMAGES_PER_CLASS.items():
        for label in CLASSES:
            left = images
            while left:
                shots, number = min(int(rng.integers(1, 4)), left), int(next(numbers))
                for shot in range(1, shots + 1):
                    suffix = ".png" if left == images and shot == 1 else ".jpg"
                    yield Phantom(split=split, label=label, number=number, shot=shot, suffix=suffix)
                left -= shots


def write(out: Path, seed: int) -> list[Phantom]:
    """Draw the whole set under `out` with its `groups.csv`; return what was drawn, sorted by path.

    Raises:
        FileExistsError: `out` contains images that this seed does not draw; the two sets would be mixed up.
    """
    phantoms = sorted(all_phantoms(seed), key=lambda phantom: phantom.path)
    present = {path.relative_to(out).as_posix() for split in IMAGES_PER_CLASS for path in out.glob(f"{split}/*/*")}
    others = sorted(present - {phantom.path for phantom in phantoms})
    if others:
        raise FileExistsError(f"{out} contains other images ({others[0]}, …): give --out an empty folder")
    for phantom in phantoms:
        save(phantom, out, seed)
    write_groups(phantoms, out)
    return phantoms


def save(phantom: Phantom, out: Path, seed: int) -> None:
    """Draw one phantom into its place under `out`."""
    path = out / phantom.path
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(phantom, seed)).save(path, quality=80, optimize=True)  # PNG ignores the quality


def write_groups(phantoms: list[Phantom], out: Path) -> None:
    """Write `groups.csv`, which says which patient each picture shows."""
    with open(out / "groups.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "label", "group"])
        rows.writerows([phantom.path, phantom.label, phantom.group] for phantom in phantoms)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw phantoms of chest X-rays (drawings, not medical images).")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: data/)")
    parser.add_argument("--seed", type=int, default=0, help="the committed files are seed 0")
    arguments = parser.parse_args()
    try:
        phantoms = write(arguments.out, arguments.seed)
    except OSError as error:
        raise SystemExit(f"draw_phantoms: {error}") from error
    print(f"drew {len(phantoms)} phantoms of {len({p.group for p in phantoms})} patients under {arguments.out}")


if __name__ == "__main__":
    main()

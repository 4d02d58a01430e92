"""The search space of a sweep: lists and ranges of settings, and the order of their combinations."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import SpecError
from xfeat.featurize.keyword_settings import spec_from
from xfeat.featurize.specs import POOLINGS, require
from xfeat.featurize.text import quote
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.sweep.trials import HEAD_SETTINGS, POOLING, RANKINGS, SETTINGS, Settings, TrialSpec

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache

# A range that spans more than this factor is sampled logarithmically.
_LOGARITHMIC = 10.0
_RANGE = ".."
SPREAD, OPTUNA = SAMPLERS = ("spread", "optuna")
# Attempts to draw enough different points: values are rounded, so a narrow range has few.
_DRAWS = 16


@dataclass(frozen=True)
class Range:
    """All values from ``low`` to ``high``, sampled evenly, or logarithmically if they are far apart."""

    low: float
    high: float

    def __post_init__(self) -> None:
        require(self.low < self.high, "empty range", expected="LOW..HIGH", found=str(self))

    def __str__(self) -> str:
        return f"{_number(self.low)}{_RANGE}{_number(self.high)}"

    def at(self, share: float) -> float:
        """Return the value at a fraction, 0 to 1, of the range."""
        if self.logarithmic:
            return self.rounded(self.low * math.exp(share * math.log(self.high / self.low)))
        return self.rounded(self.low + share * (self.high - self.low))

    @property
    def logarithmic(self) -> bool:
        """Whether it is sampled logarithmically."""
        return self.low > 0 and self.high / self.low > _LOGARITHMIC

    def rounded(self, value: float) -> float:
        """Round to three digits, so that the value is easy to type, within the range."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)


Axis = tuple[Any, ...] | Range


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep.

    Attributes:
        axes: values of some of :data:`SETTINGS`; the others have their defaults, and the pooling is the cache's.
        seeds: number of seeds with which each combination is trained.
        first_seed: also used to draw combinations, and the split if the cache has none.
        trials: maximum number of combinations; ``None`` for all. A larger number starts with the same combinations.
        sampler: ``spread``, or ``optuna``, which proposes combinations from earlier results.
        rank: the validation metric that ranks combinations, by its mean over the seeds.
    """

    axes: dict[str, Axis]
    seeds: int = 1
    first_seed: int = 0
    trials: int | None = None
    sampler: str = SPREAD
    rank: str = "loss"

    def __post_init__(self) -> None:
        unknown = set(self.axes) - set(SETTINGS)
        require(not unknown, "unknown setting", expected=", ".join(SETTINGS), found=unknown)
        require(self.seeds >= 1, "too few seeds", expected="1 or more", found=self.seeds)
        last = self.first_seed + self.seeds - 1
        require(self.first_seed >= 0 and last < 2**32, "seed out of range", expected="0 to 4294967295", found=last)
        require(self.trials is None or self.trials >= 1, "too few trials", expected="1 or more", found=self.trials)
        require(self.rank in RANKINGS, "unknown metric", expected=" or ".join(RANKINGS), found=self.rank)
        require(self.sampler in SAMPLERS, "unknown sampler", expected=" or ".join(SAMPLERS), found=self.sampler)
        if self.trials is None and self.sampler == OPTUNA:
            raise SpecError("--sampler optuna requires --trials", fix="limit the number of trials: --trials 50")
        if self.trials is None and (ranges := [name for name, axis in self.axes.items() if isinstance(axis, Range)]):
            raise SpecError(
                f"--trials is required for a continuous range of {', '.join(ranges)}",
                fix="limit the number of trials: --trials 50",
            )
        for name, axis in self.axes.items():
            values = (axis.low, axis.high) if isinstance(axis, Range) else axis
            require(bool(values), f"no value of {name}", expected="one or more", found=values)
            for value in values:
                TrialSpec.of({name: value}, self.first_seed)

    def for_cache(self, cache: FeatureCache) -> SweepSpec:
        """Return the sweep with the pooling of the cache, if no pooling is set.

        Raises:
            MismatchError: if the cache does not hold the features of a pooling.
        """
        from xfeat.head.data.pooling import chosen_pooling

        # Last, so that naming the default pooling draws the same combinations.
        axes = {name: axis for name, axis in self.axes.items() if name != POOLING}
        spec = replace(self, axes={**axes, POOLING: self.axes.get(POOLING, (cache.spec.pooling,))})
        for pooling in spec.poolings:
            chosen_pooling(cache, pooling)
        return spec

    @property
    def poolings(self) -> list[str]:
        """The poolings to try, the one with most features last."""
        axis = self.axes[POOLING]
        assert isinstance(axis, tuple)  # a pooling is never a range
        return [pooling for pooling in POOLINGS if pooling in axis]

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that identify the sweep: all except ``trials``, which may be increased later."""
        axes = {name: str(axis) if isinstance(axis, Range) else list(axis) for name, axis in self.axes.items()}
        facts = {"axes": axes, "seeds": self.seeds, "first_seed": self.first_seed, "rank": self.rank}
        if self.sampler != SPREAD:
            facts["sampler"] = self.sampler
        plain: dict[str, Any] = json.loads(json.dumps(facts))  # as read back from sweep.json
        return plain

    def trial_specs(self) -> Iterator[TrialSpec]:
        """Yield all trials: all seeds of the first combination, then of the second, and so on."""
        for settings in self.combinations():
            yield from self.with_seeds(settings)

    @property
    def planned(self) -> int:
        """Total number of trials."""
        return self.seeds * sum(1 for _ in self.combinations())

    def with_seeds(self, settings: Settings) -> Iterator[TrialSpec]:
        """Yield a combination once with each seed."""
        for seed in range(self.first_seed, self.first_seed + self.seeds):
            yield TrialSpec.of(settings, seed)

    def combinations(self) -> Iterator[Settings]:
        """Yield up to ``trials`` different combinations, of a grid or spread over ranges.

        Ranges may give fewer, since values are rounded to three digits.
        """
        lists = [axis for axis in self.axes.values() if not isinstance(axis, Range)]
        if len(lists) < len(self.axes):
            yield from self._sample()
            return
        import numpy as np

        grid = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*lists)]
        # Always in the same order, so that a sweep of a part of the grid can be extended to more of it.
        order = np.random.default_rng(self.first_seed).permutation(len(grid))
        yield from (grid[number] for number in order[: self.trials])

    def _sample(self) -> Iterator[Settings]:
        """Spread trials over ranges and lists with a scrambled Halton sequence; every prefix is spread too."""
        import numpy as np
        from scipy.stats.qmc import Halton

        assert self.trials is not None
        points = Halton(len(self.axes), rng=np.random.default_rng(self.first_seed))
        found: dict[tuple[Any, ...], None] = {}
        for _ in range(_DRAWS):
            for row in points.random(self.trials):
                point = (
                    axis.at(share) if isinstance(axis, Range) else axis[int(share * len(axis))]
                    for axis, share in zip(self.axes.values(), row, strict=True)
                )
                found[tuple(point)] = None
            if len(found) >= self.trials:
                break
        for values in list(found)[: self.trials]:
            yield dict(zip(self.axes, values, strict=True))


def parse_axis(name: str, text: str) -> Axis:
    """Parse the values of a setting: ``1e-4,1e-3``, ``1e-4..1e-2``, ``512,128;256;linear``.

    Raises:
        ValueError: if they are malformed.
    """
    if name == "hidden":
        return tuple(dict.fromkeys(parse_widths(part) for part in text.split(";")))
    kind = type(TrialSpec(HeadSpec(), TrainSpec()).settings[name])
    if _RANGE in text:
        if kind is not float:
            raise ValueError(f"{name} takes no range: list its values")
        low, high = text.split(_RANGE)
        return Range(_value(kind, low), _value(kind, high))
    return tuple(dict.fromkeys(_value(kind, part) for part in text.split(",")))


def as_axis(name: str, values: Any) -> Axis:
    """Return the values of a setting as Python programs give them: one, a list of them, a range, or the text of one.

    A sequence of numbers is one value of ``hidden``, and several of any other setting.

    Raises:
        SpecError: if a value is of another type or out of range.
    """
    if isinstance(values, Range):
        return values
    if isinstance(values, str):
        try:
            return parse_axis(name, values)
        except ValueError as error:
            raise SpecError(f"values of {name} cannot be read", expected=str(error), found=quote(values)) from error
    listed = values.tolist() if hasattr(values, "tolist") else values
    several = isinstance(listed, list | tuple) and not (
        name == "hidden" and all(isinstance(one, int) for one in listed)
    )
    if name == POOLING:
        return tuple(listed if several else (listed,))
    owner: type[HeadSpec | TrainSpec] = HeadSpec if name in HEAD_SETTINGS else TrainSpec
    return tuple(getattr(spec_from(owner, {name: value}), name) for value in (listed if several else [listed]))


def _value(kind: type[Any], text: str) -> Any:
    try:
        return kind(text.strip())
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{text!r} is not {what}: list values as in 1,2,3, or fractions as in 1e-4..1e-2") from error


def parse_widths(text: str) -> tuple[int, ...]:
    """Parse the widths of the hidden layers: ``512,128``, or ``linear`` for none."""
    return () if text.strip() in ("linear", "none", "") else tuple(_value(int, width) for width in text.split(","))


# Tried if not given: the settings that matter most, around the tutorial's values.
DEFAULT_AXES: dict[str, Axis] = {
    "lr": (1e-4, 5e-4, 1e-3),
    "hidden": ((512, 128), (256,), ()),
    "dropout": (0.2, 0.4),
}


def axis_text(name: str, axis: Axis) -> str:
    """Write an axis in the form that :func:`parse_axis` reads."""
    if isinstance(axis, Range):
        return str(axis)
    if name == "hidden":
        return ";".join(",".join(map(str, widths)) or "linear" for widths in axis)
    return ",".join(_number(value) if isinstance(value, float) else str(value) for value in axis)


def _number(value: float) -> str:
    """Write a number in the shortest form that is read back exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)

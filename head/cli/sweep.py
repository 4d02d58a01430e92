"""``xhead sweep``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
import xfeat.head.cli.options as options
from xfeat.featurize.console import (
    NOT_NEGATIVE,
    Decorator,
    Printed,
    combined,
    json_option,
    progress_bars,
    spec_option,
)
from xfeat.featurize.specs import DEFAULT_CACHE
from xfeat.head.reports.formatting import interval
from xfeat.head.specs import DEFAULT_RUNS, MemorySpec
from xfeat.head.sweep.space import DEFAULT_AXES, SAMPLERS, Axis, SweepSpec, axis_text, parse_axis
from xfeat.head.sweep.trials import POOLING, RANKINGS, SETTINGS, TrialSpec

if TYPE_CHECKING:
    from xfeat.head.sweep.ranking import SweepResult

_LEADERS = 5


def _axis(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Axis | None:
    if text is None:
        return None
    assert parameter.name is not None
    try:
        return parse_axis(parameter.name, text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _axis_option(name: str) -> Decorator:
    default = DEFAULT_AXES.get(name) or (TrialSpec.of({}, seed=0).settings[name],)
    shown = "the cache's" if name == POOLING else axis_text(name, default)
    text = f"As in xhead train.  [default: {shown}]"
    return click.option(f"--{name.replace('_', '-')}", name, callback=_axis, metavar="VALUES", help=text)


@click.command()
@options.features_option
@options.runs_option
@click.option("--name", help="Name of the sweep.  [default: the same for the same cache and settings]")
@combined(*map(_axis_option, SETTINGS))
@spec_option(SweepSpec, "seeds", int, "Number of seeds per combination.")
@spec_option(SweepSpec, "first_seed", int, "First seed; also used to draw combinations.", flag="--seed")
@spec_option(SweepSpec, "trials", int, "Try N combinations, drawn at random.  [default: all]", metavar="N")
@spec_option(
    SweepSpec, "sampler", click.Choice(SAMPLERS), "optuna proposes combinations from earlier results, a few at a time."
)
@spec_option(SweepSpec, "rank", click.Choice(RANKINGS), "Validation metric to rank by.")
@click.option(
    "--time-limit",
    type=NOT_NEGATIVE,
    metavar="S",
    help="Start no more heads after S seconds; started ones are finished, and some are always trained.",
)
@click.option(
    "--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a GPU where there is one. Not run on a GPU yet."
)
@options.memory_option
@options.tracking_options
@json_option
def sweep(
    features: Path, runs: Path, name: str | None, time_limit: float | None, device: str, **settings: Any
) -> Printed:
    """Train many heads at once and write the best one as a run.

    VALUES are a list, such as 1e-4,5e-4,1e-3 for --lr or "512,128;256;linear" for --hidden, or a range, such as
    1e-4..1e-2, which requires --trials. Trials are ranked on the validation images; only the best one is tested on the
    test images. The same command resumes an interrupted sweep.
    """
    with progress_bars() as progress:
        result = xfeat.sweep(
            *(features, runs), name=name, time_limit=time_limit, device=device, progress=progress, **settings
        )
    return _as_json(result), _as_text(result, features, settings["memory_mb"])


def _as_json(result: SweepResult) -> dict[str, Any]:
    best, run = result.combinations[0], result.run
    assert run is not None
    return {
        "sweep": str(result.folder),
        "state": result.state,
        "planned": result.planned,
        "trials": len(result.trials),
        "diverged": result.diverged,
        "seconds": round(result.seconds, 3),
        "rank": result.spec.rank,
        "valid_images": result.valid_images,
        "leaders": [
            {
                "settings": combination.settings,
                "trials": [trial.number for trial in combination.trials],
                "valid": combination.metrics,
            }
            for combination in result.combinations[:_LEADERS]
        ],
        "best_trial": best.best_trial.number,
        "standard_error": result.standard_error,
        "within_standard_error": result.within_standard_error,
        "run": str(run.folder),
        "metrics": run.metrics,
    }


def _as_text(result: SweepResult, features: Path, memory_mb: float) -> list[str]:
    from xfeat.head.sweep.ranking import setting_text

    seeds = f", {result.spec.seeds} seeds each" if result.spec.seeds > 1 else ""
    lines = [
        f"{result.folder}: {len(result.trials)} of {result.planned} trials{seeds}, {result.state}"
        + (f"; {result.diverged} diverged" if result.diverged else "")
    ]
    if result.state != "complete":
        lines.append("  run the same command again to resume")
    lines.append(f"on {result.valid_images} validation images, the best by {result.spec.rank.replace('_', ' ')}:")
    lines += [
        f"  {place}. {setting_text(result.spec, combination)}: {combination.metrics_text}"
        for place, combination in enumerate(result.combinations[:_LEADERS], 1)
    ]
    if (count := len(result.combinations)) > 1:  # picking the best of many is biased
        lines += [
            f"the best of {count} combinations; within one standard error of it: {result.within_standard_error} "
            f"({100 * result.standard_error:.1f} points on {result.valid_images} images).",
            "  The order within that range is mostly chance, and the metrics of the best are optimistically biased.",
            "  To test it on images that were not used to choose it:",
            f"  {_crossval(result, features, memory_mb)}",
        ]
    assert result.run is not None
    lines.append(f"best run: {result.run.folder} (trial {result.combinations[0].best_trial.number})")
    if test := result.run.metrics.get("test"):
        lines.append(
            f"test: {test['images']} images, accuracy {test['accuracy']:.4f} ({interval(test['accuracy_interval'])}), "
            f"loss {test['loss']:.4f}"
        )
    return lines


def _crossval(result: SweepResult, features: Path, memory_mb: float) -> str:
    """Write the command that tests the best combination."""
    defaults = TrialSpec.of({}, seed=0).settings
    others = {
        "--features": (str(features), DEFAULT_CACHE),
        "--runs": (str(result.folder.parent), DEFAULT_RUNS),
        "--memory-mb": (f"{memory_mb:g}", f"{MemorySpec().memory_mb:g}"),
        "--seed": (str(result.spec.first_seed), str(SweepSpec(axes={}).first_seed)),
    }
    words = [word for option, (value, default) in others.items() if value != default for word in (option, value)]
    for name, value in result.combinations[0].settings.items():
        if name == POOLING or value != defaults[name]:
            words += [f"--{name.replace('_', '-')}", axis_text(name, (value,))]
    return shlex.join(["xhead", "crossval", *words])

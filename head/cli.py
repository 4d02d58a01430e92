"""The command ``xhead``. Each command parses, calls one library function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurize.console import Commands, default_of, json_option
from head.specs import CLASS_WEIGHTS, HeadSpec, TrainSpec

if TYPE_CHECKING:
    from head.run import Run

DEFAULT_CACHE = "features.h5"
DEFAULT_RUNS = "runs"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat")
def main() -> None:
    """Train small classifiers on cached features, in seconds."""


def _widths(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    if text in ("", "linear", "none"):
        return ()
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError as error:
        raise click.BadParameter("widths separated by commas, such as 512,128, or linear") from error


@main.command()
@click.option(
    "--features", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True, help="Cache to train on."
)
@click.option("--name", help="Name of the run.  [default: the time]")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=DEFAULT_RUNS, show_default=True, help="Folder of all runs."
)
@click.option("--epochs", type=int, default=default_of(TrainSpec, "epochs"), show_default=True, help="Passes.")
@click.option("--lr", type=float, default=default_of(TrainSpec, "lr"), show_default=True, help="Adam's learning rate.")
@click.option(
    "--batch-size", type=int, default=default_of(TrainSpec, "batch_size"), show_default=True, help="Rows a step."
)
@click.option(
    "--weight-decay",
    type=float,
    default=default_of(TrainSpec, "weight_decay"),
    show_default=True,
    help="Adam's L2 penalty.",
)
@click.option(
    "--hidden",
    default=",".join(map(str, default_of(HeadSpec, "hidden"))),
    show_default=True,
    callback=_widths,
    help="Widths of the hidden layers, or linear for none.",
)
@click.option(
    "--dropout",
    type=float,
    default=default_of(HeadSpec, "dropout"),
    show_default=True,
    help="Dropout before the last layer.",
)
@click.option(
    "--seed", type=int, default=default_of(TrainSpec, "seed"), show_default=True, help="Same seed, same bits."
)
@click.option(
    "--class-weight",
    type=click.Choice(CLASS_WEIGHTS),
    default=default_of(TrainSpec, "class_weight"),
    show_default=True,
    help="balanced weighs classes by the inverse of their frequency.",
)
@json_option
def train(
    features: Path, name: str | None, runs: Path, hidden: tuple[int, ...], dropout: float, **optimisation: Any
) -> tuple[dict[str, Any], str]:
    """Train one head and write its run folder with metrics, predictions and a report.

    The epoch with the lowest validation loss is kept; the test split is looked at once, afterwards.
    """
    head_spec, train_spec = HeadSpec(hidden=hidden, dropout=dropout), TrainSpec(**optimisation)
    from featurize.cache import FeatureCache

    cache = FeatureCache.open(features)
    from head.train import train_run

    run = train_run(cache, head_spec, train_spec, runs=runs, name=name)
    return _as_json(run), _as_text(run)


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "classes": list(run.class_names),
        "epochs": run.facts["epochs"],
        "best_epoch": run.facts["best_epoch"],
        "metrics": run.metrics,
    }


def _as_text(run: Run) -> str:
    part = "test" if "test" in run.metrics else "valid"
    metrics = run.metrics[part]
    auc = "–" if metrics["auc"] is None else f"{metrics['auc']:.4f}"
    lines = [
        f"{run.folder}: best epoch {run.facts['best_epoch']} of {run.facts['epochs']}",
        f"{part}: accuracy {metrics['accuracy']:.4f}, AUC {auc}, loss {metrics['loss']:.4f}, {metrics['images']} images",
        *_confusion_lines(run.class_names, metrics["confusion_matrix"]),
    ]
    for name, row in metrics["classes"].items():
        values = ", ".join(f"{key} {_percent(row[key])}" for key in ("sensitivity", "specificity"))
        lines.append(f"{name}: {values}")
    lines.append(f"report: {run.folder / 'report.html'}")
    return "\n".join(lines)


def _confusion_lines(names: tuple[str, ...], matrix: list[list[int]]) -> list[str]:
    width = max(len(name) for name in (*names, "true \\ predicted"))
    lines = ["true \\ predicted".ljust(width) + "".join(f"  {name:>8}" for name in names)]
    for name, row in zip(names, matrix, strict=True):
        lines.append(
            name.ljust(width)
            + "".join(f"  {count:>{max(8, len(other))}}" for count, other in zip(row, names, strict=True))
        )
    return lines


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"

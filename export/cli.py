"""The command ``xexport``. Each command parses, calls one library function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.cli_quantize import quantize
from export.cli_triton import triton
from export.specs import DEFAULT_MODEL, DEFAULT_RUNS, OPSETS, BenchSpec, ExportSpec, VerifySpec
from featurize.console import Commands, comma_list, default_of, json_option, progress_bar

if TYPE_CHECKING:
    from export.bench import Speed
    from export.export import Export
    from export.overlay import Explanation
    from export.parity import Checks
    from export.verify import Verification

_CHECKS = {
    "full": "full model",
    "resized_inside": "full model on files of their own size",
    "core": "core model",
}


_BATCHES = ",".join(map(str, default_of(BenchSpec, "batches")))
_require_cuda = click.option(
    "--require-cuda", is_flag=True, help="Run on the GPU, and fail if any of the network would run on the CPU."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat")
def main() -> None:
    """Turn a trained run into one ONNX file that is proven to answer as the run does."""


@main.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=DEFAULT_MODEL, show_default=True, help="Model to write."
)
@click.option("--weights", type=click.Path(path_type=Path), help="The backbone's weights.  [default: those of the run]")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the images.  [default: the one that was featurized]"
)
@click.option(
    "--check-images",
    type=click.IntRange(min=1),
    default=default_of(ExportSpec, "max_check_images"),
    show_default=True,
    help="At most so many test images are compared.",
)
@click.option(
    "--allow-changed-cache",
    is_flag=True,
    help="Export although features.h5 has changed since the run; then without the distance (as with --no-ood).",
)
@click.option(
    "--ood/--no-ood",
    default=True,
    show_default=True,
    help="Measure how far an image is from the training images; needs features.h5.",
)
@click.option(
    "--opset",
    type=click.Choice([str(number) for number in OPSETS]),
    default=str(default_of(ExportSpec, "opset")),
    show_default=True,
    help="Of the core model; 13 for older runtimes.",
)
@json_option
def onnx(
    run: Path | None,
    output: Path,
    weights: Path | None,
    data: Path | None,
    check_images: int,
    allow_changed_cache: bool,
    ood: bool,
    opset: str,
) -> tuple[dict[str, Any], str]:
    """Export RUN (by default the newest in runs/) to an ONNX model.

    Beside it go the portable form (.core.onnx) and the certificate: the run's test images through Pillow and torch
    against the same files through the models. If an answer differs, nothing is written.
    """
    from head.run import latest_run, open_run

    opened = open_run(run or latest_run(Path(DEFAULT_RUNS)))
    from export.export import export_run

    spec = ExportSpec(
        weights_file=weights,
        data=data,
        max_check_images=check_images,
        allow_changed_cache=allow_changed_cache,
        ood=ood,
        opset=int(opset),
    )
    with progress_bar("checking", "images") as progress:
        done = export_run(opened, output, spec, progress)
    return _as_json(done, opened.name), _as_text(done, opened.name)


def _as_json(done: Export, run: str) -> dict[str, Any]:
    from export.parity import checks_as_json

    return {
        "run": run,
        "model": str(done.files["full"]),
        "core_model": str(done.files["core"]),
        "certificate": str(done.certificate),
        "against_torch": checks_as_json(done.checks),
        "against_training": done.training.to_dict(),
        "ood_threshold": done.metadata.ood_threshold,
    }


def _as_text(done: Export, run: str) -> str:
    lines = [f"{done.files['full']} and {done.files['core']} written from run {run}"]
    lines += _agreements(done.checks, "torch")
    training = done.training
    lines.append(
        f"full model against the training's own predictions: largest difference {training.max_difference:.1e}, "
        f"changed decisions {training.changed_decisions}"
    )
    return "\n".join([*lines, f"certificate: {done.certificate}"])


def _agreements(checks: Checks, reference: str) -> list[str]:
    return [
        f"{_CHECKS[name]} against {reference} on {agreement.images} images, {provider}: largest difference "
        f"{agreement.max_difference:.1e}, changed decisions {agreement.changed_decisions}"
        for provider, agreements in checks.items()
        for name, agreement in agreements.items()
    ]


@main.command()
@click.argument("model", type=click.Path(path_type=Path), default=DEFAULT_MODEL)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the images, to compare answers as well.")
@click.option("--run", type=click.Path(path_type=Path), help="Run it should be of: torch then answers again.")
@click.option("--weights", type=click.Path(path_type=Path), help="The backbone's weights.  [default: those of the run]")
@click.option("--certificate", type=click.Path(path_type=Path), help="[default: the one beside MODEL]")
@_require_cuda
@json_option
def verify(
    model: Path,
    data: Path | None,
    run: Path | None,
    weights: Path | None,
    certificate: Path | None,
    require_cuda: bool,
) -> tuple[dict[str, Any], str]:
    """Check that MODEL is the file that was proven, and that it still answers as it was proven to.

    Its bytes are held against the certificate. With --data, the images of the certificate are answered again and
    compared with what torch said then; with --run, torch runs again. Exit code 1 if anything differs.
    """
    from export.verify import verify_model
    from head.run import open_run

    opened = open_run(run) if run is not None else None
    spec = VerifySpec(data=data, weights_file=weights, certificate=certificate, require_cuda=require_cuda)
    with progress_bar("verifying", "images") as progress:
        done = verify_model(model, spec, run=opened, progress=progress)
    return done.to_dict(), _verified(done)


def _verified(done: Verification) -> str:
    lines = []
    if done.certificate is not None:
        lines.append(f"{done.model}: the bytes that {done.certificate} is for")
    if done.run is not None:
        lines.append(f"{done.model}: classes, settings and head of run {done.run}")
    if done.changed_images:
        lines.append(f"{done.changed_images} images have changed since the export and were left out")
    lines += _agreements(done.checks, done.reference or "")
    if done.reference is None:
        lines.append("answers were not compared: name the folder of the images with --data DIR")
    return "\n".join(lines)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), default=DEFAULT_MODEL)
@json_option
def info(model: Path) -> tuple[dict[str, Any], str]:
    """Show what is inside MODEL: classes, settings, fingerprints, threshold, size, operators."""
    from export.model_file import describe_model

    facts = describe_model(model)
    return facts, _described(facts)


def _described(facts: dict[str, Any]) -> str:
    from featurize.specs import FeatureSpec

    decides = f"{facts['positive']} from {facts['threshold']:.4g}" if facts["positive"] else "the most probable class"
    operators = ", ".join(f"{count} {name}" for name, count in facts["operators"].items())
    rows = {
        "model": f"{facts['model']}, {facts['bytes'] / 1e6:.1f} MB, {facts['parameters'] / 1e6:.2f} million numbers",
        "form": f"{facts['variant']}, {facts['precision']}, opset {facts['opset']}",
        "classes": ", ".join(facts["class_names"]),
        "decides": decides,
        "temperature": f"{facts['temperature']:.4g}",
        "foreign from": "not measured" if facts["ood_threshold"] is None else f"{facts['ood_threshold']:.4g}",
        "features": FeatureSpec.from_dict(facts["feature_spec"]).describe(),
        "run": facts["run"],
        "fingerprints": f"features {facts['feature_fingerprint']}, cache {facts['cache_sha256'][:16]}, "
        f"head {facts['head_sha256'][:16]}, file {facts['sha256'][:16]}",
        "certificate": facts["certificate"],
        "inputs": _shapes(facts["inputs"]),
        "outputs": _shapes(facts["outputs"]),
        "operators": operators,
    }
    return "\n".join(f"{name + ':':14}{text}" for name, text in rows.items())


def _shapes(tensors: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['name']} {each['type']} {each['shape']}" for each in tensors).replace("'", "")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGES…")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="explained",
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--class", "shown", metavar="CLASS", help="Show what speaks for CLASS.  [default: the one decided on]")
@_require_cuda
@json_option
def explain(
    model: Path, images: tuple[Path, ...], output: Path, shown: str | None, require_cuda: bool
) -> tuple[dict[str, Any], str]:
    """Show what MODEL looked at: each image with its heatmap (Grad-CAM) over it.

    IMAGES are files, and folders of them. Bright regions raised the score of the class shown; a heatmap says where the
    last layer of the network responded, not why, and is no evidence of a finding.
    """
    from dataclasses import asdict

    from export.model_file import open_model
    from export.overlay import explain_images

    opened = open_model(model, device="cuda" if require_cuda else "cpu")
    with progress_bar("explaining", "images") as progress:
        done, skipped = explain_images(opened, images, output, shown=shown, progress=progress)
    for path, reason in skipped:
        click.echo(f"warning: skipped {path}: {reason}", err=True)
    lines = [f"{each.picture}  {each.shown} {each.probability:.4f}{_foreign(each)}" for each in done]
    facts = {
        "model": str(model),
        "explanations": [asdict(each) for each in done],
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
    }
    return facts, "\n".join(lines)


def _foreign(each: Explanation) -> str:
    return "  unlike the training images" if each.foreign else ""


@main.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="[MODEL]…")
@click.option("--run", type=click.Path(path_type=Path), help="Run whose torch model is measured for comparison.")
@click.option("--batch", "batches", default=_BATCHES, show_default=True, metavar="A,B", help="Images a call.")
@click.option("--threads", metavar="A,B", help="Threads of the network.  [default: 1 and all cores]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=default_of(BenchSpec, "seconds"),
    show_default=True,
    help="How long each line is measured.",
)
@_require_cuda
@json_option
def bench(
    models: tuple[Path, ...], run: Path | None, batches: str, threads: str | None, seconds: float, require_cuda: bool
) -> tuple[dict[str, Any], str]:
    """Measure how fast models answer: latency and images a second, by batch size and threads.

    Without MODEL, model.onnx. With --run, eager torch runs the same batches in between, and the last column says how
    many times as many images a second the model answers.
    """
    from export.bench import bench_models, count_lines
    from featurize.cores import cores
    from head.run import open_run

    spec = BenchSpec(
        batches=_numbers(batches, "--batch"),
        threads=_numbers(threads, "--threads") if threads else tuple(sorted({1, cores()})),
        seconds=seconds,
        device="cuda" if require_cuda else "cpu",
    )
    files = models or (Path(DEFAULT_MODEL),)
    opened = open_run(run) if run is not None else None
    rows: list[Speed] = []
    with progress_bar("measuring", "lines") as progress:
        for row in bench_models(files, spec, opened):
            rows.append(row)
            progress(len(rows), count_lines(len(files), spec, opened))
    return {"rows": [row.to_dict() for row in rows]}, _speeds(rows)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = comma_list(text) or []
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text}: whole numbers from 1, with commas in between", param_hint=option)
    return tuple(int(part) for part in parts)


def _speeds(rows: list[Speed]) -> str:
    lines = [
        f"{'what':24} {'threads':>7} {'batch':>5} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} "
        f"{'images/s':>9} {'× torch':>8}"
    ]
    for row in rows:
        ratio = "" if row.against_torch is None else f"{row.against_torch:.2f}"
        lines.append(
            f"{row.what:24} {row.threads:7} {row.batch:5} {row.p50_ms:8.1f} {row.p95_ms:8.1f} {row.p99_ms:8.1f} "
            f"{row.images_per_second:9.1f} {ratio:>8}"
        )
    return "\n".join(line.rstrip() for line in lines)


main.add_command(quantize)
main.add_command(triton)

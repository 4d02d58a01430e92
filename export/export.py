"""From a run folder to ``model.onnx``, ``model.core.onnx`` and their certificate: all three, or none."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from export.fused import FusedModel
from export.metadata import VARIANTS, ModelMetadata
from export.onnx_file import finish, trace
from export.parity import (
    TOLERANCE,
    Agreement,
    compare,
    load_images,
    onnx_probabilities,
    open_sessions,
    torch_probabilities,
)
from featurize.atomic import output_error
from featurize.cache import FeatureCache, library_versions
from featurize.errors import DataError, MismatchError, ParityError, WeightsError, XfeatError
from featurize.network import load_backbone
from featurize.preprocess import Pixels
from featurize.weights import Weights, find_weights, sha256_of
from head.run import PROBABILITY_PREFIX, Run

logger = logging.getLogger(__name__)

FORMAT = "xfeat.certificate"
SCHEMA_VERSION = 1
MAX_CHECK_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an export wrote.

    Attributes:
        files: variant to path.
        certificate: path of the certificate.
        checks: provider to variant to agreement with torch.
        training: agreement of the full model with the probabilities that the training noted.
    """

    files: dict[str, Path]
    certificate: Path
    checks: dict[str, dict[str, Agreement]]
    training: Agreement

    @property
    def worst(self) -> Agreement:
        """Return the check with the largest difference."""
        every = [agreement for variants in self.checks.values() for agreement in variants.values()]
        return max([*every, self.training], key=lambda agreement: agreement.max_difference)


def export_run(
    run: Run,
    output: Path,
    *,
    weights_file: Path | None = None,
    data: Path | None = None,
    max_check_images: int = MAX_CHECK_IMAGES,
    allow_changed_cache: bool = False,
) -> Export:
    """Export a run and prove on its own test images that the files answer as the trained model does.

    Args:
        run: the trained head.
        output: the full model; ``.core.onnx`` and ``.certificate.json`` go beside it.
        weights_file: the backbone's weights; by default the file that was used, or where ``xfeat`` finds them.
        data: the folder of the images; by default the one that was featurized.
        max_check_images: at most so many test images are compared.
        allow_changed_cache: export although the cache has been made anew with other settings since.

    Raises:
        MismatchError: if the backbone's weights or the cache differ from those of the run.
        DataError: if none of the images can be read for the check.
        ParityError: if an answer differs; no file is left or replaced.
        OutputError: if the files cannot be written.
    """
    _check_cache(run, allow_changed_cache)
    model = FusedModel(
        load_backbone(run.feature_spec, _backbone_weights(run, weights_file)),
        run.load_head(),
        run.feature_spec.preprocess,
        float(run.facts.get("temperature", 1.0)),
    )
    predictions = _predictions_to_check(run, max_check_images)
    root = data or Path(run.cache["data_root"])
    kept, pixels = load_images(root, list(predictions), run.feature_spec.preprocess)
    if not kept:
        raise DataError(
            "none of the images of the run can be read, so the model cannot be checked",
            path=root,
            expected=f"files such as {next(iter(predictions))}",
            mend="name the folder of the images with --data DIR",
        )
    if len(kept) < len(predictions):
        logger.warning("%d of %d images can no longer be read", len(predictions) - len(kept), len(predictions))
    targets = {"full": output, "core": output.with_suffix(".core.onnx")}
    certificate = output.with_suffix(".certificate.json")
    with _together([*targets.values(), certificate]) as folder:
        core = trace(model, run.feature_spec.preprocess.size)
        for variant in VARIANTS:
            proto = finish(core, _metadata(run, variant), variant)
            (folder / targets[variant].name).write_bytes(proto.SerializeToString(deterministic=True))
        checks = _check(model, {variant: folder / path.name for variant, path in targets.items()}, pixels)
        noted = np.array([predictions[path] for path in kept], np.float32)
        training = _check_training(folder / output.name, noted, pixels)
        result = Export(files=targets, certificate=certificate, checks=checks, training=training)
        _require_agreement(result)
        (folder / certificate.name).write_text(json.dumps(_certificate(run, result, folder), indent=2) + "\n")
    return result


def _check_cache(run: Run, allow_changed: bool) -> None:
    path = Path(run.cache["path"])
    if allow_changed or not path.exists():
        return
    spec = FeatureCache.open(path).spec
    if spec.fingerprint != run.feature_spec.fingerprint:
        raise MismatchError(
            "the cache has been made anew with other settings since the run",
            path=path,
            expected=run.feature_spec.describe(),
            found=spec.describe(),
            mend="train on it with xhead train, or export this run as it is with --allow-changed-cache",
        )


def _backbone_weights(run: Run, file: Path | None) -> Weights:
    name, wanted = run.feature_spec.backbone, run.feature_spec.weights_sha256
    used = Path(run.cache["weights_path"])
    if file is None and used.is_file() and sha256_of(used) == wanted:
        return Weights(name, used, wanted)
    try:
        found = find_weights(name, file=file)
    except WeightsError as error:
        raise WeightsError(
            f"the weights of {name} that the run was made with are gone", path=used, found=error.what, mend=error.mend
        ) from error
    if found.sha256 != wanted:
        raise MismatchError(
            "other backbone weights than those of the run",
            path=found.path,
            expected=f"SHA-256 {wanted[:16]}…",
            found=f"{found.sha256[:16]}…",
            mend="name the right file with --weights FILE",
        )
    return found


def _predictions_to_check(run: Run, limit: int) -> dict[str, list[float]]:
    """Return path to noted probabilities of the test images (of all without a test), thinned to ``limit``."""
    rows = run.predictions()
    rows = [row for row in rows if row["split"] == "test"] or rows
    step = max(1, -(-len(rows) // limit))
    return {row["path"]: [float(row[PROBABILITY_PREFIX + name]) for name in run.class_names] for row in rows[::step]}


def _metadata(run: Run, variant: str) -> ModelMetadata:
    return ModelMetadata(
        variant=variant,
        class_names=run.class_names,
        feature_spec=run.feature_spec,
        temperature=float(run.facts.get("temperature", 1.0)),
        cache_sha256=run.cache["content_sha256"],
        head_sha256=run.head_sha256,
        run=run.name,
        metrics=run.metrics,
    )


def _check(model: FusedModel, files: dict[str, Path], pixels: Pixels) -> dict[str, dict[str, Agreement]]:
    expected = torch_probabilities(model, pixels)
    checks: dict[str, dict[str, Agreement]] = {}
    for variant, file in files.items():
        for provider, session in open_sessions(file).items():
            found = onnx_probabilities(session, pixels, variant)
            checks.setdefault(provider, {})[variant] = compare(expected, found)
    return checks


def _check_training(file: Path, noted: np.ndarray, pixels: Pixels) -> Agreement:
    session = next(iter(open_sessions(file).values()))
    return compare(noted, onnx_probabilities(session, pixels, "full"))


def _require_agreement(result: Export) -> None:
    if not all(a.holds for variants in result.checks.values() for a in variants.values()):
        worst = result.worst
        raise ParityError(
            "the exported model does not answer as torch does; nothing was written",
            path=result.files["full"],
            expected=f"probabilities within {TOLERANCE} and no changed decision",
            found=f"{worst.max_difference:.2g} and {worst.changed_decisions} of {worst.images} decisions changed",
        )
    if not result.training.holds:
        raise ParityError(
            "the exported model does not answer as the training noted; nothing was written",
            path=result.files["full"],
            expected=f"the probabilities in predictions.csv, within {TOLERANCE}",
            found=f"{result.training.max_difference:.2g} off, {result.training.changed_decisions} decisions changed",
            mend="if the images have changed since, run xfeat featurize and xhead train again",
        )


def _certificate(run: Run, result: Export, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run": run.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tolerance": TOLERANCE,
        "models": {
            variant: {
                "file": path.name,
                "sha256": hashlib.sha256((folder / path.name).read_bytes()).hexdigest(),
            }
            for variant, path in result.files.items()
        },
        "against_torch": {
            provider: {variant: agreement.to_dict() for variant, agreement in variants.items()}
            for provider, variants in result.checks.items()
        },
        "against_training": result.training.to_dict(),
        "feature_fingerprint": run.feature_spec.fingerprint,
        "head_sha256": run.head_sha256,
        "versions": library_versions(),
    }


@contextmanager
def _together(targets: list[Path]) -> Iterator[Path]:
    """Give a folder beside the targets; if the body ends well, its files of their names replace them."""
    parent = targets[0].parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{targets[0].name}."))
    except OSError as error:
        raise output_error(targets[0], error) from error
    try:
        yield folder
        for target in targets:
            os.replace(folder / target.name, target)
    except XfeatError:
        raise
    except OSError as error:
        raise output_error(targets[0], error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""What reads the files of a project: commands in this process, and readers whose commands take longer than a second."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import torch
from click.testing import CliRunner

from tests.fuzz.project import SWEEP, converted, cross_validated, featurized
from tests.serve.conftest import serving
from xfeat.export.build.reference_model import metadata_of
from xfeat.export.cli import main as export_main
from xfeat.export.parity.certificate import certificate_path
from xfeat.featurize.audit.stored import audit_of
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.layout import BLOCK_BYTES, read_header, rest_digest, user_block
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as featurize_main
from xfeat.featurize.columns.gather import table_columns
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import BusyError, CacheError, XfeatError
from xfeat.featurize.system.locks import Lock, locked
from xfeat.featurize.typed_json import with_digest
from xfeat.head.cli import main as head_main
from xfeat.head.compare.results import find_results
from xfeat.head.runs.reader import latest_run, open_run, read_history
from xfeat.serve.cli import main as serve_main
from xfeat.serve.inference.predictor import Predictor

Command = Callable[[Path], Any]
"""Does something in a project, and returns what must stay the same, as plain values."""

torch.set_num_threads(1)
_warnings: list[str] = []


class Refused(Exception):
    """An error with a message, as a user sees it."""


class _Collect(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            _warnings.append(record.getMessage())


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list to which warnings are added."""
    logger, handler = logging.getLogger("xfeat"), _Collect()
    _warnings.clear()
    logger.addHandler(handler)
    try:
        yield _warnings
    finally:
        logger.removeHandler(handler)


def _printed(program: click.Command, *arguments: object) -> Any:
    done = CliRunner().invoke(program, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code:
        if "Traceback" in done.output or not done.stderr.strip():
            raise AssertionError(f"exit code {done.exit_code} without a message: {done.output}")
        raise Refused(done.stderr)
    _warnings.extend(line for line in done.stderr.splitlines() if line.startswith("warning: "))
    return json.loads(done.stdout)


def _library(read: Command) -> Command:
    def command(folder: Path) -> Any:
        try:
            return read(folder)
        except XfeatError as error:
            raise Refused(str(error)) from error

    return command


def _compare(folder: Path) -> Any:
    return _printed(head_main, "compare", folder / "runs/first", folder / "runs/second", "--json")


def _compare_as_page(folder: Path) -> Any:
    page = folder / "comparison.html"
    found = _printed(head_main, "compare", folder / "runs/first", folder / "runs/second", "--json", "--html", page)
    return found, page.read_text()


def _evaluate(folder: Path) -> Any:
    places = (folder / "runs/first", folder / "features.h5", "--runs", folder / "evaluations")
    found = _printed(head_main, "eval", *places, "--json")
    return {name: value for name, value in found.items() if name != "eval"}  # the folder is named after the time


def _sweep(folder: Path) -> Any:
    places = ("--features", folder / "features.h5", "--runs", folder / "runs")
    found = _printed(head_main, "sweep", *places, *SWEEP, "--json")
    return {name: value for name, value in found.items() if "seconds" not in name}


def _checkpoints(folder: Path) -> Any:
    return cross_validated(folder).main.probabilities.tolist()


def _predict(folder: Path) -> Any:
    images = [folder / "data/covid/00.png", folder / "data/normal"]
    return _printed(serve_main, "predict", *images, "--model", folder / "model.onnx", "--device", "cpu", "--json")


def _predict_signed(folder: Path) -> Any:
    options = ("--model", folder / "model.onnx", "--require-signature", folder / "minisign.pub", "--device", "cpu")
    return _printed(serve_main, "predict", folder / "data/covid/00.png", *options, "--json")


def _sign(folder: Path) -> Any:
    return _printed(export_main, "sign", folder / "model.onnx", "--key", folder / "minisign.key", "--json")


def _info(folder: Path) -> Any:
    found = _printed(export_main, "info", folder / "model.onnx", "--json")
    if found["certificate"] != "matches this file":
        _warnings.append(found["certificate"])
    return found


def _verify(folder: Path) -> Any:
    found = _printed(export_main, "verify", folder / "model.onnx", "--data", folder / "data", "--json")
    if found["changed_images"] or found["missing_images"]:
        _warnings.append("images are left out")
    return found


def _featurize(folder: Path) -> Any:
    featurized(folder)
    cache = FeatureCache.open(folder / "few.h5")
    return [list(cache.columns.path), cache.features.tolist(), list(cache.columns.sha256)]


def _cache(name: str) -> Command:
    def read(folder: Path) -> Any:
        cache = FeatureCache.open(folder / name)
        columns = {name: list(map(str, values)) for name, values in vars(cache.columns).items()}
        return [
            repr(cache.spec),
            cache.class_names,
            columns,
            cache.group_keys.tolist(),
            np.array(cache.features).tolist(),
        ]

    return read


def _cache_info(folder: Path) -> Any:
    return _printed(featurize_main, "info", folder / "features.h5", "--json")


def _dataset(**options: str) -> Command:
    def read(folder: Path) -> Any:
        places = {name: str(folder / value) for name, value in options.items()}
        found = open_dataset(Path(places.pop("data")), **places)  # type: ignore[arg-type]
        texts = {name: column.texts() for name, column in table_columns(found).items()}
        return [repr(entry) for entry in found.entries], list(found.class_names), texts

    return read


def _held_lock(folder: Path) -> Any:
    file = folder / "some.lock"
    content = file.read_bytes()
    lock = Lock(file)
    assert lock.acquire()
    file.write_bytes(content)
    try:
        with locked(file, "in use", of=folder):
            raise AssertionError("taken twice")
    except BusyError as error:
        return str(error)
    finally:
        lock.release()


def _start(*option: str) -> Command:
    """Return ``xserve start`` with a file of options; it ends where it looks for the model."""

    def read(folder: Path) -> Any:
        try:
            return _printed(serve_main, "start", folder / "missing.onnx", *(option[0], folder / option[1]))
        except Refused as error:
            if "model not found" in str(error):
                return "read"
            raise

    return read


_servers = contextlib.ExitStack()


@functools.cache
def _client(model: Path) -> httpx.Client:
    """Return a client of a server that runs as long as this process."""
    return _servers.enter_context(serving(Predictor.open(model, device="cpu")))


def _post(route: str, file: str, **headers: str) -> Command:
    def send(folder: Path) -> Any:
        client, body = _client(folder / "model.onnx"), (folder / "requests" / file).read_bytes()
        if file == "binary":
            length = bytes(byte for byte in body[:8] if 32 < byte < 127)  # what httpx sends
            headers["inference_header_content_length"], body = length.decode(), body[8:]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = client.post(route, content=body, headers=named)
        assert client.get("/health").json()["status"] == "ok"
        assert reply.status_code < 500, reply.text
        if reply.status_code >= 400:
            raise Refused(reply.json()["error"])
        return len(reply.content)

    return send


_INFER = "/v2/models/model/infer"
COMMANDS: dict[str, Command] = {
    "xhead compare": _compare,
    "xhead compare --html": _compare_as_page,
    "xhead eval": _evaluate,
    "xhead sweep": _sweep,
    "xexport info": _info,
    "xexport verify --data": _verify,
    "xserve predict": _predict,
    "xserve predict --require-signature": _predict_signed,
    "xexport sign": _sign,
    "xserve start --config": _start("--config", "serve.toml"),
    "xserve start --api-key-file": _start("--api-key-file", "key"),
    "xfeat info": _cache_info,
    "FeatureCache.open": _library(_cache("features.h5")),
    "FeatureCache.open, schema 1": _library(_cache("schema1.h5")),
    "run": _library(lambda folder: json.dumps(open_run(folder / "runs/first").to_dict(), sort_keys=True)),
    "metadata of a run": _library(lambda folder: metadata_of(open_run(folder / "runs/first"), 0.5).to_props()),
    "history": _library(lambda folder: list(map(list, read_history(open_run(folder / "runs/first"))))),
    "latest run": _library(lambda folder: open_run(latest_run(folder / "runs")).name),
    "results": _library(lambda folder: find_results(folder / "runs")),
    "converted network": _library(lambda folder: converted(folder).tolist()),
    "cross-validation": _library(_checkpoints),
    "audit": _library(lambda folder: audit_of(FeatureCache.open(folder / "features.h5"))),
    "xfeat featurize, resumed": _library(_featurize),
    "table of labels": _library(_dataset(data="data/labels.csv")),
    "table of groups": _library(_dataset(data="data", groups="data/groups.csv")),
    "table of metadata": _library(_dataset(data="data", metadata="data/metadata.csv")),
    "workbook": _library(_dataset(data="data", metadata="data/metadata.xlsx")),
    "lock": _library(_held_lock),
    "POST /predict, form": _post("/predict?heatmap=1", "form", content_type="multipart/form-data; boundary=b"),
    "POST /predict": _post("/predict", "image.png", content_type="image/png"),
    "POST /predict, JPEG": _post("/predict", "image.jpg", content_type="application/octet-stream"),
    "POST /preview": _post("/preview", "image.png", content_type="image/png"),
    "POST infer": _post(_INFER, "numbers.json", content_type="application/json"),
    "POST infer, base64": _post(_INFER, "base64.json", content_type="application/json"),
    "POST infer, gzip": _post(_INFER, "numbers.json.gz", content_type="application/json", content_encoding="gzip"),
    "POST infer, binary": _post(_INFER, "binary", content_type="application/octet-stream"),
}


# About half a second each: a tenth of the cases has to do.
SLOW = {"xhead compare --html", "FeatureCache.open, schema 1"}


# New digests that match, as somebody would write who hides a change


def _seal_run(folder: Path) -> None:
    file = folder / "runs/first/run.json"
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError, RecursionError, OSError):
        stored = json.loads(file.read_bytes())
        if isinstance(stored.get("file_sha256"), dict):
            stored["file_sha256"] = {name: sha256_of(file.parent / name) for name in stored["file_sha256"]}
        stored["head_sha256"] = sha256_of(file.parent / "head.safetensors")
        file.write_text(json.dumps(with_digest(stored)))


def _seal_model(folder: Path) -> None:
    file = certificate_path(folder / "model.onnx")
    stored = json.loads(file.read_bytes())
    stored["models"]["full"]["sha256"] = sha256_of(folder / "model.onnx")
    file.write_text(json.dumps(stored))


def _seal_cache(folder: Path) -> None:
    with (folder / "features.h5").open("r+b") as file, contextlib.suppress(ValueError, KeyError, TypeError, CacheError):
        block = json.loads(file.read(BLOCK_BYTES))
        places = read_header(file, Path(file.name))[1]["arrays"]
        file.seek(0)
        file.write(user_block(block["header_offset"], block["header_bytes"], rest_digest(file, places["features"])))


def _seal_folds(folder: Path) -> None:
    for file in (folder / "checkpoints").glob("*.float32"):
        name = file.stem.rpartition("-")[0]
        digest = hashlib.sha256(f"checkpoints {name}\n".encode() + file.read_bytes()).hexdigest()
        file.rename(file.with_name(f"{name}-{digest[:16]}.float32"))


def _seal_results(folder: Path) -> None:
    for file in (folder / "runs/cv/crossval.json", folder / "runs/external/eval.json"):
        with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
            file.write_text(json.dumps(with_digest(json.loads(file.read_bytes()))))


def _seal_network(folder: Path) -> None:
    [network] = folder.glob("graphs/*.onnx")
    network.with_suffix(".sha256").write_text(sha256_of(network))


SEALS: dict[str, Callable[[Path], None]] = {
    "run": _seal_run,
    "model": _seal_model,
    "cache": _seal_cache,
    "results": _seal_results,
    "network": _seal_network,
    "folds": _seal_folds,
    "none": lambda folder: None,  # a checksum that is part of the file
}

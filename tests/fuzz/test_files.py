"""Files with changed bytes or values are refused in a sentence, or answered as before: every kind, every command.

``FUZZ_CASES=1000 pytest tests/fuzz`` tries as many changes of each, and other ones each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings

from tests.fuzz.child import LIMIT_S, Case, Child, Outcome
from tests.fuzz.commands import SLOW
from tests.fuzz.conftest import CASES, FUZZ
from tests.fuzz.mutations import MUTATIONS, Change, Mutation, change_json, change_table
from tests.fuzz.structures import (
    change_binary,
    change_compressed,
    change_hdf5,
    change_header,
    change_model,
    change_npz,
    change_numbers,
    change_safetensors,
    change_toml,
)

pytestmark = pytest.mark.slow


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        file: the one that is changed, in the project.
        other: another one of the same kind, for parts of it.
        commands: what reads it.
        structure: how its values are changed, and not only its bytes.
        seal: what updates the digest that would reveal a change.
    """

    file: str
    other: str
    commands: tuple[str, ...]
    structure: Change | None = None
    seal: str = ""


_OF_RUNS = ("xhead compare", "xhead eval", "run", "metadata of a run")
_OF_MODELS = ("xserve predict", "xexport info", "xexport verify --data")
_RUN, _OTHER_RUN = "runs/first", "runs/second"
KINDS = {
    "run.json": Kind(f"{_RUN}/run.json", f"{_OTHER_RUN}/run.json", (*_OF_RUNS, "latest run"), change_json),
    "head": Kind(f"{_RUN}/head.safetensors", f"{_OTHER_RUN}/head.safetensors", ("xhead eval",), change_safetensors),
    "history": Kind(
        f"{_RUN}/history.csv", f"{_OTHER_RUN}/history.csv", ("history", "xhead compare --html"), change_table
    ),
    "predictions": Kind(f"{_RUN}/predictions.csv", f"{_OTHER_RUN}/predictions.csv", _OF_RUNS[:2], change_table),
    "sweep.json": Kind("runs/sweep/sweep.json", f"{_RUN}/run.json", ("xhead sweep",), change_json),
    "results of a sweep": Kind("runs/sweep/results.csv", f"{_RUN}/history.csv", ("xhead sweep",), change_table),
    "finished folds": Kind("checkpoints/*fold0*", "checkpoints/*fold1*", ("cross-validation",)),
    "audit": Kind("features.audit.json", f"{_RUN}/run.json", ("audit",), change_json),
    "certificate": Kind("model.certificate.json", "other.certificate.json", _OF_MODELS, change_json),
    "model": Kind("model.onnx", "other.onnx", _OF_MODELS, change_model),
    "crossval.json": Kind("runs/cv/crossval.json", f"{_RUN}/run.json", ("results",), change_json),
    "eval.json": Kind("runs/external/eval.json", f"{_RUN}/run.json", ("results",), change_json),
    "signature": Kind(
        "model.certificate.json.minisig", "other.certificate.json.minisig", ("xserve predict --require-signature",)
    ),
    "public key": Kind("minisign.pub", "minisign.key", ("xserve predict --require-signature",)),
    "converted network": Kind("graphs/*.onnx", "model.onnx", ("converted network",)),
    "digest of a converted network": Kind("graphs/*.sha256", "key", ("converted network",)),
    "shards": Kind("few.h5.parts/*0.npz", "few.h5.parts/*1.npz", ("xfeat featurize, resumed",)),
    "features": Kind("features.h5", "other.h5", ("FeatureCache.open", "xfeat info"), change_header),
    "features of schema 1": Kind("schema1.h5", "other.h5", ("FeatureCache.open, schema 1",), change_hdf5),
}
# A change with a digest that matches is not noticed, but is no traceback either.
SEALED = {
    **{name: KINDS[name]._replace(seal="run") for name in ("head", "history", "predictions")},
    "run.json": KINDS["run.json"]._replace(commands=_OF_RUNS, seal="run"),
    "features": KINDS["features"]._replace(seal="cache"),
    "model": KINDS["model"]._replace(seal="model"),
    "crossval.json": KINDS["crossval.json"]._replace(seal="results"),
    "eval.json": KINDS["eval.json"]._replace(seal="results"),
    "converted network": KINDS["converted network"]._replace(structure=change_model, seal="network"),
    "finished folds": KINDS["finished folds"]._replace(structure=change_numbers, seal="folds"),
    "shards": KINDS["shards"]._replace(structure=change_npz, seal="none"),
}
# Every change of a file of the user's is meant.
INPUTS = {
    "labels": Kind("data/labels.csv", "data/groups.csv", ("table of labels",), change_table),
    "groups": Kind("data/groups.csv", "data/labels.csv", ("table of groups",), change_table),
    "metadata": Kind("data/metadata.csv", "data/groups.csv", ("table of metadata",), change_table),
    "workbook": Kind("data/metadata.xlsx", "few.h5.parts/*1.npz", ("workbook",)),
    "options of the server": Kind("serve.toml", "other.toml", ("xserve start --config",), change_toml),
    "secret key": Kind("minisign.key", "minisign.pub", ("xexport sign",)),
    "key": Kind("key", "serve.toml", ("xserve start --api-key-file",)),
    "form": Kind("requests/form", "requests/image.jpg", ("POST /predict, form",)),
    "image": Kind("requests/image.png", "requests/image.jpg", ("POST /predict", "POST /preview")),
    "JPEG image": Kind("requests/image.jpg", "requests/image.png", ("POST /predict, JPEG",)),
    "numbers": Kind("requests/numbers.json", "requests/base64.json", ("POST infer",), change_json),
    "base64": Kind("requests/base64.json", "requests/numbers.json", ("POST infer, base64",), change_json),
    "compressed": Kind("requests/numbers.json.gz", "requests/base64.json", ("POST infer, gzip",), change_compressed),
    "binary": Kind("requests/binary", "requests/base64.json", ("POST infer, binary",), change_binary),
    "lock": Kind("some.lock", "features.audit.json", ("lock",), change_json),
}
ROWS = [
    pytest.param(kind, command, kinds is KINDS, id=f"{name}{more}: {command}")
    for kinds, more in ((KINDS, ""), (SEALED, ", digest updated"), (INPUTS, ""))
    for name, kind in kinds.items()
    for command in kind.commands
]


@pytest.mark.parametrize(("kind", "command", "is_noticed"), ROWS)
def test_a_changed_file_is_refused_or_answered_as_before(
    child: Child, project: Path, kind: Kind, command: str, is_noticed: bool
) -> None:
    child.run(Case(command, {}))  # loads the libraries
    expected = child.run(Case(command, {}))
    assert expected.kind == "answered", expected.answer
    [file], [other] = project.glob(kind.file), project.glob(kind.other)
    content, another = file.read_bytes(), other.read_bytes()
    name, seals = file.relative_to(project).as_posix(), tuple(filter(None, [kind.seal]))

    @settings(FUZZ, max_examples=CASES // 10 if command in SLOW else CASES)
    @given(mutation=MUTATIONS)
    def check(mutation: Mutation) -> None:
        changed = mutation.apply(content, another, kind.structure)
        found = child.run(Case(command, {name: changed}, seals))
        _check(found, expected if is_noticed else None, len(changed))

    check()


def _check(found: Outcome, expected: Outcome | None, size: int) -> None:
    assert found.kind != "traceback", found.answer
    assert found.seconds < LIMIT_S
    assert found.grown_mb < 256 + 20 * size / 2**20
    if expected is not None and found.kind == "answered" and set(found.warnings) <= set(expected.warnings):
        assert (expected.kind, found.answer) == (expected.kind, expected.answer), "another answer without a word"

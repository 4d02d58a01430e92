"""``xserve predict`` and ``xserve start`` on the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from xfeat.serve.cli import main

XSERVE = [sys.executable, "-c", "from xfeat.serve.cli import main; main()"]
# Needed by training, but not by serving: importing one of them raises an error.
WITHOUT_TRAINING = (
    "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'onnx', 'sklearn', 'h5py', 'matplotlib']));"
    "from xfeat.serve.cli import main; main()"
)
WITHOUT_SERVER = "import sys; sys.modules.update(dict.fromkeys(['fastapi'])); from xfeat.serve.cli import main; main()"


@pytest.fixture
def pictures(tiny, tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "green.png").write_bytes(tiny.draw((0, 255, 0)))
    (folder / "red.jpg").write_bytes(tiny.draw((255, 0, 0), kind="JPEG"))
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_json_output_is_exactly_the_documented_object(model, pictures, tiny):
    (pictures / "text.png").write_bytes(b"text")
    done = run("predict", pictures, "--model", model, "--json")
    assert done.exit_code == 3
    body = json.loads(done.stdout)
    assert set(body) == {"model", "predictions", "skipped"}
    assert body["model"] == str(model)
    green, red = body["predictions"]
    assert set(green) == {"path", "label", "probabilities", "ood", "ood_threshold", "in_distribution"}
    assert (green["path"], green["label"], green["ood"]) == (str(pictures / "green.png"), "normal", None)
    assert (red["path"], red["label"]) == (str(pictures / "red.jpg"), "covid")
    np.testing.assert_allclose(list(green["probabilities"].values()), tiny.reference((0, 255, 0)), atol=1e-6)
    assert list(green["probabilities"]) == list(tiny.classes)
    assert body["skipped"] == [
        {
            "path": str(pictures / "text.png"),
            "reason": "text, not a JPEG, PNG, BMP, TIFF, WEBP, GIF, JPEG2000, PPM, AVIF image",
        }
    ]
    assert f"warning: skipped {pictures / 'text.png'}: text, not a JPEG" in done.stderr


def test_text_is_a_table_with_aligned_columns(write_model, pictures, tiny):
    model = write_model(positive="covid", threshold=0.3, ood=True, ood_threshold=2.5)
    done = run("predict", pictures, "--model", model)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["path", "label", *tiny.classes, "ood"]
    assert lines[1].split()[:3] == [str(pictures / "green.png"), "normal", f"{tiny.reference((0, 255, 0))[0]:.4f}"]
    assert (len(lines), len({len(line) for line in lines})) == (3, 1)
    assert done.stderr.splitlines() == ["covid at a probability of 0.3 or more", "out-of-distribution above 2.5"]


def test_the_model_is_model_onnx_in_the_current_folder(model, pictures, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert json.loads(run("predict", "pictures", "--json").stdout)["model"] == "model.onnx"


@pytest.mark.parametrize("command", [["predict", "."], ["start"]])
def test_a_missing_model_is_one_message_that_names_the_command_to_run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    done = run(*command)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: model.onnx: model not found")
    assert "run xexport onnx" in done.stderr
    assert done.stdout == ""


def test_no_readable_image_is_an_error_with_the_reasons(model, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"text")
    done = run("predict", bad, "--model", model, "--json")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1
    assert f"{bad}: text, not a JPEG" in done.stderr


def test_a_path_that_does_not_exist_is_an_error(model, tmp_path):
    done = run("predict", tmp_path / "gone.png", "--model", model)
    assert done.exit_code == 1
    assert "gone.png: file or folder not found" in done.stderr


def test_prediction_needs_neither_torch_nor_onnx_nor_the_rest_of_training(model, pictures):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRAINING, "predict", str(pictures), "--model", str(model)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["label"] for row in json.loads(done.stdout)["predictions"]] == ["normal", "covid"]


def test_start_without_its_extra_names_the_command_that_installs_it(model):
    command = [sys.executable, "-c", WITHOUT_SERVER, "start", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'xfeat-onnx[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_start_serves_until_a_signal_and_stops_cleanly(model, tiny, stop):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRAINING, "start", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        announced = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", announced)
        assert address, announced + process.stderr.read()
        files = [("files", ("red.png", tiny.draw((255, 0, 0))))]
        reply = httpx.post(f"{address[0]}/predict", files=files, timeout=30, trust_env=False)
        assert reply.status_code == 200
        assert reply.json()["predictions"][0]["label"] == "covid"
        process.send_signal(stop)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert said.splitlines() == ["Ctrl-C stops", "stopped"]


def test_start_prints_one_json_object_and_nothing_else_on_stdout(model):
    process = subprocess.Popen(
        [*XSERVE, "start", str(model), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = json.loads(process.stdout.readline())
        assert httpx.get(f"{ready['url']}/health", timeout=30, trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (ready["models"], ready["device"]) == (["model"], "cpu")
    assert (set(ready), rest) == ({"url", "models", "device"}, "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-queue", "3"], ["--max-queue 3", "--max-files 64"]),
        (["--max-memory-mb", "16"], ["--max-memory-mb 16", "--max-body-mb 32"]),
    ],
)
def test_limits_that_contradict_each_other_are_both_named_with_their_values(model, options, words):
    done = run("start", model, *options)
    assert done.exit_code == 2
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("command", [[], ["predict"], ["start"]])
def test_help_loads_none_of_the_heavy_libraries(command):
    heavy = "['torch', 'onnxruntime', 'fastapi', 'uvicorn', 'numpy', 'PIL', 'prometheus_client']"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy})); "
        f"from xfeat.serve.cli import main; main({[*command, '-h']})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout

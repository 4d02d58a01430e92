"""``xserve start`` in operation: settings from three sources, the API key, logs, signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from tests.serve.sharing import upload
from xfeat.featurize.system.cuda import cuda_driver_present
from xfeat.featurize.system.time_limit import limited
from xfeat.serve.cli import main, settings
from xfeat.serve.cli.settings import unknown_variables
from xfeat.serve.cli.start import start

XSERVE = [sys.executable, "-c", "from xfeat.serve.cli import main; main()"]


class Running:
    """A server process: its client, and what it says on stderr when it has ended."""

    def __init__(self, process, client):
        self.process, self.client = process, client
        self.said = ""

    def end(self, by=signal.SIGTERM):
        self.process.send_signal(by)
        _, self.said = self.process.communicate(timeout=60)
        return self.process.returncode

    def log(self):
        return [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]


@contextlib.contextmanager
def running(*arguments, **environment):
    command = [*XSERVE, "start", *map(str, arguments), "--port", "0"]
    variables = {**os.environ, **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address, process.communicate()
        with httpx.Client(base_url=address[0], timeout=60, trust_env=False) as client:
            yield Running(process, client)
    finally:
        process.kill()
        process.communicate()


def limits_of(*arguments, **environment):
    """Return what the command would pass on, without starting anything."""
    seen = {}

    @click.pass_context
    def note(ctx, **settings):
        seen.update(settings)

    body, start.callback = start.callback, note
    try:
        done = CliRunner(env=environment).invoke(main, ["start", *map(str, arguments)])
    finally:
        start.callback = body
    return done, seen


def test_options_override_the_environment_which_overrides_the_file(tmp_path):
    file = tmp_path / "xserve.toml"
    file.write_text('max-queue = 100\nmax-files = 10\nport = 1\nhost = "0.0.0.0"\njson = true\n')
    _, seen = limits_of("--config", file, "--port", "3", XSERVE_PORT="2", XSERVE_MAX_FILES="20")
    assert (seen["port"], seen["max_files"], seen["max_queue"]) == (3, 20, 100)
    assert (seen["host"], seen["json"]) == ("0.0.0.0", True)
    _, seen = limits_of()
    assert (seen["port"], seen["host"]) == (8000, "127.0.0.1")


def test_the_settings_file_can_be_given_in_the_environment(tmp_path):
    file = tmp_path / "xserve.toml"
    file.write_text("max-queue = 100\n")
    assert limits_of(XSERVE_CONFIG=str(file))[1]["max_queue"] == 100


@pytest.mark.parametrize("name", ["MAX_QUEU", "LOGFORMAT", "MAX-QUEUE", "KEY", "SITE"])
def test_a_variable_that_is_no_setting_is_named(monkeypatch, name):
    for known in ("MAX_QUEUE", "API_KEY", "API_KEY_FILE", "JSON", "SERVICE_HOST", "PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(f"XSERVE_{known}", "1")
    assert unknown_variables(start) == []
    monkeypatch.setenv(f"XSERVE_{name}", "1")
    assert unknown_variables(start) == [f"XSERVE_{name} is no setting of xserve start, and has no effect"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("max-cue = 1", 1, "unknown setting max-cue"),
        ("max-queue =", 1, "not a TOML file"),
        ("port = 99999", 2, "port"),
        ("port = true", 1, "setting port has another type"),
        ("max-queue = {a = 1}", 1, "setting max-queue has another type"),
        ("max-queue = 2026-01-01", 1, "setting max-queue has another type"),
        ("json = 1", 1, "expected: true or false"),
        ("cors-origin = 'https://a.example'", 1, "expected: a list of texts"),
        ("allowed-host = [1]", 1, "expected: a list of texts"),
        ("port = inf", 1, "setting port has another type"),
        ("threads = 2.5", 1, "setting threads has another type"),
        ("batch-wait-ms = nan", 2, "not a finite number"),
        ("answer-timeout-s = inf", 2, "not a finite number"),
        ("host = " + 100_000 * "[", 1, "not a TOML file"),
        ("port = " + 5_000 * "9", 1, "not a TOML file"),
    ],
)
def test_a_wrong_settings_file_is_named(tmp_path, text, code, words):
    file = tmp_path / "xserve.toml"
    file.write_text(text)
    done, seen = limits_of("--config", file)
    assert done.exit_code == code
    assert words in done.stderr
    assert seen == {}


def test_the_help_names_the_variable_of_every_option():
    text = CliRunner().invoke(main, ["start", "--help"]).stdout
    for name in ("CONFIG", "HOST", "PORT", "DEVICE", "JSON", "MAX_MEMORY_MB", "API_KEY_FILE", "LOG_FORMAT"):
        assert f"XSERVE_{name}" in text


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--api-key-file", "--config"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "was not read within 1 s"),
        (lambda path: path.symlink_to("/dev/zero"), "is larger than 1 MiB"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"#"), "is larger than 1 MiB"),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"\xff"), "is not UTF-8 text"),
    ],
    ids=["pipe", "device", "large", "link to itself", "not text"],
)
def test_a_file_of_settings_that_never_ends_is_refused(monkeypatch, model, tmp_path, option, make, reason):
    monkeypatch.setattr(settings, "_read", limited(1, "read")(settings._read.__wrapped__))
    make(tmp_path / "given")
    done = CliRunner().invoke(main, ["start", str(model), option, str(tmp_path / "given")])
    assert (done.exit_code, reason in done.stderr) == (1, True), done.stderr


def test_the_key_may_come_from_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, b"key\n")
    os.close(writing)
    assert settings.read_key(Path(f"/proc/self/fd/{reading}")) == "key"


@pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
def test_without_a_gpu_device_cuda_does_not_start(model):
    done = CliRunner().invoke(main, ["start", str(model), "--device", "cuda"])
    assert done.exit_code == 1
    assert "cannot use cuda:0" in done.stderr


def test_an_empty_key_is_an_error_and_does_not_open_the_server(model, tmp_path):
    (tmp_path / "key").write_text("\n")
    done = CliRunner().invoke(main, ["start", str(model), "--api-key-file", str(tmp_path / "key")])
    assert done.exit_code == 1
    assert "key is empty" in done.stderr
    done = CliRunner(env={"XSERVE_API_KEY": " "}).invoke(main, ["start", str(model)])
    assert "key is empty" in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not UTF-8 text"),
        (b"one\ntwo\n", "has several lines"),
        (b"\xef\xbb\xbfkey", "invisible characters"),
    ],
)
def test_a_key_that_no_client_could_send_is_one_message(model, tmp_path, content, reason):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    done = CliRunner().invoke(main, ["start", str(model), "--api-key-file", str(tmp_path / "key")])
    assert done.exit_code == 1
    assert reason in done.stderr
    assert "openssl rand" in done.stderr


def test_everything_but_the_page_and_health_requires_the_key(predictor, serve_model, tiny):
    with serve_model(predictor, api_key="schlüssel") as client:
        picture = {"files": ("a.png", tiny.draw((255, 0, 0)))}
        closed = ("/model", "/metrics", "/v2", "/v2/models/model", "/nothing", "/admin/reload")
        for address in closed:
            assert client.get(address).status_code == 401, address
        for address in ("/", "/docs", "/openapi.json", "/page.js", "/health", "/v2/health/live", "/v2/health/ready"):
            assert client.get(address).status_code == 200, address
        for wrong in ("", "Bearer", "Bearer schlussel", "Basic schlüssel", "Bearer schlüsselx"):
            refused = client.post("/predict", files=picture, headers={"Authorization": wrong.encode()})
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["x-content-type-options"] == "nosniff"
        for right in (
            {"Authorization": "Bearer schlüssel".encode("latin-1")},
            {"Authorization": "bearer schlüssel".encode()},
            {"X-API-Key": "schlüssel".encode("latin-1")},
        ):
            assert client.post("/predict", files=picture, headers=right).status_code == 200


def test_a_request_id_is_returned_if_it_is_safe_to_log_and_replaced_otherwise(client):
    assert client.get("/health", headers={"X-Request-ID": "abc-1.2:3"}).headers["x-request-id"] == "abc-1.2:3"
    for unsafe in (b"a b", b'{"x":1}', b"x" * 65, "ä".encode(), b""):
        assert re.fullmatch(
            r"[0-9a-f]{12}-\d+", client.get("/health", headers={"X-Request-ID": unsafe}).headers["x-request-id"]
        )


def test_json_logs_hold_one_line_per_request_and_neither_images_nor_file_names(model, tiny):
    with running(model, "--log-format", "json") as server:
        files = upload(("Frau Muster 1950.png", tiny.draw((255, 0, 0))), ("Herr Muster.png", b"secret content"))
        server.client.post("/predict", files=files, headers={"X-Request-ID": "first"})
        server.client.get("/nothing/Muster")
        assert server.end() == 0
    requests = [line for line in server.log() if line["message"] == "request"]
    first, second = requests
    assert {key: first[key] for key in ("request_id", "method", "route", "status", "images", "model")} == {
        "request_id": "first",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "images": 2,
        "model": "model",
    }
    assert first["seconds"] > 0
    assert (second["route"], second["status"]) == ("none", 404)
    assert "Muster" not in server.said
    assert "secret" not in server.said


def test_text_logs_hold_one_line_per_request(model):
    with running(model, XSERVE_LOG_FORMAT="text") as server:
        server.client.get("/health")
        server.end()
    assert "method=GET route=/health status=200" in server.said


def test_sighup_loads_a_new_file_and_rejects_garbage(write_model, tiny):
    model = write_model(run="one")
    with running(model) as server:
        assert server.client.get("/model").json()["run"] == "one"
        write_model("other.onnx", run="two").replace(model)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while server.client.get("/model").json()["run"] != "two" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.client.get("/model").json()["run"] == "two"
        model.write_bytes(b"garbage")
        server.process.send_signal(signal.SIGHUP)
        while not server.client.get("/health").json()["failed_reloads"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.client.get("/model").json()["run"] == "two"
        assert server.client.post("/predict", files=upload(("a.png", tiny.draw((255, 0, 0))))).status_code == 200
        assert server.end() == 0
    assert "warning: model: reload failed; still serving the previous version: " in server.said
    assert "not a model" in server.said


@pytest.mark.slow
def test_sigterm_under_load_answers_every_request_that_was_accepted(model, tiny):
    """What the server logged is what it accepted: all of it was answered with 200 and has reached its client."""
    picture = tiny.draw((9, 90, 9), size=(1500, 1500))
    with running(model, "--log-format", "json") as server, ThreadPoolExecutor(12) as pool:

        def send(number):
            files = upload(*[(f"{each}.png", picture) for each in range(4)])
            with httpx.Client(base_url=server.client.base_url, timeout=60, trust_env=False) as client:
                try:
                    reply = client.post("/predict", files=files, headers={"X-Request-ID": f"load-{number}"})
                except httpx.TransportError:
                    return None
            return len(reply.json()["predictions"]) if reply.status_code == 200 else reply.status_code

        sending = [pool.submit(send, number) for number in range(12)]
        while server.client.get("/health").json()["queue"] < 16:
            time.sleep(0.005)
        assert server.end() == 0
        answers = {f"load-{number}": each.result(60) for number, each in enumerate(sending)}
    accepted = {line["request_id"]: line["status"] for line in server.log() if line.get("route") == "/predict"}
    assert len(accepted) >= 4
    assert set(accepted.values()) == {200}
    assert {name: answers[name] for name in accepted} == dict.fromkeys(accepted, 4)

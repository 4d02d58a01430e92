"""The log on stderr: every line with its time, client, route and model, and with ``json`` nothing but JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from tests.serve.sharing import upload
from xfeat.featurize.errors import SpecError
from xfeat.serve.cli import main
from xfeat.serve.http.request_log import client_address
from xfeat.serve.http.stderr_log import JsonStderr
from xfeat.serve.specs import AccessOptions

# Everything that writes to stderr in its own way: a library that is imported, a warning of Python, an exception in a
# thread, one in a route, a line in parts.
NOISY = """
import os, sys, threading, time, warnings
class Library:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            os.write(2, b"[W:onnxruntime:Default, device_discovery.cc:164] GPU device discovery failed\\nsecond line")
sys.meta_path.insert(0, Library())
def later():
    while "xfeat.serve.http.app" not in sys.modules or not os.path.exists(os.environ["NOISE"]):
        time.sleep(0.01)
    import onnxruntime, numpy, xfeat.serve.http.app
    def fail(_):
        raise RuntimeError("in a route")
    xfeat.serve.http.app.describe_model = fail
    warnings.warn("a warning of Python")
    print("a line", "in parts", file=sys.stderr)
    raise ValueError("in a thread")
threading.Thread(target=later, daemon=True).start()
from xfeat.serve.cli import main
main()
"""


class Log:
    """A server that logs, and what it has written when it has ended."""

    def __init__(self, process: subprocess.Popen[str], client: httpx.Client) -> None:
        self.process, self.client, self.stderr = process, client, ""

    def end(self) -> list[str]:
        self.process.send_signal(signal.SIGTERM)
        _, self.stderr = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return self.stderr.splitlines()


@contextlib.contextmanager
def logging_server(model: Path, kind: str, *more: str, code: str = "", **environment: str) -> Iterator[Log]:
    program = code or "from xfeat.serve.cli import main; main()"
    command = [sys.executable, "-c", program, "start", str(model), "--port", "0", "--log-format", kind, *more]
    variables = {**os.environ, **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stdout is not None
            port = re.search(r" at http://.*:(\d+)$", process.stdout.readline())
            assert port, process.communicate()
            with httpx.Client(base_url=f"http://127.0.0.1:{port[1]}", timeout=60, trust_env=False) as client:
                yield Log(process, client)
        finally:
            process.kill()


def send_raw(client: httpx.Client, data: bytes) -> bytes:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        connection.sendall(data)
        return connection.recv(100)


@pytest.mark.slow
def test_everything_on_stderr_is_one_json_object_per_line(model: Path, tmp_path: Path) -> None:
    started, noise = datetime.now(UTC), tmp_path / "noise"
    with logging_server(model, "json", code=NOISY, NOISE=str(noise)) as server:
        assert server.client.get("/model").status_code == 200
        noise.touch()
        while server.client.get("/model").status_code != 500:
            pass
        assert send_raw(server.client, b"GARBAGE\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        model.write_bytes(b"garbage")
        server.process.send_signal(signal.SIGHUP)
        while not server.client.get("/health").json()["failed_reloads"]:
            pass
        lines = [json.loads(line) for line in server.end()]
    for line in lines:
        assert list(line)[:3] == ["time", "level", "message"]
        assert started <= datetime.fromisoformat(line["time"]) <= started + timedelta(minutes=5)
    messages = [line["message"] for line in lines]
    assert messages[:3] == [
        "[W:onnxruntime:Default, device_discovery.cc:164] GPU device discovery failed",
        "second line",
        "Ctrl-C stops",
    ]
    assert messages[-1] == "stopped"
    assert "a line in parts" in messages
    [warning] = [line for line in lines if "a warning of Python" in line["message"]]
    [in_thread] = [line for line in lines if line["message"] == "ValueError: in a thread"]
    in_route = [line for line in lines if "RuntimeError: in a route" in line.get("traceback", "")]
    [reload] = [line for line in lines if "reload failed" in line["message"]]
    assert (warning["level"], in_thread["level"], reload["level"]) == ("warning", "critical", "warning")
    assert in_thread["traceback"].startswith("Traceback (most recent call last):")
    assert in_route
    [bad] = [line for line in lines if line.get("status") == 400]
    assert (bad["route"], bad["client"], "Invalid method" in bad["reason"]) == ("none", "127.0.0.1", True)


# The system asks for a reload while a model is being opened.
HANGUP = """
import os, signal
from xfeat.serve.inference.predictor import Predictor
warm_up = Predictor.warm_up
Predictor.warm_up = lambda self: (os.kill(os.getpid(), signal.SIGHUP), warm_up(self))
from xfeat.serve.cli import main
main()
"""


@pytest.mark.slow
def test_a_reload_during_the_start_does_not_end_the_server(model: Path) -> None:
    with logging_server(model, "json", code=HANGUP) as server:
        assert server.client.get("/health").status_code == 200
        assert json.loads(server.end()[-1])["message"] == "stopped"


# What the command is refused for, and the exit code.
REFUSED: dict[str, tuple[list[str], int]] = {
    "an address": (["--host", "203.0.113.1"], 1),
    "a default": (["--default-model", "other"], 1),
    "a limit": (["--max-queue", "3"], 2),
    "a value": (["--port", "seventy"], 2),
    "a settings file": (["--config", "/nothing.toml"], 1),
    "a key": (["--api-key-file", "/nothing"], 1),
    "a proxy": (["--trusted-proxy", "proxy.example.org"], 2),
    "a window": (["--drift-window", "99"], 2),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_is_json_too(model: Path, what: str) -> None:
    arguments, code = REFUSED[what]
    given = ["start", str(model), "--device", "cpu", "--log-format", "json"]
    done = CliRunner().invoke(main, [*given, *arguments])
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines if not line["message"].startswith("Usage: ")] == ["error"]
    assert re.search("fix: |Invalid value |expected: ", lines[-1]["message"])
    without = CliRunner().invoke(main, [*given[:-1], "off", *arguments])
    assert not without.stderr.startswith("{"), "the next command of this process has its stderr back"


ANY_KEY = {"Authorization": "Bearer wrong"}
KEY = {"Authorization": "Bearer secret"}
JSON = KEY | {"Content-Type": "application/json"}
# A request, and status, route and model in the log. Names that are no model's are not logged: they may be anything.
REQUESTS: dict[str, tuple[Callable[[httpx.Client], object], int, str, str | None]] = {
    "without a key": (lambda c: c.get("/model"), 401, "/model", "model"),
    "with a wrong key": (lambda c: c.post("/predict", headers=ANY_KEY), 401, "/predict", "model"),
    "a model without a key": (lambda c: c.get("/v2/models/model/stats"), 401, "/v2/models/{name}/stats", "model"),
    "a name without a key": (lambda c: c.get("/v2/models/Muster/stats"), 401, "/v2/models/{name}/stats", None),
    "HEAD": (lambda c: c.head("/model", headers=KEY), 200, "/model", "model"),
    "an unknown path": (lambda c: c.get("/Muster", headers=KEY), 404, "none", None),
    "an unknown model": (lambda c: c.post("/predict?model=Muster", headers=KEY), 404, "/predict", None),
    "an unknown version": (
        lambda c: c.get("/v2/models/model/versions/7", headers=KEY),
        404,
        "/v2/models/{name}/versions/{number}",
        "model",
    ),
    "a wrong method": (
        lambda c: c.delete("/v2/models/model/infer", headers=KEY),
        405,
        "/v2/models/{name}/infer",
        "model",
    ),
    "another host": (lambda c: c.get("/model", headers={"Host": "evil.example.org"}), 421, "/model", "model"),
    "another site": (lambda c: c.post("/predict", headers={"Origin": "http://evil.example"}), 403, "/predict", "model"),
    "no image": (lambda c: c.post("/predict", headers=KEY, files=upload(("Muster", b"x"))), 422, "/predict", "model"),
    "no form": (lambda c: c.post("/predict", headers=JSON, content=b"x"), 415, "/predict", "model"),
    "too large": (lambda c: c.post("/preview", headers=KEY, content=b"x" * 1_100_000), 413, "/preview", "model"),
    "too much JSON": (
        lambda c: c.post("/v2/models/model/infer", headers=KEY, content=b"x" * 1_100_000),
        413,
        "/v2/models/{name}/infer",
        "model",
    ),
    "a damaged request": (lambda c: send_raw(c, b"\x16\x03\x01\x02"), 400, "none", None),
    "headers of 70 kB": (lambda c: send_raw(c, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000), 400, "none", None),
    "a page": (lambda c: c.get("/"), 200, "/", None),
}


@pytest.mark.slow
def test_every_answer_is_logged_with_route_and_model(model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    limits = ("--api-key-file", str(key), "--max-body-mb", "1")
    with logging_server(model, "json", *limits) as server:
        for send, *_ in REQUESTS.values():
            with httpx.Client(base_url=server.client.base_url, timeout=60, trust_env=False) as client:
                send(client)
        metrics = server.client.get("/metrics", headers=KEY).text
        lines = [json.loads(line) for line in server.end()]
    requests = [line for line in lines if line["message"] == "request"][: len(REQUESTS)]
    for (what, (_, *expected)), line in zip(REQUESTS.items(), requests, strict=True):
        assert [line["status"], line["route"], line.get("model")] == expected, what
        assert line["client"] == "127.0.0.1"
    assert "Muster" not in server.stderr
    for _, status, route, _ in REQUESTS.values():
        assert f'xfeat_requests_total{{route="{route}",status="{status}"}}' in metrics


V6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
FORWARDED = ["10.1.2.3", "6.6.6.6, 10.1.2.3", "2001:db8::7", 'Muster" status=200']


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "clients"),
    [
        ((), ["127.0.0.1"] * 4),
        (("--trusted-proxy", "127.0.0.0/8"), ["10.1.2.3", "10.1.2.3", "2001:db8::7", "unknown"]),
        pytest.param(
            ("--host", "::", "--trusted-proxy", "127.0.0.1"),
            ["10.1.2.3", "10.1.2.3", "2001:db8::7", "unknown"],
            marks=V6,
        ),
        (("--no-log-client",), [None] * 4),
    ],
)
def test_the_client_is_that_of_the_proxy_only_where_it_is_trusted(
    model: Path, options: tuple[str, ...], clients: list[str | None]
) -> None:
    with logging_server(model, "text", *options, FORWARDED_ALLOW_IPS="*") as server:
        for forwarded in FORWARDED:
            server.client.get("/health", headers={"X-Forwarded-For": forwarded})
        lines = [line for line in server.end() if "route=/health" in line]
    for line, client in zip(lines, clients, strict=True):
        time, *fields = line.split(" ")
        assert datetime.fromisoformat(time).utcoffset() == timedelta(0)
        named = dict(field.split("=", 1) for field in fields)
        assert (named.get("client"), named["status"]) == (client, "200")


@pytest.mark.parametrize("proxy", ["proxy", "10.0.0.1/8", "10.0.0", "", "10.0.0.1:80", "127.0.0.1,10.0.0.1"])
def test_a_proxy_that_is_no_address_is_refused(proxy: str) -> None:
    with pytest.raises(SpecError, match="--trusted-proxy cannot be used"):
        AccessOptions(trusted_proxy=(proxy,))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("::1", 5), "::1"),
        (("fe80::1%eth0", 5), "fe80::1%eth0"),
        (("::ffff:10.1.2.3", 5), "10.1.2.3"),
        (("unknown", 0), "unknown"),
        (("a\nb", 0), "unknown"),
        (("", 0), "unknown"),
        (None, "unknown"),
    ],
)
def test_only_an_address_is_logged_as_client(given: Any, shown: str) -> None:
    assert client_address(given) == shown


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (["one line\n"], [("info", "one line")]),
        (["warning: three\nlines\n  of one\n"], [("warning", "three\nlines\n  of one")]),
        (["error: ", "in ", "parts", "\n"], [("error", "in parts")]),
        (["Error: as click writes it\n"], [("error", "as click writes it")]),
        (["\n", "\n\n", ""], []),
        (["note: no level\n"], [("info", "note: no level")]),
        (['{"time": "now", "message": 1}\n'], [(None, 1)]),
        (["caf\udce9\n"], [("info", "caf\udce9")]),
        (["unfinished"], []),
    ],
)
def test_each_message_is_one_line(written: list[str], lines: list[tuple[str | None, object]]) -> None:
    stream = io.StringIO()
    stderr = JsonStderr(stream)
    for text in written:
        assert stderr.write(text) == len(text)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line.get("level"), line["message"]) for line in found] == lines

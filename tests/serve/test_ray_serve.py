"""``deploy/ray_serve.py`` on a local Ray: two replicas give the predictions of the library."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

# Tells the processes of this test from those of others.
MARK = "XFEAT_RAY_SERVE_TEST"
DEPLOY = Path(__file__).parents[2] / "deploy"
DRIVER = """
import sys, ray
from ray import serve
from ray_serve import Settings, build
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build(Settings(model=sys.argv[1], replicas=2)), name="xfeat", route_prefix="/")
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


def has_ray_serve():
    # Part of it comes with ray[data] too, and fails on import.
    return all(importlib.util.find_spec(name) is not None for name in ("ray", "grpc_reflection"))


def free_port():
    """Return a port that neither Ray nor the system gives away while Ray starts: it binds this one seconds later."""
    for port in random.Random(os.getpid()).sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no port is free")


@pytest.fixture
def address(model):
    port = free_port()
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DEPLOY), MARK: str(port)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(model), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    try:
        lines = iter(driver.stdout.readline, "")
        assert any(line.strip() == "ready" for line in lines), driver.stderr.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        driver.communicate(timeout=60)


def start_times(client, pool):
    """Ask many times at once, since one replica would be enough for few requests; return which replicas answered."""
    replies = pool.map(lambda _: client.get("/metrics"), range(32))
    return {
        re.search(r"\nprocess_start_time_seconds (\S+)", reply.text)[1] for reply in replies if reply.status_code == 200
    }


def replicas(address):
    """Return the processes of the replicas behind an address."""
    found, mark = [], f"{MARK}={address.rpartition(':')[2]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_replica = b"ServeReplica" in (process / "cmdline").read_bytes()
            if of_replica and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not has_ray_serve(), reason="ray[serve] is not installed")
def test_replicas_give_the_predictions_of_the_library(address, predictor, tiny):
    colours = [(255, 0, 0), (0, 255, 0), (12, 99, 200), (250, 250, 250)]
    pictures = [tiny.draw(colour) for colour in colours]
    expected = predictor.predict_bytes(pictures)
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client, ThreadPoolExecutor(8) as pool:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        replies = list(pool.map(lambda file: client.post("/predict", files={"files": ("a.png", file)}), pictures * 6))
        for reply, answer in zip(replies, expected * 6, strict=True):
            found = reply.json()["predictions"][0]
            assert found["label"] == answer.label
            assert found["probabilities"] == pytest.approx(answer.probabilities, abs=1e-6)
        together = client.post("/predict", files=[("files", ("a.png", file)) for file in [*pictures, b"text"]]).json()
        assert [each["label"] for each in together["predictions"]] == [answer.label for answer in expected]
        assert len(together["skipped"]) == 1
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [255, 0, 0]}
        outputs = client.post("/v2/models/model/infer", json={"inputs": [tensor]}).json()["outputs"]
        assert outputs[0]["data"] == pytest.approx(list(expected[0].probabilities.values()), abs=1e-6)
        started, limit = set(), time.monotonic() + 30
        while len(started) < 2 and time.monotonic() < limit:
            started |= start_times(client, pool)
        assert len(started) == 2  # both replicas answer

        os.kill(replicas(address)[0], signal.SIGKILL)
        limit = time.monotonic() + 60
        while (alive := start_times(client, pool)) <= started or len(alive) < 2:
            assert time.monotonic() < limit, "the killed replica was not replaced"
        reply = client.post("/predict", files={"files": ("a.png", pictures[0])})
        assert reply.json()["predictions"][0]["label"] == expected[0].label

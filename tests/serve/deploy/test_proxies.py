"""nginx and Caddy with the files of deploy/, in front of a real server: what passes, and what does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.sharing import upload
from xfeat.serve.specs import MEBIBYTE, AccessOptions

DEPLOY = Path(__file__).parents[3] / "deploy"
SITE = "xray.example.org"
KEY = "secret"
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def program(command: list[str], port: int, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def certificate(folder: Path) -> Path:
    names = ["-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}"]
    files = ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *names],
        check=True,
        capture_output=True,
    )
    return folder / "fullchain.pem"


@contextlib.contextmanager
def nginx(upstream: str, folder: Path) -> Iterator[httpx.Client]:
    """Run nginx with deploy/nginx.conf, in which only addresses and the place of the certificate are replaced."""
    port, plain = free_port(), free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in {
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "server 127.0.0.1:8000;": f"server {upstream};",
        "/etc/ssl/xfeat": str(folder),
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "xfeat.conf").write_text(text)
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"user root; pid {folder}/pid; error_log stderr; events {{}} "
        f"http {{ access_log off; {places} include {folder}/xfeat.conf; }}"
    )
    trusted = ssl.create_default_context(cafile=str(certificate(folder)))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with program(command, port), through(port, trusted) as client:
        yield client


@contextlib.contextmanager
def caddy(upstream: str, folder: Path) -> Iterator[httpx.Client]:
    """Run Caddy with deploy/Caddyfile; ``local_certs`` makes its own authority sign, where Let's Encrypt would."""
    port, plain = free_port(), free_port()
    settings = f"{{\n admin off\n local_certs\n skip_install_trust\n https_port {port}\n http_port {plain}\n}}\n"
    (folder / "Caddyfile").write_text(settings + (DEPLOY / "Caddyfile").read_text())
    command = ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    places = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with program(command, port, XSERVE_UPSTREAM=upstream, XSERVE_SITE=SITE, **places):
        root = folder / "caddy/pki/authorities/local/root.crt"
        for _ in range(200):
            with contextlib.suppress(OSError, httpx.HTTPError):
                trusted = ssl.create_default_context(cafile=str(root))
                with through(port, trusted) as client:
                    client.get("/health")
                    break
            time.sleep(0.05)
        with through(port, trusted) as client:
            yield client


def through(port: int, trusted: ssl.SSLContext) -> httpx.Client:
    """Return a client that asks for the public name, at the address of this machine."""

    class HereTransport(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            request.extensions["sni_hostname"] = SITE
            request.url = request.url.copy_with(host="127.0.0.1", port=port)
            return super().handle_request(request)

    return httpx.Client(base_url=f"https://{SITE}:{port}", transport=HereTransport(verify=trusted), timeout=30)


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(request, predictor, serve_model, tmp_path):
    if shutil.which(request.param.__name__) is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    if request.param is nginx and shutil.which("openssl") is None:
        pytest.skip("needs openssl for a certificate")
    access = AccessOptions(api_key=KEY, allowed_host=(SITE,))
    with serve_model(predictor, access=access, max_body_bytes=32 * MEBIBYTE, max_files=1, max_queue=1) as direct:
        upstream = f"127.0.0.1:{direct.base_url.port}"
        with request.param(upstream, tmp_path) as client:
            client.direct = direct
            yield client


def test_a_proxy_passes_the_page_and_predictions_and_keeps_the_rest_for_the_machine(proxied, tiny, tmp_path):
    """One start of each proxy for all rows: starting takes longer than asking."""
    key = {"Authorization": f"Bearer {KEY}"}
    assert "Classify images" in proxied.get("/").text
    assert proxied.get("/v2/health/ready").status_code == 200

    image = tiny.draw((200, 30, 30))
    answer = proxied.post("/predict", files=upload(("a.png", image)), headers=key)
    assert answer.status_code == 200, answer.text
    direct = proxied.direct.post("/predict", files=upload(("a.png", image)), headers=key).json()
    assert answer.json() == direct
    assert answer.headers["x-request-id"]
    assert proxied.post("/predict", files=upload(("a.png", image))).status_code == 401

    # A page of the same site may send, one of another site may not.
    for origin, status in ((f"https://{SITE}:{proxied.base_url.port}", 200), ("https://elsewhere.example", 403)):
        sent = proxied.post("/predict", files=upload(("a.png", image)), headers={**key, "Origin": origin})
        assert sent.status_code == status, origin

    for path in ("/metrics", "/metrics/", "//metrics", "/%6detrics", "/x/../metrics", "/admin/reload", "/metrics?a"):
        found = proxied.request("GET", f"https://{SITE}:{proxied.base_url.port}{path}", headers=key)
        assert found.status_code in (301, 308, 404), path
        assert "xfeat_" not in found.text, path
    assert proxied.direct.get("/metrics", headers=key).status_code == 200

    # The limits of the server arrive as they are.
    two = proxied.post("/predict", files=upload(("a.png", image), ("b.png", image)), headers=key)
    assert two.status_code == 413
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # closed while the body was still being sent
        large = proxied.post("/predict", content=b"0" * (33 * MEBIBYTE), headers=key)
        assert (large.status_code, list(large.json())) == (413, ["error"])

    # No image has been written to the disk.
    assert [path for path in tmp_path.rglob("*") if path.is_file() and image[:64] in path.read_bytes()] == []

"""onnxruntime-web in Node, and in headless Chromium on a page that a server in this process serves."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

Feed = np.ndarray
HERE = Path(__file__).parent
TIMEOUT_S = 120
_CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def by_node(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    with job(path, feeds) as folder:
        command = ["node", HERE / "node.mjs", node_modules(), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr))
    return as_arrays(json.loads(done.stdout), feeds)


def by_chromium(path: Path, feeds: list[Feed]) -> list[np.ndarray]:
    with job(path, feeds) as folder:
        roots = {"node_modules": node_modules(), "page": HERE, "job": folder}
        result = in_chromium("/page/page.html", roots)
    if "error" in result:
        raise RuntimeError(result["error"])
    return as_arrays(result["outputs"], feeds)


def node_modules() -> Path:
    """Return the folder of npm's packages: XFEAT_NODE_MODULES, or ``node_modules`` in the current folder."""
    return Path(os.environ.get("XFEAT_NODE_MODULES", "node_modules")).resolve()


def web_version(*programs: str) -> str | None:
    """Return the version of onnxruntime-web, or ``None`` if it is missing, or all of the programs that can run it."""
    file = node_modules() / "onnxruntime-web" / "package.json"
    if not file.is_file() or not any(map(shutil.which, programs)):
        return None
    return str(json.loads(file.read_text())["version"])


def chromium() -> str | None:
    """Return the path of Chromium, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def chromium_version() -> str | None:
    """Return the versions of onnxruntime-web and of the browser."""
    version, program = web_version("chromium", "chromium-browser", "google-chrome"), chromium()
    if version is None or program is None:
        return None
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"\d+", printed)
    return f"{version}, Chromium {number.group() if number else '?'}"


@contextmanager
def job(path: Path, feeds: list[Feed]) -> Iterator[Path]:
    """Yield a temporary folder with the model and the inputs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").symlink_to(path.resolve())
        for number, feed in enumerate(feeds):
            np.ascontiguousarray(feed).tofile(folder / f"{number}.bin")
        kind = "uint8" if feeds[0].dtype == np.uint8 else "float32"
        (folder / "job.json").write_text(json.dumps({"kind": kind, "shapes": [list(feed.shape) for feed in feeds]}))
        yield folder


def as_arrays(outputs: list[list[float]], feeds: list[Feed]) -> list[np.ndarray]:
    return [np.array(row, np.float32).reshape(len(feed), -1) for row, feed in zip(outputs, feeds, strict=True)]


def in_chromium(page: str, roots: dict[str, Path]) -> dict[str, Any]:
    """Open a page in headless Chromium and return the JSON that it posts to ``/result``.

    Args:
        page: path on the server, such as ``/page/page.html``.
        roots: first part of a URL path to the folder served under it.

    Raises:
        RuntimeError: if there is no browser, or it posts nothing in time.
    """
    program = chromium()
    if program is None:
        raise RuntimeError("Chromium is not installed")
    results: queue.Queue[dict[str, Any]] = queue.Queue()
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), _handler(roots, results)) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}{page}"
        browser = subprocess.Popen(
            [program, *_CHROMIUM, f"--user-data-dir={profile}", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return results.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise RuntimeError(f"the page posted no result within {TIMEOUT_S} s") from None
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()


def _handler(roots: dict[str, Path], results: queue.Queue[dict[str, Any]]) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            first, _, rest = path.lstrip("/").partition("/")
            return str(roots[first] / rest) if first in roots else os.devnull + "/none"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            results.put(json.loads(body))

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler

"""A real browser: headless Chromium, driven through its own debugging protocol, on loopback only."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.static_site import onnxruntime_web
from xfeat.serve.static_site.onnxruntime_web import PACKAGE, VERSION, find_runtime, runtime_cache
from xfeat.serve.static_site.write import write_site

# Of this machine: while tests run, the cache is a folder of theirs.
RUNTIME = runtime_cache()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
]
WITHOUT_NETWORK = (
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
)
AUDIT = {"audited": True, "passed": False, "failures": ["patients are in two splits"], "warnings": ["the border tells"]}
EVERYTHING = {"ood": True, "ood_threshold": 0.5, "heatmap": True, "audit": AUDIT, "positive": "covid", "threshold": 0.4}
KEYS = {"Enter": 13, "Tab": 9, " ": 32, "ArrowRight": 39}

SAVED_CSV = """new Promise((done) => {
  const plain = URL.createObjectURL;
  URL.createObjectURL = (blob) => { if (blob.type === 'text/csv') blob.text().then(done); return plain(blob); };
  document.getElementById('save').click();
})"""


class Browser:
    """One page of Chromium, by the DevTools protocol.

    Attributes:
        complaints: errors in the page's console, also of addresses that its policy forbids.
        requests: every address requested by the page and its workers.
    """

    def __init__(self, connection):
        self.complaints = []
        self.requests = []
        self._connection = connection
        self._number = 0

    async def call(self, method, **parameters):
        self._number += 1
        await self._connection.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._connection.receive_json(timeout=60)
            if message.get("id") == self._number:
                assert "error" not in message, message
                assert message.get("type", "success") == "success", message  # of Firefox
                return message["result"]
            self._hear(message)

    def _hear(self, message):
        said = message.get("params", {})
        if message.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(said["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    async def open(self, address):
        for domain in ("Log", "Runtime", "Network", "Page", "DOM"):
            await self.call(f"{domain}.enable")
        if address.startswith("file:"):
            offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
            await self.call("Network.emulateNetworkConditions", **offline)
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, script):
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def text(self, selector):
        return await self.value(f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')")

    async def until(self, script):
        for _ in range(600):
            if await self.value(script):
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"never true: {script}; the page shows: {await self.text('body')}; {self.complaints}")

    async def until_status(self, start):
        await self.until(f"document.querySelector('#status')?.innerText.startsWith({json.dumps(start)})")

    async def loaded(self):
        await self.until("document.querySelector('#description')?.innerText.includes('Test accuracy')")

    async def choose(self, *paths):
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector="#files"))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    async def save(self):
        """Press the button for the CSV file and return its text."""
        return await self.value(SAVED_CSV)

    async def press(self, key):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        described = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper())), "code": key}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **described)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **described)

    async def look(self, *, width=1200, height=900, dark=False):
        """Show the page on a screen of this size, in this colour scheme."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)

    async def picture(self, path, *, whole=True):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def chromium(profile, *flags):
    """Start Chromium and yield a function that runs a coroutine function with a page of it on an address."""
    aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp, which comes with tritonclient[http]")
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    port = None
    for line in process.stderr:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
            port = found[1]
            break

    async def drive(address, visit):
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.put("/json/new?about:blank") as reply:
                target = json.loads(await reply.text())
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as connection:
                browser = Browser(connection)
                await browser.open(address)
                await visit(browser)
            async with session.get(f"/json/close/{target['id']}"):
                pass

    try:
        assert port, "Chromium did not start"
        yield lambda address, visit: asyncio.run(drive(address, visit))
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def file_server(folder, asked=None):
    """Serve a folder as ``python -m http.server`` does, and yield its address; note in ``asked`` what is asked for."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            if asked is not None:
                asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """Return a function that runs a coroutine function with a browser on an address."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with chromium(tmp_path_factory.mktemp("profile")) as drive:
        yield drive


@pytest.fixture(scope="session", params=["chromium", "firefox"])
def browse_offline(request, tmp_path_factory):
    """Return a function that runs a coroutine function with a browser that has no network, on a file."""
    from tests.serve.page.firefox import FIREFOX, firefox

    if not {"chromium": CHROMIUM, "firefox": FIREFOX}[request.param]:
        pytest.skip(f"needs {request.param}")
    profile = tmp_path_factory.mktemp("offline")
    with chromium(profile, *WITHOUT_NETWORK) if request.param == "chromium" else firefox(profile) as drive:
        yield lambda file, visit: drive(file.as_uri(), visit)


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Return the folder with onnxruntime-web. Where it is not cached yet, npm fetches it: a CDN may be out of reach."""
    if not RUNTIME.is_dir():
        if shutil.which("npm") is None:
            pytest.skip("needs onnxruntime-web, or npm, which fetches it")
        folder = tmp_path_factory.mktemp("npm")
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--loglevel=error", "--pack-destination", str(folder)]
        if subprocess.run(command, check=False, capture_output=True, timeout=600).returncode:
            pytest.skip("needs onnxruntime-web, and npm cannot fetch it")
        files = find_runtime(next(folder.glob("*.tgz")))
        RUNTIME.mkdir(parents=True)
        for name, content in files.items():
            (RUNTIME / name).write_bytes(content)
    return RUNTIME


# In place of the files of onnxruntime-web, where no browser runs them.
FILES = {"ort.wasm.bundle.min.mjs": b"export {};", "ort-wasm-simd-threaded.wasm": b"\0asm"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the archive of a stand-in package; its digests are the expected ones, and the cache is empty."""
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    digests = {name: base64.b64encode(hashlib.sha512(content).digest()).decode() for name, content in FILES.items()}
    monkeypatch.setattr(onnxruntime_web, "SHA512", digests)
    monkeypatch.delenv("XFEAT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XFEAT_WEIGHTS_MIRROR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return archive


@pytest.fixture
def serve_folder():
    """Return :func:`file_server`."""
    return file_server


@pytest.fixture(params=["server", "browser"])
def open_page(request, write_model, tmp_path, serve_model, browse):
    """Return a function that runs a coroutine function with one form of the page; changes are those of the model."""

    def open_page(visit, **changes):
        model = write_model(**EVERYTHING | changes)
        if request.param == "server":
            with serve_model(Predictor.open(model, device="cpu")) as client:
                browse(str(client.base_url), visit)
        else:
            write_site(model, tmp_path / "site", request.getfixturevalue("runtime"))
            with file_server(tmp_path / "site") as address:
                browse(address, visit)

    return open_page


@pytest.fixture
def three_images(tiny, tmp_path):
    """Return the paths of an image in distribution, one out of distribution, and a file that is not an image."""
    contents = {"dark.png": tiny.draw((0, 90, 0)), "bright.png": tiny.draw((255, 200, 250)), "text.png": b"text"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]

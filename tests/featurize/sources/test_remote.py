"""Images in an object store and on web servers: read, brought up to date, cut off, resumed. The servers run here."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import xfeat
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import DataError
from xfeat.featurize.pipeline.reading_processes import read_in_processes
from xfeat.featurize.sources import connection

if TYPE_CHECKING:
    from conftest import Bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store() -> Iterator[SimpleNamespace]:
    """Start an object store with one bucket."""
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "a")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield SimpleNamespace(client=client, port=port)
        client.close()
    server.stop()


def put(store: SimpleNamespace, folder: Path, prefix: str) -> str:
    for file in sorted(folder.rglob("*.*")):
        store.client.upload_file(str(file), "bucket", f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://bucket/{prefix}"


def test_a_bucket_gives_the_features_of_its_folder_and_changes_are_noticed(
    bench: Bench, store: SimpleNamespace, art: SimpleNamespace, tmp_path: Path
) -> None:
    bench.run()
    expected = FeatureCache.open(bench.output)
    url = put(store, bench.data, "d")
    bench.output = tmp_path / "remote.h5"
    assert bench.run(data=url).computed == 12
    cache = FeatureCache.open(bench.output)
    assert np.array_equal(cache.features, expected.features)
    assert cache.data_root == url
    assert cache.images.root == open_dataset(url).root
    assert bench.run(data=url).up_to_date
    victim = art.draw(tmp_path / "x.png", seed=99)
    store.client.upload_file(str(victim), "bucket", "d/covid/000.png")
    done = bench.run(data=url)
    assert (done.computed, done.rehashed, done.changes.changed) == (1, 0, 1)
    store.client.delete_object(Bucket="bucket", Key="d/covid/000.png")
    assert bench.run(data=url).changes.vanished == 1


def test_archives_in_a_bucket_are_read_by_ranges(bench: Bench, store: SimpleNamespace, tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(bench.data.rglob("*.png")):
            packed.write(file, file.relative_to(bench.data).as_posix())
    store.client.upload_file(str(archive), "bucket", "z/data.zip")
    assert bench.run(data="s3://bucket/z/data.zip").computed == 12
    bench.check()
    assert bench.run(data="s3://bucket/z/data.zip").up_to_date


def test_processes_open_their_own_connection(bench: Bench, store: SimpleNamespace) -> None:
    dataset = open_dataset(put(store, bench.data, "p"))
    paths = [entry.path for entry in dataset.entries]
    images = list(read_in_processes(dataset.open(), paths, bench.spec, known=np.zeros(0, "S64"), workers=2))
    assert [image.path for image in images] == paths
    assert all(image.pixels is not None for image in images)


class Proxy:
    """Passes bytes on to a server, until it is cut."""

    def __init__(self, port: int) -> None:
        self._target, self.cut = port, False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            end.close()

    def cut_off(self) -> None:
        self.cut = True
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self.cut_off()
        self._listening.close()


@pytest.fixture
def proxy(store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Put a proxy before the object store."""
    with closing(Proxy(store.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


def test_a_connection_that_is_cut_ends_the_run_which_resumes(
    bench: Bench, store: SimpleNamespace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(store, bench.data, "c")
    monkeypatch.setattr(connection, "WAITS_S", (0.01, 0.02))
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        proxy.cut_off()

    bench.engine.batch_size = 2
    with pytest.raises(DataError, match="no answer after 3 attempts") as cut:
        bench.run(data=url, workers=1, progress=progress)
    assert "xfeat featurize resumes" in str(cut.value)
    assert 0 < seen[-1] < 12
    proxy.cut = False
    done = bench.run(data=url, workers=1)
    assert (done.images, done.skipped) == (12, [])
    assert 0 < done.computed < 12, "what was finished is not computed again"
    bench.check()


def test_a_short_interruption_is_not_noticed(bench: Bench, store: SimpleNamespace, proxy: Proxy) -> None:
    url = put(store, bench.data, "i")
    cuts = 0

    def progress(done: int, total: int) -> None:
        nonlocal cuts
        if cuts < 2:
            cuts += 1
            proxy.cut_off()
            threading.Timer(0.3, setattr, (proxy, "cut", False)).start()

    bench.engine.batch_size = 2
    assert bench.run(data=url, workers=1, progress=progress).images == 12
    bench.check()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://nobucket/x", "nothing is there"),
        ("s3://bucket/nothing", "nothing is there"),
        ("s3://bucket/nothing.zip", "nothing is there"),
        ("s3://bucket/s/x-{0..1}.tar", "nothing is there"),
    ],
)
def test_an_address_with_nothing_is_said(store: SimpleNamespace, url: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(url)


# Web servers


class Web(http.server.BaseHTTPRequestHandler):
    """Serves one file; what it can is that of the server's class."""

    protocol_version = "HTTP/1.1"
    content = b""
    ranges, etag, status, requests = True, True, 200, 0

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        kind = type(self)
        kind.requests += 1
        if kind.status != 200:
            self.send_error(kind.status)
            return
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "") if kind.ranges else None
        first, last = (int(wanted[1]), int(wanted[2] or len(kind.content) - 1)) if wanted else (0, len(kind.content))
        data = kind.content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data)))
        if kind.etag:
            self.send_header("ETag", f'"{hash(kind.content)}"')
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{len(kind.content)}")
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(bench: Bench, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Serve an archive of the bench's images."""
    archive = tmp_path / "web.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(bench.data.rglob("*.png")):
            packed.write(file, file.relative_to(bench.data).as_posix())
    kind = type("Kind", (Web,), {"content": archive.read_bytes()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(kind=kind, address=f"127.0.0.1:{server.server_port}/x.zip")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_archive_on_a_web_server_is_read(
    bench: Bench, web: SimpleNamespace, ranges: bool, caplog: pytest.LogCaptureFixture
) -> None:
    web.kind.ranges = ranges
    caplog.set_level("INFO")
    url = f"http://user:pw@{web.address}?X-Amz-Signature=SECRET"
    assert bench.run(data=url).computed == 12
    bench.check()
    assert bench.run(data=url).up_to_date
    assert ("all of it is fetched to a temporary file" in caplog.text) == (not ranges)
    stored = bench.output.read_bytes()
    assert f"http://{web.address}".encode() in stored
    assert not [secret for secret in ("SECRET", "pw") if secret.encode() in stored or secret in caplog.text]


def test_without_etag_and_time_every_run_reads_again(
    bench: Bench, web: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    web.kind.etag = False
    bench.run(data=f"http://{web.address}")
    done = bench.run(data=f"http://{web.address}")
    assert (done.computed, done.rehashed) == (0, 12)
    assert "neither ETag nor time" in caplog.text


@pytest.mark.parametrize(
    ("status", "words"), [(404, "nothing is there"), (403, "access is refused"), (500, "no answer after")]
)
def test_an_answer_of_a_web_server_is_one_message(
    web: SimpleNamespace, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.kind.status = status
    monkeypatch.setattr(connection, "WAITS_S", (0.01,))
    with pytest.raises(DataError, match=words) as told:
        open_dataset(f"http://u:secret@{web.address}?sig=secret")
    assert "secret" not in str(told.value)


def test_a_listed_table_of_features_trains_without_a_connection(
    bench: Bench, store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Opening a cache of a bucket asks nobody."""
    bench.run(data=put(store, bench.data, "t"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    cache = xfeat.open_cache(bench.output)
    assert str(cache.images.root) == "s3://bucket/t"
    xfeat.dump(bench.output, tmp_path / "x.npz")
    assert xfeat.load(tmp_path / "x.npz", tmp_path / "b.h5").cache.data_root == "s3://bucket/t"


def test_a_table_in_a_bucket_names_images_there(bench: Bench, store: SimpleNamespace, tmp_path: Path) -> None:
    put(store, bench.data, "m")
    rows = "file,finding,patient\ncovid/000.png,x,1\nnormal/001.png,y,2\nmissing.png,x,3\n"
    store.client.put_object(Bucket="bucket", Key="m/labels.csv", Body=rows.encode())
    dataset = open_dataset("s3://bucket/m/labels.csv")
    assert (dataset.class_names, str(dataset.root)) == (("x", "y"), "s3://bucket/m")
    done = bench.run(data="s3://bucket/m/labels.csv")
    assert (done.images, [path for path, _ in done.skipped]) == (2, ["missing.png"])
    with pytest.raises(DataError, match=r"nothing is there|no such object"):
        open_dataset("s3://bucket/none/labels.csv")

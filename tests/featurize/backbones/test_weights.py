"""Where weights come from, in which order, and what happens when a server misbehaves."""

from __future__ import annotations

import hashlib
import http.server
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from xfeat.featurize.backbones import weights as module
from xfeat.featurize.backbones.registry import BACKBONES, backbone_info
from xfeat.featurize.backbones.weights import Weights, download, find_preferred_weights, find_weights
from xfeat.featurize.errors import OutputError, SpecError, WeightsError

CONTENT = b"weights " * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A server on this machine that misbehaves as told."""

    url: str = ""
    mode: str = "good"
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            if state.mode == "absent":
                self.send_error(404)
                return
            self.send_response(200)
            if state.mode != "unsized":
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000] if state.mode == "breaks" else CONTENT)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_port}"
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty torch hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(module.MIRROR_VARIABLE, raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


def fake_official(monkeypatch: pytest.MonkeyPatch, server: Server) -> str:
    """Let the test's content be B0's official weights, served by a mirror; return the file's name."""
    import dataclasses

    info = dataclasses.replace(BACKBONES["efficientnet-b0"], sha256_prefix=DIGEST[:8])
    monkeypatch.setitem(BACKBONES, "efficientnet-b0", info)
    monkeypatch.setenv(module.MIRROR_VARIABLE, server.url + "/")
    return info.file_name


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def test_a_file_comes_before_everything_else(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    found = find_weights("efficientnet-b0", file=tmp_path / "mine.pth")
    assert (found.path, found.sha256) == (tmp_path / "mine.pth", DIGEST)
    with pytest.raises(WeightsError, match="weights file not found"):
        find_weights("efficientnet-b0", file=tmp_path / "absent.pth")


def test_the_hub_cache_comes_before_the_network(hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fake_official(monkeypatch, server)
    hub.mkdir(parents=True)
    (hub / name).write_bytes(CONTENT)
    assert find_weights("efficientnet-b0").path == hub / name
    assert server.asked == []


def test_the_hub_cache_is_where_torch_has_it(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reference is torch's own function."""
    import torch

    name = fake_official(monkeypatch, server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = []
    for _ in range(2):
        folders.append(Path(torch.hub.get_dir()) / "checkpoints")
        folders[-1].mkdir(parents=True)
        (folders[-1] / name).write_bytes(CONTENT)
        assert find_weights("efficientnet-b0").path == folders[-1] / name
        monkeypatch.delenv("TORCH_HOME", raising=False)
    assert folders == [hub, tmp_path / "cache" / "torch" / "hub" / "checkpoints"]
    assert server.asked == []


@pytest.mark.parametrize("find", [lambda: find_weights("efficientnet-b0"), find_preferred_weights])
def test_a_damaged_file_in_the_hub_cache_is_refused_by_name_and_by_auto(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch, find: Callable[[], Weights]
) -> None:
    name = fake_official(monkeypatch, server)
    hub.mkdir(parents=True)
    (hub / name).write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"damaged(.|\n)*delete"):
        find()


def test_a_wheel_needs_no_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download", lambda *_a, **_k: pytest.fail("asked the network"))
    found = find_weights("efficientnet-lite0")
    assert found.path.name.endswith(".pth")
    assert len(found.sha256) == 64


def test_a_download_from_a_mirror_is_checked_and_kept(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fake_official(monkeypatch, server)
    seen: list[tuple[int, int]] = []
    found = find_weights("efficientnet-b0", progress=lambda done, total: seen.append((done, total)))
    assert found.path == hub / name
    assert found.path.read_bytes() == CONTENT
    assert server.asked == [f"/{name}"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    find_weights("efficientnet-b0")
    assert len(server.asked) == 1
    assert left_in(hub) == [name]


MIRRORS = {
    "folder": "{0}/my mirror",
    "folder with a slash": "{0}/my mirror/",
    "relative folder": "my mirror",
    "folder at home": "~/my mirror",
    "a folder that looks like a home": "~nobody at all/../my mirror",
    "file URL": "file://{0}/my%20mirror",
    "file URL with a slash and a space": "file://{0}/my mirror/",
}


@pytest.mark.parametrize("kind", MIRRORS)
def test_a_mirror_may_be_a_folder(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    name = fake_official(monkeypatch, server)
    (tmp_path / "my mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(module.MIRROR_VARIABLE, MIRRORS[kind].format(tmp_path))
    with pytest.raises(WeightsError, match="No such file or directory") as caught:
        find_weights("efficientnet-b0")
    assert name in str(caught.value)
    (tmp_path / "my mirror" / name).write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="not the official file"):
        find_weights("efficientnet-b0")
    (tmp_path / "my mirror" / name).write_bytes(CONTENT)
    found = find_weights("efficientnet-b0")
    assert (found.path, found.sha256) == (hub / name, DIGEST)
    assert server.asked == []


def test_a_server_that_does_not_say_how_much_is_accepted(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mode = "unsized"
    fake_official(monkeypatch, server)
    assert find_weights("efficientnet-b0").sha256 == DIGEST


def fetch(server: Server, target: Path, sha256_prefix: str = DIGEST[:8]) -> None:
    download(f"{server.url}/w.pth", target, digest=sha256_prefix)


@pytest.mark.parametrize(
    ("mode", "prefix", "said"),
    [
        ("good", "00000000", "not the official file"),
        ("breaks", DIGEST[:8], "connection lost after 1000 of 40000 bytes"),
        ("absent", DIGEST[:8], "Not Found"),
    ],
)
def test_a_server_that_misbehaves_leaves_no_file(
    server: Server, tmp_path: Path, mode: str, prefix: str, said: str
) -> None:
    server.mode = mode
    with pytest.raises(WeightsError, match=said):
        fetch(server, tmp_path / "new" / "w.pth", prefix)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("speaks", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\nabc"])
def test_a_server_that_falls_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speaks: bytes) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            connection, _ = listener.accept()
            held.append(connection)
            connection.recv(1000)
            connection.sendall(speaks)

        threading.Thread(target=accept, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(WeightsError, match=r"no answer|timed out"):
            fetch(Server(url=f"http://127.0.0.1:{listener.getsockname()[1]}"), tmp_path / "w.pth")
        assert time.monotonic() - started < 30, "it must give up by itself"
        for connection in held:
            connection.close()
    assert left_in(tmp_path) == []


def test_a_connection_that_comes_after_the_timeout_is_closed_and_its_thread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)
    released, closed = threading.Event(), threading.Event()

    class Late:
        close = staticmethod(closed.set)

    def connects_late(*_: object, **__: object) -> Late:
        assert released.wait(30)
        return Late()

    monkeypatch.setattr("urllib.request.urlopen", connects_late)
    before = set(threading.enumerate())
    with pytest.raises(WeightsError, match="no answer"):
        module._open_url("http://localhost/w.pth")
    released.set()
    assert closed.wait(30)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_a_name_that_cannot_be_looked_up_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no-such-host"):
        fetch(Server(url="http://no-such-host.invalid"), tmp_path / "w.pth")


def test_a_cache_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(server, tmp_path / "file" / "w.pth")


def test_auto_falls_back_to_lite0_and_says_so(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.mode = "absent"
    fake_official(monkeypatch, server)
    with caplog.at_level(logging.WARNING):
        assert find_preferred_weights().backbone == "efficientnet-lite0"
    assert len(caplog.messages) == 1
    assert "using efficientnet-lite0 instead" in caplog.text


def test_a_cache_folder_that_cannot_be_written_has_its_own_fix(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_official(monkeypatch, server)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot be stored(.|\n)*TORCH_HOME(.|\n)*--weights") as caught:
        find_weights("efficientnet-b0")
    assert "with -o" not in str(caught.value)


def test_auto_falls_back_where_weights_cannot_be_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_official(monkeypatch, server)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    assert find_preferred_weights().backbone == "efficientnet-lite0"
    (said,) = caplog.messages
    assert "cannot be written" in said
    assert "using efficientnet-lite0 instead" in said


def test_a_cache_folder_that_may_not_be_entered_counts_as_empty(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may enter everything, so the system's answer is given by hand."""
    server.mode = "absent"
    fake_official(monkeypatch, server)
    stat, asked = os.stat, []

    def denied(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if Path(path).is_relative_to(hub):
            asked.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        with pytest.raises(WeightsError, match="cannot be downloaded"):
            find_weights("efficientnet-b0")
    assert asked


def test_a_backbone_named_explicitly_is_never_replaced(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mode = "absent"
    name = fake_official(monkeypatch, server)
    with pytest.raises(WeightsError) as caught:
        find_weights("efficientnet-b0")
    for word in (f"{server.url}/{name}", DIGEST[:8], str(hub / name), "--weights FILE"):
        assert word in str(caught.value)


def test_weights_that_no_wheel_carries_say_what_to_do(hub: Path) -> None:
    with pytest.raises(WeightsError, match="--weights FILE"):
        find_weights("efficientnet-lite4")


def test_an_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="efficientnet-lite4"):
        find_weights("resnet50")


def test_the_table_of_backbones_is_that_of_the_packages() -> None:
    """The references are the packages' own tables of sizes and addresses."""
    from efficientnet_lite_pytorch.utils import efficientnet_params as lite_params
    from efficientnet_pytorch.utils import efficientnet_params, url_map

    for name, info in BACKBONES.items():
        lite = "lite" in name
        sizes = lite_params(name) if lite else efficientnet_params(name)
        assert info.default_size == sizes[2], name
        assert info.url == (None if lite else url_map[name]), name
    assert backbone_info("efficientnet-b0").file_name == "efficientnet-b0-355c32eb.pth"

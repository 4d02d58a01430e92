"""Whatever prevents the server from listening is one message, with address, port and fix, and exit code 1."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from xfeat.featurize.errors import AddressError, SpecError
from xfeat.serve.cli import main
from xfeat.serve.http.listen import listen, url_of
from xfeat.serve.specs import ServerOptions

# Host, and a part of the reason. None: any words of the system.
IMPOSSIBLE = [
    ("203.0.113.1", "Cannot assign requested address"),
    ("2001:db8::1", None),
    ("[2001:db8::1]", None),
    ("fe80::1%nothing0", None),
    ("no.such.name.invalid", None),
    ("127.0.0.1:8000", None),
    ("http://127.0.0.1", None),
    (" 127.0.0.1", None),
    ("", None),
    ("[]", None),
    ("a" * 100, "not a host name"),
    ("a..b", "not a host name"),
    ("a\0b", None),
]


@pytest.mark.parametrize(("host", "reason"), IMPOSSIBLE)
def test_an_impossible_address_is_one_message(model: Path, host: str, reason: str | None) -> None:
    done = CliRunner().invoke(main, ["start", str(model), "--device", "cpu", "--port", "8123", "--host", host])
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    first, fix = done.stderr.splitlines()
    assert first.startswith("error: cannot listen on port 8123 of ")
    assert (host.replace("\0", "\\x00") or "an empty host") in first
    assert reason is None or first.endswith(reason)
    assert fix.startswith("  fix:      ")
    assert "--host 127.0.0.1" in fix


@pytest.mark.parametrize(
    ("number", "port", "fix"),
    [
        (errno.EADDRINUSE, 8000, "--port 8001"),
        (errno.EADDRINUSE, 65535, "--port 65534"),
        (errno.EACCES, 80, "CAP_NET_BIND_SERVICE"),
        (errno.EPERM, 443, "CAP_NET_BIND_SERVICE"),
        (errno.EACCES, 8000, "--host"),
        (errno.EADDRNOTAVAIL, 8000, "--host"),
        (errno.EMFILE, 8000, "--host"),
    ],
)
def test_each_reason_has_its_fix(monkeypatch: pytest.MonkeyPatch, number: int, port: int, fix: str) -> None:
    """Root may bind any port, so the system's refusal is raised here in its place."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(AddressError, match=os.strerror(number)) as refused:
        listen("127.0.0.1", port)
    assert fix in str(refused.value.fix)


@pytest.mark.parametrize("taker", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_named_with_the_program_that_finds_its_user(model: Path, taker: str) -> None:
    with socket.create_server((taker, 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(main, ["start", str(model), "--device", "cpu", "--port", str(port)])
    assert done.exit_code == 1
    assert f"cannot listen on port {port} of 127.0.0.1: Address already in use" in done.stderr
    assert f"ss -ltnp 'sport = :{port}'" in done.stderr


def ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


V6 = pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        pytest.param("::1", "[::1]", marks=V6),
        pytest.param("[::1]", "[::1]", marks=V6),
        pytest.param("::ffff:127.0.0.1", "[::ffff:127.0.0.1]", marks=V6),
    ],
)
def test_an_address_is_listened_on_and_shown_as_an_url(host: str, shown: str) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(host, listener) == f"http://{shown}:{port}"
        socket.create_connection((host.strip("[]"), port)).close()


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_a_port_that_does_not_exist_is_refused_and_not_taken_modulo(port: int) -> None:
    with pytest.raises(SpecError, match="port out of range"):
        ServerOptions(port=port)

"""Who may ask, and under which address: host names, pages of other sites, the prefix of a proxy."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import threading

import pytest
from click.testing import CliRunner

from xfeat.serve.cli import main
from xfeat.serve.specs import AccessOptions

SITE = "https://viewer.example"


def ask(client, method="GET", address="/v2/health/live", body=b"", headers=()):
    """Send exactly these headers, and return status, headers and JSON."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.putrequest(method, address, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.headers, json.loads(content) if content[:1] == b"{" else content


OWN_HOSTS = [
    *(
        "localhost",
        "localhost:8000",
        "localhost:",
        "LOCALHOST.",
        "127.0.0.1:8000",
        "192.168.7.9",
        "[::1]:8000",
        "[fe80::1]",
    ),
    *("[fe80::1]", "xserve", "xserve:8000", "server.local", "xfeat.ns.svc.internal", "a.localhost"),
]
OTHER_HOSTS = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example."),
    *(
        "127.0.0.1@evil.example",
        "localhost/evil.example",
        "",
        "[evil.example]",
        "xfeat.local.evil.example",
        "ä.example",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("host", OWN_HOSTS)
def test_addresses_and_names_that_nobody_can_register_are_the_servers_own(client, host):
    assert ask(client, headers=[("Host", host)])[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_a_name_that_another_site_could_point_here_is_421(client, host):
    """DNS rebinding: a page of evil.example, whose name now means this machine."""
    status, headers, body = ask(client, headers=[("Host", host.encode())])
    assert status == 421
    assert "--allowed-host" in body["error"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_a_request_without_one_host_is_400(client, hosts):
    assert ask(client, headers=[("Host", host) for host in hosts])[0] == 400


@pytest.mark.slow
def test_http_1_0_needs_no_host(client):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
def test_names_can_be_allowed(predictor, serve_model):
    with serve_model(predictor, access=AccessOptions(allowed_host=("xray.hospital.example",))) as client:
        assert ask(client, headers=[("Host", "XRAY.hospital.example:443")])[0] == 200
        assert ask(client, headers=[("Host", "a.xray.hospital.example")])[0] == 421
    with serve_model(predictor, access=AccessOptions(allowed_host=("*",))) as client:
        assert ask(client, headers=[("Host", "evil.example")])[0] == 200


POSTS = [
    # a program, and this server's own page in old and new browsers
    ([], 200),
    ([("Origin", "http://xserve:8000")], 200),
    ([("Sec-Fetch-Site", "same-origin"), ("Origin", "http://xserve:8000")], 200),
    ([("Sec-Fetch-Site", "none")], 200),
    # behind a proxy that puts its own name into Host
    ([("Sec-Fetch-Site", "same-origin"), ("Origin", "https://xray.example")], 200),
    # pages of other sites, and of another port
    ([("Origin", "https://evil.example")], 403),
    ([("Origin", "http://xserve:8001")], 403),
    ([("Origin", "null")], 403),
    ([("Origin", "")], 403),
    ([("Sec-Fetch-Site", "cross-site")], 403),
    ([("Sec-Fetch-Site", "same-site"), ("Origin", "https://other.xserve")], 403),
    ([("Sec-Fetch-Site", "cross-site"), ("Origin", "http://xserve:8000")], 403),
    # a page whose site is listed
    ([("Origin", SITE), ("Sec-Fetch-Site", "cross-site")], 200),
    ([("Origin", f"{SITE}.evil.example"), ("Sec-Fetch-Site", "cross-site")], 403),
]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["/predict", "/preview", "/v2/models/model/infer", "/v2/repository/index"])
def test_pages_of_other_sites_cannot_send_requests_unless_they_are_listed(predictor, serve_model, tiny, address):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
    body = json.dumps({"inputs": [tensor]}).encode() if "infer" in address else tiny.draw((1, 2, 3))
    with serve_model(predictor, access=AccessOptions(cors_origin=(SITE,))) as client:
        for headers, expected in POSTS:
            status, _, answer = ask(client, "POST", address, body, [("Host", "xserve:8000"), *headers])
            assert (status, headers) == (expected, headers)
            assert expected == 200 or "--cors-origin" in answer["error"]
    with serve_model(predictor) as client:
        assert ask(client, "POST", address, body, [("Host", "xserve:8000"), ("Origin", SITE)])[0] == 403
        assert ask(client, "GET", "/health", b"", [("Host", "xserve:8000"), ("Origin", SITE)])[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_types_that_a_form_can_send_do_not_mean_json(client, content_type):
    """curl -d sends one of them if no other is given."""
    reply = client.post("/v2/models/model/infer", content=b"{}", headers={"content-type": content_type})
    assert reply.status_code == 415
    assert "Content-Type must be application/json" in reply.json()["error"]


@pytest.mark.slow
def test_browsers_are_told_what_listed_pages_may_do(predictor, serve_model, tiny):
    access = AccessOptions(cors_origin=(SITE,), api_key="key")
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    with serve_model(predictor, access=access) as client:
        asked = client.options("/predict", headers={"Origin": SITE, **wanted})  # without the key, as browsers do
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, SITE)
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in asked.headers
        refused = client.options("/predict", headers={"Origin": "https://evil.example", **wanted})
        assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (400, False)
        headers = {"Origin": SITE, "Authorization": "Bearer key", "Content-Type": "image/png"}
        for key, status in (("Bearer key", 200), ("Bearer wrong", 401)):
            reply = client.post("/predict", content=tiny.draw((1, 2, 3)), headers=headers | {"Authorization": key})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, SITE)
            assert "X-Request-ID" in reply.headers["access-control-expose-headers"]
            assert "Origin" in reply.headers["vary"]


@pytest.mark.slow
def test_without_listed_pages_no_response_allows_any(client):
    asked = client.options("/predict", headers={"Origin": SITE, "Access-Control-Request-Method": "POST"})
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.fixture
def proxy():
    """Start reverse proxies that publish a server below /lab/xray, with the prefix removed from requests or not."""
    servers = []

    def start(client, *, strip, forward):
        class Proxy(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                headers = {"Host": "127.0.0.1"} | ({"X-Forwarded-Prefix": "/lab/xray"} if forward else {})
                path = self.path.removeprefix("/lab/xray") if strip else self.path
                reply = client.get(path, headers=headers)
                self.send_response(reply.status_code)
                for name in {"location", "content-type"} & set(reply.headers):
                    self.send_header(name, reply.headers[name])
                self.end_headers()
                self.wfile.write(reply.content)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("access", "strip", "forward", "known"),
    [
        (AccessOptions(), True, False, False),
        (AccessOptions(), True, True, False),  # the header is not trusted
        (AccessOptions(root_path="/lab/xray"), True, False, True),
        (AccessOptions(root_path="/lab/xray/"), False, False, True),
        (AccessOptions(trust_forwarded_prefix=True), True, True, True),
        (AccessOptions(trust_forwarded_prefix=True), False, True, True),
        (AccessOptions(root_path="/else", trust_forwarded_prefix=True), True, True, True),
    ],
)
@pytest.mark.parametrize("key", [None, "key"])
def test_pages_routes_and_description_work_below_a_prefix(
    predictor, serve_model, proxy, access, strip, forward, known, key
):
    import dataclasses

    import httpx

    with serve_model(predictor, access=dataclasses.replace(access, api_key=key)) as client:
        base = f"{proxy(client, strip=strip, forward=forward)}/lab/xray"
        for address in ("/", "/docs", "/docs/", "/page.css", "/health", "/health/", "/v2/health/ready"):
            reply = httpx.get(base + address, follow_redirects=True, trust_env=False)
            assert reply.status_code == 200, address
            assert str(reply.url) == base + ("/docs" if address == "/docs/" else address)
        assert httpx.get(f"{base}/model", trust_env=False).status_code == (401 if key else 200)
        assert httpx.get(f"{base}/nothing", trust_env=False).status_code == (401 if key else 404)
        if not strip:
            root = httpx.get(base, follow_redirects=True, trust_env=False)
            assert (root.status_code, str(root.url)) == (200, f"{base}/")
        description = httpx.get(f"{base}/openapi.json", trust_env=False).json()
        assert description.get("servers") == ([{"url": "/lab/xray"}] if known else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [("/a", "/a"), ("/a/", "/a"), ("a", "/a"), ("/a, /b", "/a/b"), ("/", None), ("/a%20b", 400), ("//evil", "/evil")],
)
def test_forwarded_prefixes_are_paths(predictor, serve_model, forwarded, expected):
    with serve_model(predictor, access=AccessOptions(trust_forwarded_prefix=True)) as client:
        reply = client.get("/openapi.json", headers={"X-Forwarded-Prefix": forwarded})
    if expected == 400:
        assert (reply.status_code, reply.json()["error"]) == (400, "X-Forwarded-Prefix must be a path such as /xray")
    else:
        assert reply.json().get("servers") == (expected and [{"url": expected}])


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        ("--root-path", "xray"),
        ("--root-path", "https://example.org/xray"),
        ("--cors-origin", "example.org"),
        ("--cors-origin", "https://example.org/"),
        ("--allowed-host", "https://example.org"),
        ("--allowed-host", "example.org:8000"),
    ],
)
def test_options_that_would_never_match_are_refused(model, option):
    done = CliRunner().invoke(main, ["start", str(model), *option])
    assert done.exit_code == 2
    assert f"{option[0]} cannot be used" in done.stderr
    assert "expected" in done.stderr

"""``xserve page --single``: one file, what it replaces, and what it may connect to. A dummy is its runtime."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re

import pytest
from click.testing import CliRunner

from xfeat.featurize.errors import OutputError
from xfeat.serve.cli import main
from xfeat.serve.static_site.bundle import bundle
from xfeat.serve.static_site.single_file import write_single
from xfeat.serve.static_site.write import write_site

pytestmark = pytest.mark.usefixtures("package")


def parts_of(page):
    """Return the content of each part that is inside the page."""
    found = re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)</script>', page)
    return {name: gzip.decompress(base64.b64decode(text)) for name, text in found}


def test_the_file_holds_what_the_folder_holds(model, package, tmp_path):
    sizes = write_single(model, tmp_path / "xray.html", package)
    write_site(model, tmp_path / "site", package)
    page = (tmp_path / "xray.html").read_text()
    assert sizes == {"xray.html": (tmp_path / "xray.html").stat().st_size}
    parts = parts_of(page)
    facts = json.loads(parts["model.json"])
    assert facts == json.loads((tmp_path / "site" / "model.json").read_text())
    for name in (facts["file"]["name"], facts["runtime"]["name"]):
        assert parts[name] == (tmp_path / "site" / name).read_bytes()
    assert set(parts) == {"model.json", "worker.js", facts["file"]["name"], facts["runtime"]["name"]}


def test_the_policy_allows_no_connection_and_only_the_code_of_the_page(model, package, tmp_path):
    write_single(model, tmp_path / "xray.html", package)
    page = (tmp_path / "xray.html").read_text()
    policy = dict(part.split(" ", 1) for part in re.search(r'Security-Policy" content="([^"]+)"', page)[1].split("; "))
    assert policy["connect-src"] == policy["default-src"] == policy["form-action"] == "'none'"
    for tag, kind in (("script", 'script type="module"'), ("style", "style")):
        (text,) = re.findall(rf"<{kind}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[f"{tag}-src"]
    assert not re.search(r"https?:|\*|'unsafe-|'self'|\$policy", " ".join(policy.values()))
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert [
        address for address in re.findall(r'(?:src|href)="([^"]+)"', markup) if not address.startswith("data:")
    ] == []
    assert "http.server" not in markup


def test_the_same_model_gives_the_same_file_and_another_one_replaces_it(write_model, package, tmp_path):
    file = tmp_path / "xray.html"
    write_single(write_model(), file, package)
    first = file.read_bytes()
    write_single(write_model(), file, package)
    assert file.read_bytes() == first
    write_single(write_model("second.onnx", run="second"), file, package)
    assert json.loads(parts_of(file.read_text())["model.json"])["run"] == "second"
    assert [path.name for path in tmp_path.glob("*.html*")] == ["xray.html"]


def link(path):
    path.with_name("other.html").write_text("<p>mine")
    path.symlink_to("other.html")


TAKEN = {
    "another page": lambda path: path.write_text("<!doctype html><title>xfeat: classify images</title>"),
    "a page that shows ours": lambda path: path.write_text(
        "<p>" * 4000 + '<meta name="generator" content="xfeat.page">'
    ),
    "the page of the folder form": lambda path: path.write_text(
        '<meta http-equiv="Content-Security-Policy" content="">'
    ),
    "an empty file": lambda path: path.touch(),
    "a model": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to another page": link,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("what", TAKEN)
def test_what_is_not_a_page_of_ours_is_never_replaced(model, package, tmp_path, what):
    path = tmp_path / "xray.html"
    TAKEN[what](path)
    before = sorted((each.name, each.lstat().st_ino, each.lstat().st_mtime_ns) for each in tmp_path.iterdir())
    with pytest.raises(OutputError, match="not a page written by xserve page --single"):
        write_single(model, path, package)
    assert sorted((each.name, each.lstat().st_ino, each.lstat().st_mtime_ns) for each in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["xray", "xray.onnx", "site.d", "xray.html.txt"])
def test_a_name_that_a_double_click_would_not_open_is_refused(model, package, tmp_path, name):
    with pytest.raises(OutputError, match=rf"must end in \.html(.|\n)*{name}\.html"):
        write_single(model, tmp_path / name, package)
    assert not (tmp_path / name).exists()


def test_the_command_writes_it_and_says_how_large_it_is(model, package, tmp_path):
    command = ["page", "--single", "-o", str(tmp_path / "a b.html"), "--model", str(model), "--runtime", str(package)]
    plain = CliRunner().invoke(main, command)
    assert plain.exit_code == 0, plain.output
    assert "double-click" in plain.output
    printed = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert printed["bytes"] == (tmp_path / "a b.html").stat().st_size
    assert printed["files"] == 1


MODULES = {
    "function": 'import { f } from "./m.js";\nf();',
    "alias": 'import { f as g, h } from "./m.js";\ng(h);',
    "whole": 'import * as m from "./m.js";\nm.f();',
}


@pytest.mark.parametrize("entry", MODULES)
@pytest.mark.parametrize(
    "module",
    [
        "export function f() {}\nexport const h = 1;",
        "function a() {}let b;export{a as f,b as h};\n//# sourceMappingURL=m.map\n",
    ],
)
def test_modules_become_one_script(entry, module):
    script = bundle("e.js", {"e.js": MODULES[entry], "m.js": module}.__getitem__)
    assert not re.search(r"\b(import|export)\b", script)
    assert script.index("module_m_js") < script.index("module_e_js")
    assert re.search(r"return \{ f: \w, h: \w \};", script)


@pytest.mark.parametrize(
    "text",
    [
        'import f from "./m.js";',
        'import "./m.js";',
        'import {\n  f\n} from "./m.js";',
        "export default 1;",
        "export * from './m.js';",
    ],
)
def test_a_module_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(text.partition("\n")[0])):
        bundle("e.js", {"e.js": text, "m.js": ""}.__getitem__)

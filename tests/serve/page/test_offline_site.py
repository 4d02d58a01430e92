"""``xserve page``: what it writes and what it rejects. Without a browser: a dummy replaces onnxruntime-web."""

from __future__ import annotations

import json
import re
import tarfile

import pytest
from click.testing import CliRunner

from tests.serve.page.conftest import FILES
from xfeat.featurize.errors import MissingExtraError, ModelError, OutputError, SpecError
from xfeat.serve.cli import main
from xfeat.serve.http.middleware import SECURITY_HEADERS
from xfeat.serve.inference.description import describe_model
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.page_files import PAGE_FILES, page_file
from xfeat.serve.static_site import onnxruntime_web, write
from xfeat.serve.static_site.write import POLICY, write_site

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("package")]


@pytest.fixture
def cdn(tmp_path, serve_folder, monkeypatch):
    """Return a folder that a server offers in place of the CDN, and the list of what it was asked for."""
    folder, asked = tmp_path / "cdn", []
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    with serve_folder(folder, asked) as address:
        monkeypatch.setattr(onnxruntime_web, "ADDRESS", address.rstrip("/"))
        yield folder, asked


def test_the_site_holds_all_files_that_its_files_refer_to(model, package, tmp_path):
    sizes = write_site(model, tmp_path / "site", package)
    written = {path.name: path.read_bytes() for path in (tmp_path / "site").iterdir()}
    assert sizes == {name: len(content) for name, content in written.items()}
    named = set(re.findall(r'(?:src|href)="([^"]+)"', written["index.html"].decode()))
    for name, content in written.items():
        if name.endswith(".js") and name != "onnxruntime.js":
            named |= set(re.findall(r'(?:from|import|URL\()\s*"(?:\./)?([\w.]+)"', content.decode()))
    facts = json.loads(written["model.json"])
    named |= {facts["file"]["name"], facts["runtime"]["name"]}
    assert named <= set(written)
    assert set(written) - named == {"index.html", "model.json"}
    assert written[facts["file"]["name"]] == model.read_bytes()


def test_the_site_describes_the_model_as_a_server_does(model, package, tmp_path, client):
    write_site(model, tmp_path / "site", package)
    facts = json.loads((tmp_path / "site" / "model.json").read_text())
    known = describe_model(Predictor.open(model, device="cpu"))
    assert {name: facts[name] for name in known} == known
    assert {name: client.get("/model").json()[name] for name in known} == known


def test_the_page_may_connect_to_its_own_address_only(model, package, tmp_path):
    write_site(model, tmp_path / "site", package)
    text = (tmp_path / "site" / "index.html").read_text()
    assert f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' in text
    assert text.index("Content-Security-Policy") < text.index("<link")
    assert "default-src 'none'" in POLICY
    assert "connect-src 'self';" in POLICY
    assert not re.search(r"https?:|\*|'unsafe-", POLICY)
    # The page's own files follow the same policy as on a server, but for what WebAssembly and its worker need.
    own = {part.strip() for part in POLICY.split(";")}
    assert {part.strip() for part in SECURITY_HEADERS["Content-Security-Policy"].split(";")} - own == {
        "script-src 'self'",
        "frame-ancestors 'none'",
    }


@pytest.mark.parametrize("runs_on", PAGE_FILES)
def test_each_kind_of_the_page_has_only_its_own_parts(runs_on):
    text = page_file("index.html", runs_on).decode()
    other = {"server": "browser.js", "browser": "server.js"}[runs_on]
    assert f'src="{runs_on}.js"' in text
    assert other not in text
    assert "<!--" not in text
    assert "not a medical device" in text


@pytest.mark.parametrize("runs_on", PAGE_FILES)
def test_no_file_of_the_page_names_another_address(runs_on):
    for name in PAGE_FILES[runs_on]:
        text = page_file(name, runs_on).decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert set(re.findall(r"https?://[\w.-]+", text)) <= {"http://localhost"}, name


def test_rewriting_a_site_removes_its_previous_model(write_model, package, tmp_path):
    write_site(write_model(), tmp_path / "site", package)
    second = write_model("second.onnx", run="second")
    write_site(second, tmp_path / "site", package)
    (kept,) = (tmp_path / "site").glob("*.onnx")
    assert kept.read_bytes() == second.read_bytes()
    assert json.loads((tmp_path / "site" / "model.json").read_text())["run"] == "second"


@pytest.mark.parametrize("content", ["{}", '{"format": "other"}', "[]", "text", None])
def test_a_folder_of_other_files_is_rejected_and_unchanged(model, package, tmp_path, content):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "index.html").write_text("mine")
    if content is not None:
        (folder / "model.json").write_text(content)
    before = sorted(folder.iterdir())
    with pytest.raises(OutputError, match="not a page written by xserve page"):
        write_site(model, folder, package)
    assert sorted(folder.iterdir()) == before
    assert (folder / "index.html").read_text() == "mine"


@pytest.mark.parametrize("other", ["notes.txt", ".git/config", "model-of-mine.onnx"])
def test_a_site_with_other_files_in_its_folder_is_not_rewritten(model, package, tmp_path, other):
    """They would be published together with the site."""
    folder = tmp_path / "site"
    write_site(model, folder, package)
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(OutputError, match="other files than the page") as problem:
        write_site(model, folder, package)
    assert other.partition("/")[0] in str(problem.value)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_a_killed_run_left_in_the_folder_is_removed(model, package, tmp_path):
    folder = tmp_path / "site"
    write_site(model, folder, package)
    (folder / ".page.js.4711-0123abcd.tmp").write_text("half")
    sizes = write_site(model, folder, package)
    assert {path.name for path in folder.iterdir()} == set(sizes)


def test_an_interrupted_write_can_be_repeated(model, package, tmp_path, monkeypatch):
    written = []
    plain = write.replacing

    def breaking_off(path):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return plain(path)

    with monkeypatch.context() as patched:
        patched.setattr(write, "replacing", breaking_off)
        with pytest.raises(KeyboardInterrupt):
            write_site(model, tmp_path / "site", package)
    assert len(list((tmp_path / "site").iterdir())) == 3
    sizes = write_site(model, tmp_path / "site", package)
    assert {path.name for path in (tmp_path / "site").iterdir()} == set(sizes)


def test_a_core_model_is_rejected(write_model, package, tmp_path):
    with pytest.raises(ModelError, match="the core model"):
        write_site(write_model(variant="core"), tmp_path / "site", package)
    assert not (tmp_path / "site").exists()


def test_the_package_is_taken_from_an_archive_and_from_any_folder_with_its_files(package, tmp_path):
    with tarfile.open(package) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked"
    for place in (package, unpacked, unpacked / "package", unpacked / "package" / "dist"):
        assert onnxruntime_web.find_runtime(place) == FILES


def test_a_modified_file_is_rejected_from_any_source(package, tmp_path):
    cached = onnxruntime_web.runtime_cache()
    for folder, place in ((tmp_path / "given", tmp_path / "given"), (cached, None)):
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_bytes(b"changed")
        with pytest.raises(SpecError, match=r"is not that of onnxruntime-web 1\.30\.0"):
            onnxruntime_web.find_runtime(place)


def test_xfeat_cache_dir_moves_the_cache(cdn, tmp_path, monkeypatch):
    monkeypatch.setenv("XFEAT_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert onnxruntime_web.find_runtime() == FILES
    assert sorted(path.name for path in (tmp_path / "elsewhere" / "onnxruntime-web-1.30.0").iterdir()) == sorted(FILES)
    assert not (tmp_path / "cache").exists()


def test_files_and_folders_that_are_not_the_package_are_rejected(tmp_path):
    (tmp_path / "text.tgz").write_text("text")
    with tarfile.open(tmp_path / "other.tgz", "w:gz"):
        pass
    for name in ("text.tgz", "other.tgz"):
        with pytest.raises(SpecError, match="not an archive of onnxruntime-web"):
            onnxruntime_web.find_runtime(tmp_path / name)
    with pytest.raises(SpecError, match="not the npm package"):
        onnxruntime_web.find_runtime(tmp_path)


def test_the_files_are_downloaded_once_and_cached(cdn):
    seen = []
    for _ in range(2):
        assert onnxruntime_web.find_runtime(progress=lambda done, total: seen.append((done, total))) == FILES
    assert cdn[1] == [f"/{name}" for name in FILES]
    assert seen == [(len(content), len(content)) for content in FILES.values()]


def test_an_interrupted_download_goes_on_with_the_file_that_is_missing(cdn):
    first, second = FILES
    cached = onnxruntime_web.runtime_cache()
    cached.mkdir(parents=True)
    (cached / first).write_bytes(FILES[first])
    assert onnxruntime_web.find_runtime() == FILES
    assert cdn[1] == [f"/{second}"]


def test_a_mirror_may_be_a_folder(cdn, monkeypatch):
    monkeypatch.setenv("XFEAT_WEIGHTS_MIRROR", str(cdn[0]))
    assert onnxruntime_web.find_runtime() == FILES
    assert cdn[1] == []


def absent(folder):
    (folder / "ort-wasm-simd-threaded.wasm").unlink()


def changed(folder):
    (folder / "ort-wasm-simd-threaded.wasm").write_bytes(b"other")


@pytest.mark.parametrize(
    ("damage", "words"), [(absent, "ot [Ff]ound"), (changed, "not the official file.*SHA-512 [0-9a-f]{128}")]
)
def test_a_failed_download_is_reported_with_a_fix_and_leaves_no_file(cdn, damage, words):
    damage(cdn[0])
    with pytest.raises(MissingExtraError, match=words) as problem:
        onnxruntime_web.find_runtime()
    assert "--runtime" in problem.value.fix
    assert not (onnxruntime_web.runtime_cache() / "ort-wasm-simd-threaded.wasm").exists()


def test_without_a_connection_the_message_says_how_to_bring_the_files(monkeypatch):
    monkeypatch.setattr(onnxruntime_web, "ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(MissingExtraError, match=r"cannot be downloaded(.|\n)*refused(.|\n)*--runtime"):
        onnxruntime_web.find_runtime()
    assert not onnxruntime_web.runtime_cache().exists()


def test_the_command_prints_what_it_wrote(model, package, tmp_path):
    command = ["page", "-o", str(tmp_path / "site"), "--model", str(model), "--runtime", str(package)]
    plain = CliRunner().invoke(main, command)
    assert plain.exit_code == 0
    assert f"python -m http.server -d {tmp_path / 'site'}" in plain.output
    printed = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)
    assert printed["output"] == str(tmp_path / "site")
    assert printed["files"] == len(list((tmp_path / "site").iterdir()))


@pytest.mark.parametrize("options", [[], ["-o", "site", "--runtime", "missing"]])
def test_wrong_usage_exits_with_2(options):
    assert CliRunner().invoke(main, ["page", *options]).exit_code == 2


def test_a_missing_model_is_named_before_anything_is_downloaded(cdn, tmp_path):
    done = CliRunner().invoke(main, ["page", "-o", str(tmp_path / "site"), "--model", str(tmp_path / "none.onnx")])
    assert done.exit_code == 1
    assert "model not found" in done.output
    assert cdn[1] == []


def test_a_large_model_is_said_since_every_visitor_loads_it(write_model, tmp_path, package, monkeypatch, caplog):
    model = write_model()
    write_site(model, tmp_path / "small", package)
    assert caplog.text == ""
    monkeypatch.setattr(write, "_LARGE_BYTES", 100)
    write_site(model, tmp_path / "large", package)
    assert "which every visitor loads" in caplog.text

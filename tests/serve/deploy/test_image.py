"""The steps of the Dockerfile, without Docker: in an empty environment, then started on a disk that is read-only."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

ROOT = Path(__file__).parents[3]
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
# A disk that cannot be written but for /tmp, as with docker run --read-only --tmpfs /tmp.
READ_ONLY = (
    "mount --make-rprivate / && mount -t tmpfs tmpfs {scratch} && mount -o remount,bind,ro / && "
    "! touch {models}/written 2>/dev/null && exec {command}"
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the image is one of Linux")]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user can read, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def stage(name: str) -> list[tuple[str, str]]:
    text = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert text is not None
    return re.findall(r"^([A-Z]+) (.*)$", text[1], re.MULTILINE)


def build(place: Path) -> None:
    """Do the steps of the stage ``build`` below a folder."""
    inside = {"/opt/xfeat": str(place / "xfeat"), "/src": str(place / "src")}
    work = place
    for kind, rest in stage("build"):
        for path, here in inside.items():
            rest = rest.replace(path, here)
        if kind == "WORKDIR":
            work = Path(rest)
            work.mkdir()
        elif kind == "COPY":
            *sources, target = rest.split()
            for source in sources:
                to = work / target / (Path(source).name if target.endswith("/") else "")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, to)
        else:
            assert kind == "RUN"
            command = rest.replace("python -m", f"{sys.executable} -m").replace("--no-cache-dir", "--quiet")
            done = subprocess.run(["sh", "-c", command], cwd=work, capture_output=True, text=True)
            if done.returncode and "No matching distribution" in done.stderr:
                pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
            assert done.returncode == 0, done.stderr


def a_dicom_file() -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 40, 40, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = np.full((40, 40), 120, np.uint8).tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_the_image_serves_dicom_on_a_read_only_disk(place: Path, write_model) -> None:
    build(place)
    program = place / "xfeat/bin/python"
    unwanted = "import importlib.util as u; print([n for n in ('torch', 'setuptools', 'sklearn') if u.find_spec(n)])"
    assert subprocess.run([program, "-c", unwanted], capture_output=True, text=True).stdout == "[]\n"

    models, scratch = place / "models", place / "scratch"
    models.mkdir()
    scratch.mkdir()
    shutil.copy(write_model(), models)
    steps = dict(stage("server"))
    environment = dict(part.split("=", 1) for part in steps["ENV"].split())
    environment |= {"PATH": os.defpath, "XSERVE_HOST": "127.0.0.1", "XSERVE_PORT": "0", "TMPDIR": str(scratch)}
    user = re.search(r"--uid (\d+)", steps["RUN"])
    assert user is not None
    assert steps["USER"] == "xfeat"
    entry, argument = json.loads(steps["ENTRYPOINT"]), json.loads(steps["CMD"])
    assert argument == ["/models"]
    command = " ".join([str(program.with_name(entry[0])), *entry[1:], str(models)])
    if os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:
        # Where python itself is in a folder of root's, another user could not start it.
        if os.stat(sys.base_prefix).st_mode & 1 and not sys.base_prefix.startswith("/root/"):
            command = f"setpriv --reuid {user[1]} --regid {user[1]} --clear-groups {command}"
        inside = READ_ONLY.format(scratch=scratch, models=models, command=command)
        command = f"unshare --mount sh -c '{inside}'"
    process = subprocess.Popen(
        f"exec {command}",
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd="/",
    )
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        with httpx.Client(base_url=json.loads(line)["url"], timeout=60, trust_env=False) as client:
            assert client.get("/v2/health/ready").status_code == 200
            check = json.loads(steps["HEALTHCHECK"].partition(" CMD ")[2])
            for port, code in ((str(client.base_url.port), 0), ("1", 1)):  # a proxy, as Docker's settings have it
                asked = environment | {"XSERVE_PORT": port, "http_proxy": "http://127.0.0.1:9"}
                assert subprocess.run([program, *check[1:]], env=asked, capture_output=True).returncode == code
            answer = client.post("/predict", files=[("files", ("a.dcm", a_dicom_file()))])
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"][0]["label"] in ("covid", "normal", "pneumonia")
    finally:
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said

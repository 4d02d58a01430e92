"""The OpenAPI description matches the server: schemathesis, which reads nothing else, finds no violation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from xfeat.serve.inference.predictor import Predictor

SCHEMATHESIS = shutil.which("schemathesis", path=sysconfig.get_path("scripts"))
KEY = "a-key"


# More requests: XFEAT_FUZZ=100 pytest tests/serve/http/test_openapi.py
@pytest.mark.slow
@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_violation_with_all_its_checks(write_model, serve_model, tmp_path):
    """Valid requests succeed, invalid ones fail, the key is required, and every response matches the description."""
    predictor = Predictor.open(write_model(ood=True, heatmap=True, ood_threshold=0.5), device="cpu")
    with serve_model(predictor, api_key=KEY) as client:
        command = [SCHEMATHESIS, "run", f"{client.base_url}/openapi.json", "--checks", "all", "--no-color"]
        command += ["--header", f"Authorization: Bearer {KEY}", "--generation-deterministic"]
        command += ["--max-examples", os.environ.get("XFEAT_FUZZ", "5")]
        hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            command, env=os.environ | hooks, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 500, done.stdout


@pytest.mark.parametrize("key", [None, KEY])
def test_the_description_requires_a_key_where_the_server_does(predictor, serve_model, key):
    with serve_model(predictor, api_key=key) as client:
        description = client.get("/openapi.json").json()
        closed, opened = description["paths"]["/predict"]["post"], description["paths"]["/health"]["get"]
        assert client.post("/predict").status_code == (401 if key else 415)
    assert ("securitySchemes" in description["components"]) == ("401" in closed["responses"]) == bool(key)
    assert "401" not in opened["responses"]
    if key:
        assert closed["security"] == [{"bearer": []}, {"header": []}]
        assert opened["security"] == []

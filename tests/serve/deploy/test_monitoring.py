"""deploy/prometheus and deploy/grafana: every rule fires and stays quiet where it should, on metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.serve.deploy.test_proxies import free_port, program
from tests.serve.sharing import upload
from xfeat.export.model.score_bins import validation_bins
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.metrics import ServerMetrics
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServeSpec

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus/xfeat.rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana/xfeat.json").read_text())
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
# What only the machine's own metrics and Prometheus itself have.
NOT_OURS = {"up", "vector"}


def promtool(*arguments: object, text: str | None = None) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


ON = 'instance="a"'
OF = 'instance="a",model="m",of="ood"'


def ood(inside: str, images: str) -> dict[str, str]:
    labels = 'instance="a",model="m"'
    return {f'xfeat_ood_score_bucket{{{labels},le="1.0"}}': inside, f"xfeat_ood_score_count{{{labels}}}": images}


def drift(psi: float, chance: float) -> dict[str, str]:
    return {f"xfeat_drift_psi{{{OF}}}": f"{psi}x999", f"xfeat_drift_psi_chance{{{OF}}}": f"{chance}x999"}


ERRORS, FINE = f'xfeat_requests_total{{{ON},status="500"}}', f'xfeat_requests_total{{{ON},status="200"}}'
FULL = f'xfeat_requests_total{{{ON},status="503"}}'
SKIPPED, REFUSED = "xfeat_images_skipped_total", "xfeat_requests_refused_total"
UP, READY = 'up{job="xfeat",instance="a"}', f"xfeat_ready{{{ON}}}"
FAILED, DEFAULT, VERIFIED = "xfeat_reload_failed", "xfeat_default_model", "xfeat_model_verified"
MODEL = 'instance="a",model="m"'
# Alert, series by name (in promtool's notation), and the labels of the alert after an hour, or None.
CASES: list[tuple[str, dict[str, str], dict[str, str] | None]] = [
    ("XfeatNotReady", {UP: "0x999"}, {"job": "xfeat", "instance": "a"}),
    ("XfeatNotReady", {UP: "1x999", READY: "0x999"}, {"instance": "a"}),
    ("XfeatNotReady", {UP: "1x999", READY: "1x999"}, None),
    ("XfeatErrors", {ERRORS: "0+2x999", FINE: "0+98x999"}, {"instance": "a"}),
    ("XfeatErrors", {ERRORS: "0+1x999", FINE: "0+199x999", FULL: "0+50x999"}, None),
    ("XfeatErrors", {FINE: "0+100x999"}, None),
    ("XfeatModelFailsOnImages", {f'{SKIPPED}{{{ON},cause="model"}}': "0x59 1"}, {"instance": "a", "cause": "model"}),
    ("XfeatModelFailsOnImages", {f'{SKIPPED}{{{ON},cause="image"}}': "0+9x999"}, None),
    ("XfeatModelFailsOnImages", {f'{SKIPPED}{{{ON},cause="model"}}': "7x999"}, None),
    ("XfeatRefused", {f'{REFUSED}{{{ON},limit="queue"}}': "0+1x999"}, {"instance": "a", "limit": "queue"}),
    ("XfeatRefused", {f'{REFUSED}{{{ON},limit="queue"}}': "0x56 5x999"}, None),  # since 4 minutes
    ("XfeatReloadFailed", {f"{FAILED}{{{MODEL}}}": "1x999"}, {"instance": "a", "model": "m"}),
    ("XfeatReloadFailed", {f"{FAILED}{{{MODEL}}}": "1x40 stale"}, None),  # the file is gone
    ("XfeatDefaultModelMissing", {f"{DEFAULT}{{{MODEL}}}": "0x999"}, {"instance": "a", "model": "m"}),
    ("XfeatDefaultModelMissing", {f"{DEFAULT}{{{MODEL}}}": "1x999"}, None),
    ("XfeatUnverifiedModel", {f"{VERIFIED}{{{MODEL}}}": "0x999"}, {"instance": "a", "model": "m"}),
    ("XfeatUnverifiedModel", {f"{VERIFIED}{{{MODEL}}}": "1x999"}, None),
    ("XfeatDrift", drift(0.3, 0.2), {"instance": "a", "model": "m", "of": "ood"}),
    ("XfeatDrift", drift(0.3, 0.34), None),  # few images
    ("XfeatDrift", drift(0.2, 0.05), None),
    ("XfeatOutOfDistribution", ood("0+7x999", "0+10x999"), {"instance": "a", "model": "m"}),
    ("XfeatOutOfDistribution", ood("0+9x999", "0+10x999"), None),
    ("XfeatOutOfDistribution", ood("0x40 0+1x20", "0x40 0+4x20"), None),  # 80 images
]


@pytest.mark.slow
def test_each_alert_fires_and_stays_quiet(tmp_path: Path) -> None:
    assert (
        {name for name, _, labels in CASES if labels}
        == {name for name, _, labels in CASES if not labels}
        == set(ALERTS)
    )
    tests = []
    for name, series, labels in CASES:
        rule, expected = ALERTS[name], []
        if labels:
            summary = rule["annotations"]["summary"]
            for label, value in labels.items():
                summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
            expected = [{"exp_labels": labels | rule["labels"], "exp_annotations": {"summary": summary}}]
        inputs = [{"series": each, "values": values} for each, values in series.items()]
        alert = {"eval_time": "1h", "alertname": name, "exp_alerts": expected}
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": [alert]})
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", file)
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)


def queries() -> list[str]:
    """Return all expressions of the dashboard, with its variables filled in."""
    filled = {"$__rate_interval": "5m", "$instance": ".*", "$model": ".*"}
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for name, value in filled.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    assert not any("$" in expression for expression in expressions)
    return expressions


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:xfeat_\w+|process_\w+|up|vector)\b", expression)) - NOT_OURS


@pytest.fixture
def models(write_model: Callable[..., Path], tmp_path: Path) -> Iterator[ModelRegistry]:
    """A folder of a model with all outputs, and another that cannot be reloaded; the drift has its figures."""
    folder = tmp_path / "models"
    folder.mkdir()
    spread = [[number / 200, 1 - number / 200, 0.0] for number in range(200)]
    bins = validation_bins(spread, ("covid", "normal", "pneumonia"), None, [number / 100 for number in range(200)])
    for name in ("a", 'b "2"\\'):
        made = write_model(f"{name[0]}.tmp", ood=True, ood_threshold=0.5, validation_bins=bins)
        made.replace(folder / f"{name}.onnx")
    registry = ModelRegistry(folder, lambda path: [Predictor(path, "cpu")], ServeSpec())
    (folder / "c.onnx").write_bytes(b"garbage")
    registry.reload()
    yield registry
    registry.close()


def fill(client: httpx.Client, tiny: Any) -> None:
    """Send more images than the drift figure needs, and a file that is none."""
    pictures = [upload(*[("x.png", tiny.draw((number % 256, 90, 10))) for number in range(60)]) for _ in range(2)]
    for files in (*pictures, upload(("x.png", b"text"))):
        client.post("/predict", files=files)


@pytest.mark.slow
def test_the_metrics_are_well_formed_and_have_what_rules_and_dashboard_name(
    models: ModelRegistry, serve_model: Any, tiny: Any, tmp_path: Path
) -> None:
    with serve_model(None, models=models) as client:
        fill(client, tiny)
        text = client.get("/metrics").text
    assert promtool("check", "metrics", text=text) == ""
    there = set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    for expression in (*queries(), *(rule["expr"] for rule in ALERTS.values())):
        assert names_in(expression) <= there, expression
        assert names_in(expression) or "up{" in expression
    assert 'xfeat_drift_psi{model="b \\"2\\"\\\\",of="ood"}' not in text, "no image was sent to the second model"
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(queries())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert "SUCCESS" in promtool("check", "rules", file)


def test_every_metric_is_documented() -> None:
    page = (DEPLOY.parent / "docs/serve-monitoring.md").read_text()
    families = {family.name for family in ServerMetrics()._registry.collect() if family.name.startswith("xfeat_")}
    assert len(families) > 15
    assert [name for name in families if name not in page] == []


@pytest.mark.slow
def test_prometheus_scrapes_a_server_with_these_files(
    models: ModelRegistry, serve_model: Any, tiny: Any, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    key, port = tmp_path / "key", free_port()
    key.write_text("secret")
    with serve_model(None, models=models, api_key="secret") as client:
        client.headers["X-API-Key"] = "secret"
        fill(client, tiny)
        config = (DEPLOY / "prometheus/prometheus.yml").read_text().replace("15s", "1s")
        config = config.replace("/run/secrets/key", str(key)).replace(
            "xserve:8000", str(client.base_url.netloc.decode())
        )
        (tmp_path / "prometheus.yml").write_text(config)
        shutil.copy(RULES, tmp_path)
        promtool("check", "config", tmp_path / "prometheus.yml")
        command = [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        command.append(f"--storage.tsdb.path={tmp_path / 'data'}")
        with program(command, port), httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as prometheus:

            def ask(expression: str) -> Any:
                answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
                assert answer["status"] == "success", answer
                return answer["data"]["result"]

            deadline = time.monotonic() + 30
            while not ask("count_over_time(xfeat_ready[1m]) > 2") and time.monotonic() < deadline:
                time.sleep(0.1)
            assert ask('up{job="xfeat"}')[0]["value"][1] == "1"
            assert all(ask(expression) or "skipped" in expression for expression in queries())
            pending = {found["metric"]["alertname"] for found in ask("ALERTS")}
            assert pending == {"XfeatReloadFailed", "XfeatUnverifiedModel", "XfeatDrift"}

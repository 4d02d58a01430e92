"""Many machines through Ray: the real Ray, on a cluster of this machine alone."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xfeat.featurize.backbones.weights import Weights, sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.cluster.engine import RayCluster
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.engines import open_engine
from xfeat.featurize.errors import DataError, DeviceError, MissingExtraError, SpecError
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import Extraction, extract_features, parts_folder
from xfeat.featurize.pipeline.inference import Outcome
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.specs import FeatureSpec

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'xfeat-onnx[ray]'"
    ),
    # Of Ray's own threads and files; this project's warnings are errors in all other tests.
    pytest.mark.filterwarnings("ignore"),
]

XFEAT = Path(sys.executable).with_name("xfeat")


@pytest.fixture(scope="module")
def cluster(lite0_weights: Weights, spec: FeatureSpec) -> Iterator[None]:
    """Start Ray on two cores of this machine, once for all tests here; the graph is converted before."""
    from xfeat.featurize.cluster.connection import connected

    open_engine(spec, lite0_weights, device="cpu", threads=1)
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr("xfeat.featurize.cluster.connection._THREADS", 1)  # two actors on two cores
        with connected("local"):
            assert signal.getsignal(signal.SIGTERM) is before, "Ray's answer to SIGTERM would lose the shard"
            yield


@pytest.fixture(scope="module")
def spec(lite0_spec: FeatureSpec) -> FeatureSpec:
    """Return a spec whose converted graph is that of other tests."""
    return dataclasses.replace(lite0_spec, views=2)


@dataclass
class Job:
    """Images, and where their features go."""

    data: Path
    output: Path
    weights: Weights
    spec: FeatureSpec

    def run(self, **options: Any) -> Extraction:
        """Run on the cluster, with two actors of one core."""
        ray = RayCluster(spec=self.spec, weights=self.weights, device="cpu")
        return self.run_here(cluster=ray, **options)

    def run_here(self, **options: Any) -> Extraction:
        def open_locally() -> Any:
            assert "cluster" not in options, "the engine of this process must stay closed"
            return open_engine(self.spec, self.weights, device="cpu", threads=1)

        dataset = open_dataset(self.data)
        return extract_features(
            dataset, self.spec, self.weights, self.output, RunOptions(open_engine=open_locally, **options)
        )


@pytest.fixture
def job(tmp_path: Path, lite0_weights: Weights, spec: FeatureSpec) -> Job:
    """Forty images of noise, a twin, and three files that cannot be read."""
    random = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "data" / ("covid", "normal")[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 44), dtype=np.uint8)).save(path)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    shutil.copy2(path, path.with_name("twin.png"))
    os.rename(path, os.fsencode(path.parent) + b"/no-utf-8-\xff.png")
    (path.parent / "empty.png").touch()
    (path.parent / "text.jpg").write_text("not an image")
    (path.parent / "dangling.png").symlink_to("/no/such/file")
    return Job(tmp_path / "data", tmp_path / "features.h5", lite0_weights, spec)


def actors_here() -> list[int]:
    """Return the processes that hold the network: descendants of this one that Ray named after the class."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes()
            parents = _ancestors(int(folder.name)) if b"ImageWorker" in title and b"ray::" in title else []
        except (OSError, ValueError):
            continue
        if os.getpid() in parents:
            found.append(int(folder.name))
    return found


def _ancestors(process: int) -> list[int]:
    ancestors = []
    while process > 1:
        process = int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
        ancestors.append(process)
    return ancestors


@pytest.mark.slow
def test_a_cluster_writes_the_same_rows_as_this_machine_even_if_an_actor_is_killed(cluster: None, job: Job) -> None:
    """The reference is a run of the engine in this process, bit for bit: features, paths, order, reasons."""
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed and done < total:
            killed.extend(actors_here()[:1])
            for process in killed:
                os.kill(process, signal.SIGKILL)

    there = job.run(progress=kill)
    assert killed, "no actor was alive while images were left"
    cache = FeatureCache.open(job.output)
    job.output = job.output.with_name("here.h5")
    here = job.run_here()
    expected = FeatureCache.open(job.output)
    assert cache.features.shape == (41, 2, 2024)
    assert np.array_equal(cache.features, expected.features)
    assert cache.content_sha256 == expected.content_sha256
    for column in ("path", "group", "sha256"):
        assert getattr(cache.columns, column) == getattr(expected.columns, column)
    for column in ("label", "split", "size", "mtime_ns", "change_mark", "truncated"):
        assert np.array_equal(getattr(cache.columns, column), getattr(expected.columns, column)), column
    assert cache.spec.fingerprint == expected.spec.fingerprint
    assert there.skipped == here.skipped == cache.skipped
    assert [path for path, _ in there.skipped] == ["normal/dangling.png", "normal/empty.png", "normal/text.jpg"]
    assert (there.images, there.computed, there.reused, there.changes) == (41, 40, 1, here.changes)
    assert there.engine == "ray"
    assert not parts_folder(job.output).exists()


@pytest.mark.parametrize("kind", ["actor", "timeout"])
def test_a_cluster_that_dies_leaves_what_is_finished(job: Job, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Ray's own errors, after two images; tests/faults kills the real thing."""
    import ray.data
    import ray.exceptions

    from xfeat.featurize.cluster.connection import ActorPlan

    died = {
        "actor": ray.exceptions.ActorDiedError(),
        "timeout": ray.data.exceptions.ExecutionTimeoutError("no progress for 1800s\nOperators: …"),
    }[kind]
    (identity, rows) = (FileIdentity(1, 1, 1, "ab" * 32, False), np.ones((2, 3), np.float32))

    def computed(*_: Any) -> Iterator[list[tuple[int, Outcome, str]]]:
        yield [(0, Outcome(identity, rows), "far"), (5, Outcome(identity._replace(sha256="cd" * 32), rows), "far")]
        raise died

    monkeypatch.setattr(RayCluster, "_computed", computed)
    monkeypatch.setattr(RayCluster, "_assignment", lambda *_: None)
    for name, replacement in {"connected": contextlib.nullcontext, "check_machines": lambda *_: None}.items():
        monkeypatch.setattr(f"xfeat.featurize.cluster.connection.{name}", replacement)
    monkeypatch.setattr("xfeat.featurize.cluster.connection.plan_actors", lambda *_: ActorPlan(1, 1, 0, []))
    with pytest.raises(DeviceError, match=r"the Ray cluster failed\n  found: .*\n  fix: .*run the same command again"):
        job.run()
    (shard,) = parts_folder(job.output).glob("*.npz")
    with np.load(shard) as content:
        assert content["paths"].tolist() == [b"covid/000.png", b"covid/010.png"]


@pytest.mark.slow
def test_what_is_known_is_not_computed_again(cluster: None, job: Job) -> None:
    """In another folder only the content tells, and the machines of the cluster know it."""
    job.run_here()
    assert job.run().up_to_date
    job.data = job.data.rename(job.data.with_name("moved"))
    Image.fromarray(np.full((40, 44), 7, np.uint8)).save(job.data / "covid/new.png")
    done = job.run()
    assert (done.images, done.computed, done.changes.new) == (42, 1, 1)
    FeatureCache.open(job.output).verify()


@pytest.mark.slow
def test_on_error_fail_stops_a_cluster(cluster: None, job: Job) -> None:
    with pytest.raises(DataError, match=r"normal/(dangling|empty|text)(.|\n)*--on-error skip"):
        job.run(fail_on_error=True)
    assert not job.output.exists()


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_images_is_named(cluster: None, job: Job) -> None:
    import ray

    from xfeat.featurize.cluster.connection import check_machines
    from xfeat.featurize.cluster.engine import _chunks
    from xfeat.featurize.cluster.worker import Assignment, ImageWorker, unpack

    nodes = [node["NodeID"] for node in ray.nodes()]
    check_machines(nodes, job.data)
    with pytest.raises(DeviceError, match=rf"/no/such: machine {os.uname().nodename} (.|\n)*fix: .*same path"):
        check_machines(nodes, Path("/no/such"))
    assignment = Assignment(
        spec=job.spec,
        weights_sha256=job.weights.sha256,
        weights=ray.put([]),
        source=FolderSource(Path("/no/such")),
        root="/no/such",
        known=ray.put(np.zeros(0, "S64")),
        device="cpu",
        threads=1,
        batch_size=None,
    )
    with pytest.raises(DeviceError, match="does not see the images"):
        unpack(ImageWorker(assignment)(next(_chunks(["covid/000.png"], 1))))


def test_an_image_that_only_a_machine_of_the_cluster_cannot_read_is_not_skipped(job: Job) -> None:
    ray = RayCluster(spec=job.spec, weights=job.weights)
    source, lost = FolderSource(job.data), Outcome(None, None, "cannot be read: No such file")
    with pytest.raises(DeviceError, match=r"covid/000\.png: machine far (.|\n)*No such file(.|\n)*mounted"):
        ray._recheck_unreadable(lost, "far", source, (job.data, "covid/000.png"))
    assert ray._recheck_unreadable(lost, "far", source, (job.data, "normal/empty.png")).reason == "the file is empty"


@pytest.mark.slow
def test_what_a_cluster_lacks_is_never_replaced(cluster: None) -> None:
    from xfeat.featurize.cluster.connection import plan_actors

    plan = plan_actors("auto", 1)
    assert (plan.actors, plan.cpus, plan.gpus, len(plan.nodes)) == (1, 1, 0, 1)
    with pytest.raises(DeviceError, match=r"no room for an actor(.|\n)*and a GPU(.|\n)*0 GPUs(.|\n)*--device cpu"):
        plan_actors("cuda", None)
    with pytest.raises(SpecError, match="Ray chooses the devices"):
        plan_actors("cuda:1", None)


@pytest.mark.slow
def test_only_rays_own_console_is_quiet(cluster: None) -> None:
    import ray.data  # noqa: F401

    from xfeat.featurize.cluster.engine import _silence_ray_data_log

    log, users = logging.getLogger("ray.data"), logging.StreamHandler()
    log.addHandler(users)
    _silence_ray_data_log()
    log.removeHandler(users)
    assert users.level == logging.NOTSET
    console = [handler for handler in log.handlers if type(handler).__name__ == "PlainRayHandler"]
    assert all(handler.level > logging.CRITICAL for handler in console)
    assert console, "Ray has renamed it"


@pytest.mark.slow
def test_complaints_of_the_cluster_are_not_printed(
    cluster: None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Ray's own listener prints them on stdout, among what --json prints."""
    from ray._private.utils import publish_error_to_driver
    from ray._private.worker import global_worker

    with caplog.at_level(logging.DEBUG, logger="xfeat.featurize"):
        publish_error_to_driver("raylet_died", "Raylet is terminated", gcs_client=global_worker.gcs_client)
        limit = time.monotonic() + 30
        while "Raylet is terminated" not in caplog.text and time.monotonic() < limit:
            time.sleep(0.05)
    assert "Raylet is terminated" in caplog.text, "Ray no longer prints where this project listens"
    assert capfd.readouterr().out == ""


# No cluster


def test_ray_that_is_not_installed_says_how_to_get_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xfeat-onnx\[ray\]'"):
        job.run()


@pytest.mark.slow
def test_an_unreachable_cluster_is_reported_within_seconds(job: Job) -> None:
    """Port 9 answers nobody. The variable of Ray's own name counts as the option does."""
    command = [XFEAT, "featurize", job.data, "-o", job.output, "--engine", "ray", "--backbone", "efficientnet-lite0"]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: no Ray cluster found\n  expected: its head at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", ":6379", "host:port"])
def test_an_address_that_is_none_is_wrong(address: str) -> None:
    from xfeat.featurize.cluster.connection import _check_reachable

    with pytest.raises(SpecError, match="HOST:PORT"):
        _check_reachable(address)


def test_an_address_without_the_engine_is_wrong_usage(job: Job) -> None:
    from click.testing import CliRunner

    from xfeat.featurize.cli import main

    done = CliRunner().invoke(main, ["featurize", str(job.data), "--ray-address", "127.0.0.1:6379"])
    assert done.exit_code == 2
    assert "--ray-address is for --engine ray" in done.output


@pytest.mark.slow
def test_weights_travel_with_the_work(cluster: None, job: Job, tmp_path: Path) -> None:
    """The machines of a cluster need not see the file: here it is gone before they start."""
    copy = tmp_path / "weights.pth"
    shutil.copyfile(job.weights.path, copy)
    ray = RayCluster(spec=job.spec, weights=Weights(job.weights.backbone, copy, sha256_of(copy)), device="cpu")
    paths = ["covid/000.png"]
    work = ray._assignment(FolderSource(job.data), job.data, np.zeros(0, "S64"), SimpleNamespace(gpus=0, cpus=1))  # type: ignore[arg-type]
    copy.unlink()
    from xfeat.featurize.cluster.engine import _chunks
    from xfeat.featurize.cluster.worker import ImageWorker, unpack

    (chunk,) = _chunks(paths, len(paths))
    ((position, outcome, _),) = unpack(ImageWorker(work)(chunk))
    assert (position, outcome.features is not None) == (0, True)


def test_the_cause_is_found_in_what_ray_says() -> None:
    from xfeat.featurize.cluster.connection import cluster_error

    task = """ray::MapWorker(MapBatches(ImageWorker)).submit() (pid=1443, ip=192.0.2.2)
  File "/x/thread.py", line 144, in __init__
    raise ValueError("max_workers must be greater than 0")
ValueError: max_workers must be greater than 0

The above exception was the direct cause of the following exception:

ray::MapWorker(MapBatches(ImageWorker)).submit() (pid=1443, ip=192.0.2.2)
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure something"""
    assert cluster_error(Exception(task)).found == "ValueError: max_workers must be greater than 0"
    died = "The actor died unexpectedly before finishing this task.\n\tclass_name: MapWorker"
    assert cluster_error(Exception(died)).found == "The actor died unexpectedly before finishing this task."
    assert cluster_error(KeyError()).found == "KeyError"

"""Connects to a Ray cluster, and plans how many actors fit on its machines."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from xfeat.featurize.cluster.worker import images_not_found
from xfeat.featurize.errors import DeviceError, SpecError
from xfeat.featurize.processes import outside_current_folder
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 120.0
# More threads in one actor wait for each other: several small actors use a large machine better.
_THREADS = 4

# Switches off messages of Ray on the terminal.
_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class ActorPlan(NamedTuple):
    """How many actors run, and on which machines.

    Attributes:
        actors: number of actors.
        cpus: CPUs per actor.
        gpus: GPUs per actor, 0 or 1.
        nodes: identifiers of the machines that have room for actors.
    """

    actors: int
    cpus: int
    gpus: int
    nodes: list[str]


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine; disconnect or stop it at the end.

    Args:
        address: ``HOST:PORT`` of the cluster's head, or ``auto`` for the one that this machine belongs to; by default
            ``RAY_ADDRESS``, else the cluster of this machine, else a new one.

    Raises:
        DeviceError: if there is no cluster at ``address``.
        SpecError: if ``address`` is invalid.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    import ray

    if ray.is_initialized():
        yield
        return
    _check_reachable(address or os.environ.get("RAY_ADDRESS"))
    with _sigterm_handler_restored(), _stderr_discarded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns about its own internals
        try:
            with outside_current_folder():
                ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise DeviceError(
                "cannot connect to the Ray cluster",
                expected=address or os.environ.get("RAY_ADDRESS"),
                found=_summary(error),
                fix="check ray status, that Ray and Python are of the same version there and here, and whether the "
                "cluster requires a token: RAY_AUTH_MODE=token, with the head's ~/.ray/auth_token here too",
            ) from error
    try:
        with _errors_logged():
            yield
    finally:
        # A stopped run leaves Ray Data's executor in a reference cycle. If it still exists at shutdown, Ray ends this
        # process silently.
        gc.collect()
        ray.shutdown()


def plan_actors(device: str, cores: int | None) -> ActorPlan:
    """Plan the actors: up to four cores each, or one GPU and its share of the cores of its machine.

    Args:
        device: ``auto`` (GPUs if the cluster has any), ``cpu`` or ``cuda`` (a GPU each).
        cores: limit for all actors together.

    Raises:
        SpecError: if ``device`` is none of these.
        DeviceError: if no machine has the requested devices.
    """
    import ray

    if device not in ("auto", "cpu", "cuda"):
        raise SpecError("Ray chooses the devices itself", expected="--device auto, cpu or cuda", found=device)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    gpus = int(device == "cuda" or (device == "auto" and any(_gpus(have) for have in machines.values())))
    usable = {node: have for node, have in machines.items() if have.get("CPU", 0) >= 1 and _gpus(have) >= gpus}
    shares = [int(have["CPU"]) // (_gpus(have) if gpus else 1) for have in usable.values()]
    limits = [*shares, *([] if gpus else [_THREADS]), *([cores] if cores else [])]
    cpus = max(1, min(limits, default=1))
    room = {node: min([int(have["CPU"]) // cpus, *([_gpus(have)] if gpus else [])]) for node, have in usable.items()}
    actors = min([sum(room.values()), *([cores // cpus] if cores else [])])
    if not actors:
        raise DeviceError(
            "the Ray cluster has no room for an actor",
            expected=f"a machine with {cpus} CPUs" + (" and a GPU" if gpus else ""),
            found=", ".join(f"{have.get('CPU', 0):g} CPUs, {_gpus(have)} GPUs" for have in machines.values()),
            fix="check ray status, or run with --device cpu",
        )
    return ActorPlan(actors, cpus, gpus, [node for node, actors_there in room.items() if actors_there])


def check_machines(nodes: list[str], root: Root) -> None:
    """Check that the machines have this version of xfeat and can read the images.

    Raises:
        DeviceError: if one does not, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Defined here so that Ray sends its code: xfeat may not be installed there, and could not be imported.
    def look(folder: str) -> tuple[str, str, bool]:
        import importlib.metadata
        import os
        import socket

        try:
            import xfeat.featurize.cluster.worker  # noqa: F401

            version = importlib.metadata.version("xfeat-onnx")
        except ImportError as error:
            version = f"no xfeat: {error}"
        return socket.gethostname(), version, "://" in folder or os.path.exists(folder)

    task = ray.remote(num_cpus=0)(look)
    looks = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(root))
        for node in nodes
    ]
    try:
        answers = ray.get(looks, timeout=_LOOK_SECONDS)
    except ray.exceptions.RayError as error:
        raise cluster_error(error) from error
    here = importlib.metadata.version("xfeat-onnx")
    for host, version, sees in answers:
        if version != here:
            raise DeviceError(
                f"machine {host} of the cluster has another version of xfeat",
                expected=f"xfeat {here} with the extras train and ray",
                found=version,
                fix="install the same version in the Python environment that Ray runs in there",
            )
        if not sees:
            raise images_not_found(root, host)


def cluster_error(error: Exception) -> DeviceError:
    """Return a readable error for an exception of Ray."""
    return DeviceError(
        "the Ray cluster failed",
        found=_summary(error),
        fix="check ray status and the logs of the machines, then run the same command again: it resumes",
    )


def _gpus(resources: dict[str, Any]) -> int:
    return int(resources.get("GPU", 0))


def _summary(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # In tracebacks the first exception is the cause; other messages begin with the cause.
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[0]


def _check_reachable(address: str | None) -> None:
    """Check within seconds whether the address can be reached: Ray tries for minutes, and then ends the process."""
    if address in (None, "", "auto", "local"):
        return
    host, _, port = str(address).rpartition(":")
    if "//" in str(address) or not host or not port.isdigit():
        raise SpecError(
            "not the address of a Ray cluster's head",
            expected="HOST:PORT, such as 10.0.0.1:6379, or auto",
            found=address,
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise DeviceError(
            "no Ray cluster found",
            expected=f"its head at {address}",
            found=str(error),
            fix="check the address with ray status on the head, and that its port can be reached from here",
        ) from error


@contextlib.contextmanager
def _sigterm_handler_restored() -> Iterator[None]:
    """Restore this process's SIGTERM handler, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _errors_logged() -> Iterator[None]:
    """Log errors of the cluster instead of printing them: Ray prints them on stdout, where ``--json`` has its object.

    ``log_to_driver=False`` does not cover them, and Ray has no public option that does.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    printed = worker.print_to_stdstream
    worker.print_to_stdstream = _log_lines
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def _log_lines(data: dict[str, Any], **_: Any) -> None:
    for line in data["lines"]:
        logger.debug("ray: %s", line)


@contextlib.contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Keep off stderr the line with which Ray's C++ code reports RAY_BACKEND_LOG_LEVEL; Ray has no option for it.

    Without that variable Ray prints nothing here, but prints errors of its C++ code during the run.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

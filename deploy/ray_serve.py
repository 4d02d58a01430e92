"""The same server on many machines with Ray Serve: every replica has one model with its own queue and limits.

    pip install '.[ray-serve]'    # in a clone of this repository, on every machine
    cd deploy && RAY_USAGE_STATS_ENABLED=0 serve run ray_serve:build model=/path/model.onnx replicas=4 threads=2

Ray starts the replicas, restarts those that fail and distributes requests. Routes, batches, responses and metrics of a
replica are those of ``xserve start`` with one session. Ray handles the connections: there is no API key, no limit on
slow clients and no request log. The model file must be at the same path on every machine.
"""

from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

from xfeat.serve.http.app import build_app
from xfeat.serve.http.service import Service
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import AccessOptions, ServeSpec


class Settings(BaseModel):
    """Arguments of ``serve run``, as ``name=value``.

    Attributes:
        model: a file written by ``xexport onnx``.
        replicas: processes, on any machines with free resources.
        threads: CPU cores per replica.
        device: ``cpu``, or ``cuda`` for one GPU per replica.
        max_queue: largest number of waiting images per replica.
        allowed_host: a public name under which clients ask; ``*`` for all.
    """

    model: Path
    replicas: int = 2
    threads: int = 1
    device: str = "cpu"
    max_queue: int = 256
    allowed_host: str | None = None


def build(settings: Settings) -> Application:
    """Return the application that Ray Serve runs. Ray reads the annotation, so it must not become a string."""
    spec = ServeSpec(max_queue=settings.max_queue)
    access = AccessOptions(allowed_host=(settings.allowed_host,) if settings.allowed_host else ())

    def open_app() -> FastAPI:
        # Runs in each replica, which is ready when its model has been opened and warmed up.
        return build_app(Service(ModelRegistry(settings.model, open_model, spec)), access)

    def open_model(path: Path) -> list[Predictor]:
        return [Predictor.open(path, settings.device, settings.threads)]

    deployment = serve.deployment(
        serve.ingress(open_app)(),
        name="xfeat",
        num_replicas=settings.replicas,
        # The replica itself refuses requests with Retry-After, since its queue counts images and not requests.
        max_ongoing_requests=2 * settings.max_queue,
        max_queued_requests=settings.max_queue,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": int(settings.device.startswith("cuda"))},
    )
    return deployment.bind()

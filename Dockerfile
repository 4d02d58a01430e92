# The server alone, DICOM included: no torch, no training. Build it where the model is not, and mount the model:
#   docker build -t xfeat-serve .
#   docker run --rm --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/models:/models:ro" xfeat-serve
# For an NVIDIA GPU (a driver for CUDA 13, and the NVIDIA Container Toolkit on the machine):
#   docker build --target gpu -t xfeat-serve-gpu .
#   docker run --rm --read-only --tmpfs /tmp --gpus all -p 8000:8000 -v "$PWD/models:/models:ro" xfeat-serve-gpu \
#       --device cuda /models
# deploy/compose.yaml runs it behind a proxy.
FROM python:3.11-slim AS build
WORKDIR /src
# Nothing is installed but files whose digests are in requirements/ (make lock).
COPY requirements/build.txt requirements/serve.txt requirements/
RUN python -m venv /opt/xfeat && /opt/xfeat/bin/pip install --no-cache-dir --no-deps --require-hashes \
    -r requirements/build.txt -r requirements/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY xfeat xfeat
COPY featurize featurize
COPY head head
COPY export export
COPY serve serve
RUN /opt/xfeat/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/xfeat/bin/pip uninstall --yes setuptools

# The libraries of CUDA and cuDNN. The driver comes from the machine.
FROM build AS build-gpu
COPY requirements/serve-gpu.txt requirements/
RUN /opt/xfeat/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/serve-gpu.txt

FROM python:3.11-slim AS server
RUN useradd --system --uid 10001 --no-create-home xfeat
ENV PATH=/opt/xfeat/bin:$PATH PYTHONUNBUFFERED=1 XSERVE_HOST=0.0.0.0 XSERVE_LOG_FORMAT=json XSERVE_JSON=1
USER xfeat
EXPOSE 8000
# The image has no curl, and needs none. Not urllib, which would ask the proxy of http_proxy for this server.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "import http.client, os; \
  server = http.client.HTTPConnection('127.0.0.1', os.environ.get('XSERVE_PORT', 8000), timeout=4); \
  server.request('GET', '/v2/health/ready'); exit(server.getresponse().status != 200)"]
# SIGTERM drains: docker stop -t must be longer than the longest request.
STOPSIGNAL SIGTERM
ENTRYPOINT ["xserve", "start"]
CMD ["/models"]

FROM server AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/xfeat /opt/xfeat

FROM server AS cpu
COPY --from=build /opt/xfeat /opt/xfeat

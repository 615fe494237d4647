# The service and its bundle, nothing else: no torch, no compiler, no shell script, no root.
#
#   docker build -t skipvit .                        one stage for each device; `cpu`, the last, is the default
#   docker build --target gpu -t skipvit:gpu .       ONNX Runtime with CUDA; falls back to the CPU where no GPU is
#   docker build --target loadtest -t skipvit-loadtest .
#   docker build --build-arg EXTRAS=otel,grpc ...   with what SKIPVIT_TRACING and SKIPVIT_GRPC_PORT need; in cpu and gpu
#
# A base image is a name and a digest: the name says what it is, the digest that it is always the same. To move on, take
# the new digest from `docker buildx imagetools inspect <name>`; an empty digest (--build-arg PYTHON_DIGEST=) takes what
# the name means today. onnxruntime-gpu says which CUDA it wants: `pip show`, extra `cuda`.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG PYTHON_DIGEST=@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.3-cudnn-runtime-ubuntu24.04
ARG CUDA_DIGEST=@sha256:14f6d08d1cd4a96effbfe3101d0b56326f552c199d05e4979ee0bd616df5811b

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS python-cpu

FROM ${CUDA_IMAGE}${CUDA_DIGEST} AS python-gpu
# Debian and Ubuntu don't keep old versions, so a pinned one would only break the build later.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

# Dependencies first, on empty rooms: they are a layer of their own, which a change of the source leaves cached.
FROM python-cpu AS build-cpu
ARG EXTRAS=
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN mkdir service models export \
    && python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir ".[service-cpu${EXTRAS:+,$EXTRAS}]"
COPY service service
COPY models/zoo /models
RUN python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall . \
    && chmod -R a+rX /models

FROM python-gpu AS build-gpu
ARG EXTRAS=
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE ./
RUN mkdir service models export \
    && python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir ".[service-gpu${EXTRAS:+,$EXTRAS}]"
COPY service service
COPY models/zoo /models
RUN python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall . \
    && chmod -R a+rX /models

# What sends the load in k8s/loadtest.
FROM python-cpu AS loadtest
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY loadtest loadtest
RUN mkdir service models export \
    && python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir '.[loadtest]' \
    && rm -r /src
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["skipvit-loadtest"]

# From here on both are the same; a test compares them. What differs between releases comes last.
FROM python-gpu AS gpu
COPY --from=build-gpu /models /models
COPY --from=build-gpu /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    SKIPVIT_HOST=0.0.0.0 \
    SKIPVIT_MODEL_REPOSITORY=/models
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('SKIPVIT_PORT', '8000')), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["skipvit-serve"]
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.title=skipvit \
      org.opencontainers.image.description="Vision Transformers that compute only the patches an image needs, served" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION

FROM python-cpu AS cpu
COPY --from=build-cpu /models /models
COPY --from=build-cpu /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    SKIPVIT_HOST=0.0.0.0 \
    SKIPVIT_MODEL_REPOSITORY=/models
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('SKIPVIT_PORT', '8000')), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["skipvit-serve"]
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.title=skipvit \
      org.opencontainers.image.description="Vision Transformers that compute only the patches an image needs, served" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION

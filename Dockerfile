# Two images from one file: `gpu`, the daemon with everything the models need (the default), and `slim`,
# the command line and the autokicker without any of it. Neither holds weights: `emiliad models pull`
# puts them into the volume /models.
#
#   make image                        or: docker build --target slim -t emiliad-slim .
#
# For linux/amd64. The base is pinned by digest; to move it, change tag and digest together.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

FROM ${PYTHON_IMAGE} AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.0-* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 emiliad \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp emiliad \
    && install --directory --owner 10001 --group 10001 /models /scratch /var/cache/emiliad
# All that is written at run time goes to /scratch, /var/cache/emiliad and /tmp (and /models, by
# `models pull`), so that the root may be read-only.
ENV PATH=/opt/emiliad/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/var/cache/emiliad \
    HF_HOME=/var/cache/emiliad/huggingface \
    NUMBA_CACHE_DIR=/var/cache/emiliad/numba \
    TRITON_CACHE_DIR=/var/cache/emiliad/triton \
    CUDA_CACHE_PATH=/var/cache/emiliad/cuda \
    MPLCONFIGDIR=/var/cache/emiliad/matplotlib \
    MODELS_DIR=/models \
    SCRATCH_DIR=/scratch
EXPOSE 9090
# The event loop turns. Where nothing is served (`docker run emiliad status`), nothing is asked.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('HTTP_PORT') or 9090}/livez\", timeout=5)"]
# tini, as PID 1, hands signals on and buries what ffmpeg and nvidia-smi leave behind.
ENTRYPOINT ["/usr/bin/tini", "--", "emiliad"]

FROM base AS build
ENV PIP_CACHE_DIR=/root/.cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The project itself, a wheel of a few hundred kB.
FROM build AS wheel
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install setuptools==84.2.1
COPY LICENSE README.md pyproject.toml ./
COPY emiliad emiliad
COPY pipeline pipeline
RUN pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels .

# What they depend on comes first and apart: these layers change only with their pins, so a node that
# has the image pulls a new version of the project in a moment.
FROM build AS slim-packages
COPY requirements-slim.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/emiliad \
    && /opt/emiliad/bin/pip install --no-deps --require-hashes --requirement requirements-slim.txt

FROM build AS gpu-packages
COPY requirements-gpu.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/emiliad \
    && /opt/emiliad/bin/pip install --no-deps --require-hashes --requirement requirements-gpu.txt

FROM base AS slim
COPY --from=slim-packages /opt/emiliad /opt/emiliad
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-index --no-deps --no-cache-dir /wheels/*.whl \
    && pip check \
    && emiliad config > /dev/null
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="emiliad-slim" \
      org.opencontainers.image.description="emiliad's command line and autokicker, without ML libraries" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.15-slim-bookworm" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
USER 10001:10001
CMD ["--help"]

FROM base AS gpu
COPY --from=gpu-packages /opt/emiliad /opt/emiliad
# torch and ONNX Runtime are built for CUDA 13, CTranslate2 for CUDA 12: it loads libcublas.so.12 by name,
# from wherever the loader's cache says. Both sets of libraries are wheels, none is the system's.
RUN find /opt/emiliad/lib/python3.11/site-packages/nvidia -type d -name lib \
        > /etc/ld.so.conf.d/emiliad.conf \
    && ldconfig
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=ops/image/gpu_check.py,target=/tmp/gpu_check.py \
    pip install --no-index --no-deps --no-cache-dir /wheels/*.whl \
    && python /tmp/gpu_check.py
# The driver's libraries and nvidia-smi come from the node, through NVIDIA's container toolkit. Which
# GPUs is not for the image to say: a pod that asked for none must see none.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="emiliad" \
      org.opencontainers.image.description="Turns raw audio into speech-dataset segments: the daemon, with CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.15-slim-bookworm" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
USER 10001:10001
CMD ["run"]

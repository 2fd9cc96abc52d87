# Four images: `docker build --target operator|gateway|worker|worker-cpu .` Operator and gateway have no torch; the worker
# for machines without a GPU is an image of its own. All but the GPU worker have the versions of constraints.txt. The
# user has no entry in /etc/passwd, as under clusters that choose one themselves; libraries that ask for a name find USER.
ARG PYTHON=3.12
ARG CUDA=13.0.1

FROM python:${PYTHON}-slim-bookworm AS tools
RUN python -m venv /opt/tools && /opt/tools/bin/pip install --no-cache-dir uv==0.13.8
ENV PATH=/opt/tools/bin:$PATH UV_CACHE_DIR=/cache/uv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY serving serving
COPY bootstrap bootstrap
COPY kernels kernels
RUN --mount=type=cache,target=/cache/uv uv build --wheel --out-dir /wheels

# What the package needs, apart from the package itself: only a change of that makes the large layers anew.
FROM tools AS requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; from pathlib import Path; \
    project = tomllib.loads(Path('pyproject.toml').read_text())['project']; \
    slim, engine = project['dependencies'], project['optional-dependencies']['engine']; \
    Path('slim.txt').write_text('\n'.join(slim)); Path('engine.txt').write_text('\n'.join(slim + engine))"

FROM tools AS slim-environment
COPY --from=requirements /src/slim.txt ./
COPY constraints.txt ./
RUN --mount=type=cache,target=/cache/uv python -m venv /opt/baton \
    && uv pip install --python /opt/baton --constraints constraints.txt --requirements slim.txt

FROM tools AS cpu-environment
# The kind of torch: empty takes the one of the package index, for where PyTorch's own index is out of reach.
ARG TORCH=cpu
COPY --from=requirements /src/engine.txt ./
COPY constraints.txt scripts/cpu-overrides.txt ./
RUN --mount=type=cache,target=/cache/uv python -m venv /opt/baton \
    && uv pip install --python /opt/baton --constraints constraints.txt --overrides cpu-overrides.txt \
       ${TORCH:+--torch-backend ${TORCH}} --requirements engine.txt

FROM python:${PYTHON}-slim-bookworm AS slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=slim-environment /opt/baton /opt/baton
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/baton/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=baton
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["baton"]

FROM slim AS operator
LABEL org.opencontainers.image.description="Baton's operator"

FROM slim AS gateway
LABEL org.opencontainers.image.description="Baton's gateway and bootstrap server"

FROM python:${PYTHON}-slim-bookworm AS worker-cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.description="Baton's worker for machines without a GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcurl4 libibverbs1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=cpu-environment /opt/baton /opt/baton
# What file://models/NAME means in a cluster.
COPY examples/models /opt/baton/share/models
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/baton/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=baton
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["baton"]

# FlashInfer compiles kernels at first use, so the worker brings a compiler and CUDA's headers.
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS worker
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.description="Baton's worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       g++ ibverbs-providers libcurl4t64 libibverbs1 libnuma1 ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels python3 -m venv /opt/baton \
    && /opt/baton/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[cuda]"
COPY examples/models /opt/baton/share/models
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=baton
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["baton"]
